"""Commands about the runs that are kept."""

from collections.abc import Sequence
from pathlib import Path

import click

from alignkit.cli import completion
from alignkit.cli.options import RUNS
from alignkit.cli.printing import print_json, print_lines, width
from alignkit.text import short, size, table

JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")


class Listing(click.Group):
    """A group of which `ls` is meant where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; options alone are those of `ls`."""
        options = bool(args) and args[0].startswith("-") and args[0] not in self.get_help_option_names(ctx)
        meant = (not args or options) and not ctx.resilient_parsing
        return super().parse_args(ctx, ["ls", *args] if meant else args)


@click.group(cls=Listing)
def runs() -> None:
    """List the runs that are kept (ls), show one, compare two, and remove what nobody needs.

    RUN is a recipe's name (its last run), the beginning of a run's id, or the path of its folder or its report.
    """


@runs.command()
@RUNS
@JSON
def ls(runs: Path, as_json: bool) -> None:
    """List all runs, the last one last."""
    from alignkit.show.kept_runs import as_dict, list_runs
    from alignkit.store.runs import kept_runs

    found = kept_runs(runs)
    if as_json:
        print_json([as_dict(run) for run in found])
    else:
        print_lines(list_runs(found, width()) or [f"no run is kept in {runs}"])


@runs.command()
@click.argument("run", shell_complete=completion.runs)
@RUNS
@JSON
def show(run: str, runs: Path, as_json: bool) -> None:
    """Show how RUN went: its stages, what was changed, and what it read."""
    from alignkit.show.kept_runs import in_detail, show_run
    from alignkit.store.runs import find_run

    found = find_run(run, runs)
    print_json(in_detail(found)) if as_json else print_lines(show_run(found, width()))


@runs.command()
@click.argument("a", metavar="RUN", shell_complete=completion.runs)
@click.argument("b", metavar="RUN", shell_complete=completion.runs)
@RUNS
@JSON
def diff(a: str, b: str, runs: Path, as_json: bool) -> None:
    """Compare two runs: settings, data, seed and versions that are otherwise, and the figures side by side."""
    from alignkit.show.run_diff import as_dict, diff_runs, show_diff
    from alignkit.store.runs import find_run

    found = diff_runs(find_run(a, runs), find_run(b, runs))
    print_json(as_dict(found)) if as_json else print_lines(show_diff(found, width()))


@runs.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True, shell_complete=completion.runs)
@RUNS
def rm(names: Sequence[str], runs: Path) -> None:
    """Remove runs from the list, with their reports. Their stages stay: `alignkit runs gc` removes those."""
    from alignkit.show.index_page import write_index
    from alignkit.store.runs import find_run, remove_run

    for run in {run.folder: run for run in (find_run(name, runs) for name in names)}.values():
        remove_run(run)
        click.echo(f"removed {run.id}")
    write_index(runs.resolve())


@runs.command()
@RUNS
@click.option("--dry-run", is_flag=True, help="Show what would go, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@JSON
def gc(runs: Path, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove what no kept run needs: stages, sources, rows in the cache. Ask first.

    What a run that was stopped would go on with stays, and so does what somebody works on.
    """
    from alignkit.store.unneeded import remove, unneeded

    found = unneeded(runs)
    if as_json:
        print_json([{"folder": str(one.path), "reason": one.reason, "bytes": one.size} for one in found])
    else:
        rows = [(short(one.path, Path.cwd()), size(one.size), one.reason) for one in found]
        print_lines(table(rows, width(), ("folder", "size", "why")) or ["nothing: kept runs need all that is there"])
    if not found or dry_run or not (yes or click.confirm(f"remove {size(sum(one.size for one in found))}?", err=True)):
        return
    gone = list(remove(found, runs))
    click.echo(f"removed {len(gone)} of {len(found)} folders, {size(sum(one.size for one in gone))}", err=True)
