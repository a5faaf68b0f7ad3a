"""Commands that show what a run that is kept has come to; they train nothing."""

from dataclasses import asdict
from pathlib import Path

import click

from alignkit.cli import completion
from alignkit.cli.options import RUNS
from alignkit.cli.printing import print_json
from alignkit.text import short


@click.command()
@click.argument("run", required=False, default="", metavar="[RUN]", shell_complete=completion.runs)
@RUNS
@click.option("--open", "opened", is_flag=True, help="Open it in the browser; while the run goes on, it follows it.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict and the figures as JSON.")
def report(run: str, runs: Path, opened: bool, as_json: bool) -> None:
    """Write the report of RUN anew, and tell whether it got better. RUN is a recipe's name (its last run), the
    beginning of a run's id, or the path of its folder or its report; unset: the run that began last."""
    from alignkit.compare.comparison import report_comparison
    from alignkit.contract.events import plain
    from alignkit.show.report import write_report
    from alignkit.show.verdict import verdict_on
    from alignkit.store.runs import find_run

    found = find_run(run, runs)
    if found.comparison:
        report_comparison(found)
    else:
        write_report(found)
    verdict = verdict_on(found)
    if as_json:
        figures = {stage.name: [plain(one) for one in stage.results] for stage in found.stages if stage.wanted}
        facts = {"run": found.id, "state": found.state, "report": str(found.report)}
        print_json({**facts, "verdict": asdict(verdict), "figures": figures, "comparison": dict(found.comparison)})
    else:
        click.echo(found.comparison["conclusion"] if found.comparison else verdict.lead)
        click.echo(f"report: {short(found.report, Path.cwd())}")
    if opened:
        click.launch(str(found.report))
