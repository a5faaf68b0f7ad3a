"""Commands that check what is kept: whether it is as it was written, and whether it comes out again."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkit.cli import completion
from alignkit.cli.options import OFFLINE, PLUGINS, RUNS, SEED, SET, UNTIL, options, planned
from alignkit.cli.printing import print_json, print_lines, width
from alignkit.cli.running import run_and_show
from alignkit.errors import Problem, RecipeError, StageError
from alignkit.text import size, table

if TYPE_CHECKING:
    from alignkit.store.runs import KeptRun


@click.command()
@click.argument("name", metavar="RUN", shell_complete=completion.runs)
@click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("reproduced"),
    show_default=True,
    help="The folder of results in which it is run again; RUN is found under runs/, or by its path.",
)
@OFFLINE
@click.pass_context
def reproduce(ctx: click.Context, /, name: str, runs: Path, offline: bool) -> None:
    """Run the recipe that RUN has kept again in another folder of results, with its changes and its seed, and compare
    figures and weights. The same command resumes."""
    from alignkit.plan.pin import pin
    from alignkit.store.runs import find_run, open_run
    from alignkit.use.reproduction import compare_runs, plan_reproduction, show_reproduction

    kept = find_run(name, Path("runs"))
    plan = plan_reproduction(kept, runs)
    if any(stage.wanted and stage.fingerprint is None for stage in plan.stages):
        pin(plan, runs, offline)
        plan = plan_reproduction(kept, runs)
    _, result = run_and_show(ctx, plan, runs, aside=True, offline=offline, check=True)
    found = compare_runs(kept, open_run(result.folder))
    print_lines(show_reproduction(found, width()))
    if found.wrong:
        raise StageError.of([Problem(told, f"{kept.id} is not reproduced") for told in found.wrong])
    same = sum(stage.same for stage in found.stages)
    click.echo(
        f"reproduced: {len(found.figures)} figures hold, {same} of {len(found.stages)} stages made the very same"
    )


@click.command()
@click.argument("what", metavar="[RUN|RECIPE|RUNS]", required=False, shell_complete=completion.recipes)
@options(SET, SEED, RUNS, UNTIL, PLUGINS)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def verify(what: str | None, as_json: bool, **selection: Any) -> None:
    """Read every file of the finished stages, of a kept RUN, of RECIPE or of all in RUNS, and tell which are damaged,
    gone, or made again since."""
    from alignkit.store.verification import verify, verify_run

    run = _kept_run(what, selection)
    verdicts = list(verify_run(run) if run else verify(_finished_folders(what, selection)))
    if as_json:
        print_json([{"folder": str(one.folder), "bytes": one.size, "wrong": str(one.wrong or "")} for one in verdicts])
    else:
        states = ["damaged" if one.wrong else "as it was written" for one in verdicts]
        rows = [(one.folder.name, size(one.size), state) for one, state in zip(verdicts, states, strict=True)]
        print_lines(table(rows, width(), ("stage", "size", "state")) or ["no stage is finished"])
    if wrong := [one.wrong for one in verdicts if one.wrong]:
        raise StageError.of(wrong)


def _kept_run(what: str | None, selection: Mapping[str, Any]) -> "KeptRun | None":
    """Return the run that is meant; None where it is a recipe, what would be changed of it, or a folder of runs."""
    from alignkit.store.runs import find_run

    changed = selection["changes"] or selection["seed"] is not None or selection["until"] or selection["plugins"]
    if not what or what.endswith(".toml") or changed:
        return None
    try:
        return find_run(what, selection["runs"])
    except RecipeError:
        return None


def _finished_folders(what: str | None, selection: Mapping[str, Any]) -> list[Path]:
    """List the finished stages in a folder of runs, or those of a recipe."""
    from alignkit.recipe.packaged import find_recipe
    from alignkit.store import rundir
    from alignkit.store.results import finished_in

    if what is None or Path(what).is_dir():
        return list(finished_in(Path(what or selection["runs"]).resolve()))
    stages = planned(find_recipe(what), **selection).stages
    wanted = [stage for stage in stages if stage.wanted and stage.fingerprint]
    folders = [rundir.stage_folder(selection["runs"].resolve(), one.name, str(one.fingerprint)) for one in wanted]
    return [folder for folder in folders if folder.is_dir()]
