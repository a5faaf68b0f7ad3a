"""Commands that look at recipes, rows, methods and this machine, and change nothing."""

import sys
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkit.cli import completion
from alignkit.cli.options import (
    AGAIN,
    MACHINE,
    OFFLINE,
    PLUGINS,
    RUNS,
    SEED,
    SET,
    UNTIL,
    machine_called,
    options,
    pinned_plan,
    planned,
)
from alignkit.cli.printing import (
    bold,
    print_json,
    print_lines,
    print_painted,
    print_problems,
    print_results,
    printer,
    width,
)
from alignkit.cli.running import run_and_show
from alignkit.errors import AlignkitError, RecipeError
from alignkit.text import short

if TYPE_CHECKING:
    from alignkit.estimate.examination import Examination
    from alignkit.plugins import Plugins
    from alignkit.sources.audit import Audit

ELSEWHERE = "; memory is compared with this computer's here, and with a node's before a run"


@click.command()
@click.argument("recipe", shell_complete=completion.recipes)
@options(SET, SEED, RUNS, UNTIL, AGAIN, MACHINE, PLUGINS)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(recipe: str, again: Sequence[str], machine: str | None, as_json: bool, **selection: Any) -> None:
    """Show what RECIPE would run, reuse or leave out, and why. Imports nothing heavy and opens no connection."""
    from alignkit.recipe.packaged import find_recipe
    from alignkit.run.states import states_of
    from alignkit.show.planned import as_dict, heading, show_plan

    on = machine_called(machine)
    plan = planned(find_recipe(recipe), **selection)
    states, remarks = states_of(plan, selection["runs"], again)
    if as_json:
        print_json(as_dict(plan, states) | {"machine": on.model_dump()})
        return
    click.echo(bold(heading(plan, Path.cwd())))
    if machine:
        click.echo(f"on {machine}: {on.told}")
    print_painted(show_plan(plan, states, remarks, width()))


@click.command()
@click.argument("recipe", shell_complete=completion.recipes)
@options(SET, SEED, RUNS, UNTIL, MACHINE, PLUGINS)
@click.option("--rows-only", is_flag=True, help="Read the rows and nothing else: open no model's files.")
@click.option("--smoke", is_flag=True, help="Then run a short trial of every stage, through save and load, to time it.")
@OFFLINE
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    recipe: str,
    machine: str | None,
    smoke: bool,
    as_json: bool,
    **selection: Any,
) -> None:
    """Read every row of RECIPE's sources; tell what is in them, what is wrong, what is learnt, and what memory, time
    and disk every stage will need (with --on: memory of each process)."""
    from alignkit.environment import set_environment
    from alignkit.estimate.examination import examine
    from alignkit.recipe.packaged import find_recipe
    from alignkit.sources.from_files import refuse_rows

    offline, rows_only = selection.pop("offline"), selection.pop("rows_only")
    set_environment(offline)
    refuse_rows(recipe)
    on = machine_called(machine)
    plan = pinned_plan(find_recipe(recipe), offline, **selection)
    if machine and not as_json:
        click.echo(f"on {machine}: {on.told}{'' if on.start == 'here' else ELSEWHERE}")
    found = examine(plan, selection["runs"], offline, rows_only=rows_only, on=on.sharing())
    print_examination(found, as_json)
    stop_at(ctx, found.errors)
    if smoke:
        try_stages(ctx, found, as_json)


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--as", "kind", metavar="KIND", help="What they hold: demonstrations, preferences, ratings, ...")
@click.option(
    "--fix",
    "fixed",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="NEW.jsonl",
    help="Write the good rows, each once, to a new file.",
)
@PLUGINS
@RUNS
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def data(ctx: click.Context, /, files: Sequence[str], fixed: Path | None, as_json: bool, **words: Any) -> None:
    """Read every row of FILEs, of a folder's files or of those that match a pattern in quotes; tell what is in them
    and what is wrong."""
    from alignkit.contract.kinds import SOURCE_KINDS
    from alignkit.environment import set_environment
    from alignkit.plugins import load_plugins
    from alignkit.sources.fetch import audits
    from alignkit.sources.from_files import source_at, write_fixed

    set_environment(offline=True)
    kinds = SOURCE_KINDS if words["kind"] in (None, *SOURCE_KINDS) else load_plugins(words["plugins"]).source_kinds
    sources = [source_at(file, words["kind"], kinds) for file in files]
    if fixed:
        if len(sources) > 1:
            raise RecipeError("--fix writes one file of one", " ".join(files), "fix them one by one")
        kept, left_out = write_fixed(sources[0], fixed)
        click.echo(f"{fixed} has {kept} rows; {left_out} are left out (bad or duplicate)", err=True)
    found, errors = audits(sources, words["runs"], offline=True)
    if as_json:
        print_json({"sources": [one.as_dict() for one in found], "problems": list(map(str, errors))})
    else:
        print_audits(found)
    stop_at(ctx, errors)


@click.command()
@click.argument("name", required=False, shell_complete=completion.methods)
@click.option("--papers", is_flag=True, help="List the papers, each with the method and the settings that are its own.")
@click.option("--for", "rows", metavar="KIND|FILE", help="List what learns from such rows, and how to choose.")
@PLUGINS
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def methods(name: str | None, papers: bool, rows: str | None, plugins: Sequence[Path], as_json: bool) -> None:
    """List all methods, rewards and judges, or tell what one takes, makes and can be told. NAME may be a paper's, too,
    such as `ipo` or `2310.12036`."""
    from dataclasses import asdict

    from alignkit.plugins import load_plugins
    from alignkit.show.literature import describe_paper, list_papers, paper_as_dict
    from alignkit.show.offered import (
        all_as_dict,
        as_dict,
        describe_method,
        describe_scorer,
        find_method,
        find_scorer,
        list_methods,
    )

    loaded = load_plugins(plugins)
    if rows:
        print_choices(loaded, rows, as_json)
        return
    if papers:
        listed = loaded.papers_called(name) if name else loaded.papers
        print_json([paper_as_dict(*row) for row in listed]) if as_json else print_lines(list_papers(listed, width()))
        return
    if name is None:
        print_json(all_as_dict(loaded)) if as_json else print_lines(list_methods(loaded, width()))
        return
    scorer = find_scorer(loaded, name) if name not in loaded.methods else None
    if scorer:
        print_json(asdict(scorer)) if as_json else print_lines(describe_scorer(scorer, width()))
        return
    found = loaded.papers_meant(name)
    if found:
        told = (line for row in found for line in [*describe_paper(*row, width()), ""])
        print_json([paper_as_dict(*row) for row in found]) if as_json else print_lines(told)
        return
    method = find_method(loaded, name)
    print_json(as_dict(loaded, method)) if as_json else print_lines(describe_method(loaded, method, width()))


def print_choices(plugins: "Plugins", rows: str, as_json: bool) -> None:
    """Print the methods that learn from rows of a kind, or of the kind that a file's rows are of."""
    from alignkit.plan.choosing import choices
    from alignkit.show.choosing_table import choice_as_dict, for_kind, list_choices
    from alignkit.sources.from_files import source_at

    kind = plugins.source_kinds.get(rows) or source_at(rows, None, plugins.source_kinds).kind
    found = for_kind(choices(plugins), kind)
    print_json([choice_as_dict(one) for one in found]) if as_json else print_lines(list_choices(found, width()))


@click.command()
@RUNS
@MACHINE
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, for a bug report.")
def doctor(runs: Path, machine: str | None, as_json: bool) -> None:
    """Report what this machine offers, and what to mend; with --on, also what is missing for starting stages there."""
    from alignkit.doctor.examine import report
    from alignkit.doctor.findings import as_dict, render
    from alignkit.run.reachable import findings_on

    on = machine_called(machine)
    click.echo("looking (importing torch, about 5 s)", err=True)
    found = report(runs)
    more = tuple(findings_on(machine, on, found.disk)) if machine else ()
    print_json(as_dict(found, more)) if as_json else click.echo(render(found, more))


@click.command()
@click.argument("run", required=False, default="", metavar="[RUN]")
@RUNS
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON Lines.")
def watch(run: str, runs: Path, as_json: bool) -> None:
    """Follow RUN as its own terminal shows it, and end with its exit status. RUN is a recipe's name (its last run) or
    the folder of a run; unset: the run that began last."""
    from alignkit.contract.events import Stopping
    from alignkit.run.event_log import RunClock, check_end, followed
    from alignkit.show.console import Console
    from alignkit.store.runs import KeptRun, find_run

    kept = find_run(run, runs)
    click.echo(bold(f"watching {kept.id} ({kept.state})"), err=True)
    clock, stages = RunClock(), [stage.name for stage in kept.stages if stage.wanted]
    past = None if kept.state == "running" else StringIO()  # of what is over, the result alone is shown
    console = Console(stages, past, clock)
    try:
        with console:
            for at, event in followed(kept.folder):
                if as_json:
                    printer(sys.stdout)(event)
                with clock.at(at):
                    console.say("the run is asked to stop") if isinstance(event, Stopping) else console(event)
            check_end(KeptRun(kept.folder))
    except AlignkitError:
        print_results(console, kept.folder, err=True)
        raise
    print_results(console, kept.folder, err=as_json)


def print_examination(found: "Examination", as_json: bool) -> None:
    """Print all that was found, problems last and to standard error."""
    from alignkit.estimate.preflight import show
    from alignkit.show.audit_lines import show_preview
    from alignkit.show.planned import mixes_in_words

    mixes = mixes_in_words(found.desk.plan, found.desk.audits)
    audits = list(found.desk.audits.values())
    if as_json:
        print_json(
            {
                "sources": [one.as_dict() for one in audits],
                "stages": [one._asdict() | {"preview": one.preview.as_dict()} for one in found.previews],
                "mixes": mixes,
                "needs": found.needs.stages,
                "remarks": list(map(str, found.needs.remarks)),
                "problems": list(map(str, found.errors)),
            }
        )
        return
    print_audits(audits)
    rows = (line for one in found.previews for line in [*show_preview(*one, colour=sys.stdout.isatty()), ""])
    print_lines(rows, painted=True)
    print_lines(line for name, words in mixes.items() for line in (f"{name} {words}", ""))
    print_lines(show(found.needs.stages, width()))
    print_lines(f"! {remark}" for remark in found.needs.remarks)


def print_audits(audits: Iterable["Audit"]) -> None:
    """Print what is in each source."""
    from alignkit.show.audit_lines import show_audit

    print_lines(line for one in audits for line in [*show_audit(one, width()), ""])


def stop_at(ctx: click.Context, errors: Sequence[AlignkitError]) -> None:
    """End the command where something is wrong, with the status of the first."""
    for error in errors:
        print_problems(error)
    if errors:
        ctx.exit(errors[0].status)


def try_stages(ctx: click.Context, found: "Examination", as_json: bool) -> None:
    """Run a short trial of every stage, and print what it says of the whole."""
    from alignkit.estimate.preflight import show
    from alignkit.run import smoke

    desk = found.desk
    place = smoke.emptied(desk.runs)
    small = smoke.small_plan(desk, found.needs, place)
    click.echo(f"\nrunning a short trial of every stage, in {short(place, Path.cwd())}", err=True)
    _, result = run_and_show(ctx, small, place, aside=as_json, offline=desk.offline)
    measured = smoke.calibrated(found.needs, small, result, place, desk.offline)
    if as_json:
        print_json({"smoke": measured})
        return
    click.echo("trial measured, full run estimated:")
    print_lines(show(measured, width()))
