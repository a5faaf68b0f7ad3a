"""Commands that check what is kept: whether it is as it was written, and whether it comes out again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkit.cli import completion
from alignkit.cli.options import (
    INLINE,
    JOBS,
    MACHINE,
    OFFLINE,
    PLUGINS,
    QUIET,
    RUNS,
    SEED,
    SET,
    UNTIL,
    machine_called,
    options,
    planned,
)
from alignkit.cli.printing import bold, print_json, print_lines, width
from alignkit.cli.running import run_and_show
from alignkit.environment import set_environment
from alignkit.errors import Problem, RecipeError, StageError, near_miss
from alignkit.text import short, size, table

if TYPE_CHECKING:
    from alignkit.store.runs import KeptRun
    from alignkit.use.expected import ExpectedPlan


@click.command()
@click.argument("name", metavar="RECIPE|RUN", shell_complete=completion.reproducible)
@click.option("--smoke", is_flag=True, help="Run RECIPE's small edition, its [smoke], and check what that expects.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of results; unset: runs for a recipe, reproduced for a run, which is found under runs.",
)
@options(PLUGINS, JOBS, INLINE, MACHINE, OFFLINE, QUIET)
@click.option("--json", "as_json", is_flag=True, help="Print what is found as JSON.")
@click.pass_context
def reproduce(
    ctx: click.Context, /, name: str, smoke: bool, runs: Path | None, as_json: bool, quiet: bool, **words: Any
) -> None:
    """Run RECIPE, or its comparison where it has [compare], and check that its figures are where its [[expect]] tables
    expect them. Or run the recipe that RUN has kept again in another folder of results, with its changes and its seed,
    and compare figures and weights. The same command resumes."""
    from alignkit.use.expected import is_expecting, plan_expected

    plugins, machine = words.pop("plugins"), machine_called(words.pop("machine"))
    how = {**words, "machine": machine, "check": True, "quiet": quiet}
    if is_expecting(name):
        runs = runs or Path("runs")
        planned = plan_expected(name, smoke=smoke, runs=runs, plugins=plugins, offline=how["offline"])
        _check_recipe(ctx, planned, runs, as_json, **how)
        return
    for option in [option for option, given in (("--smoke", smoke), ("--plugin", plugins)) if given]:
        problem, remedy = f"{name!r} is a run that is kept, not a recipe", "leave it out, or name a recipe"
        raise RecipeError(problem, option, _recipe_near(name) or remedy)
    _repeat_run(ctx, name, runs or Path("reproduced"), as_json, **how)


def _check_recipe(ctx: click.Context, planned: "ExpectedPlan", runs: Path, as_json: bool, **how: Any) -> None:
    """Run a recipe, and end with 1 where a figure is not where it was expected."""
    from alignkit.store.rundir import report_path
    from alignkit.use.expected import as_dict, check_expected, outside, show_expected

    if not how["quiet"]:
        click.echo(bold(f"reproducing {planned.plan.recipe.name}: {counted(planned.expected)}"), err=True)
    _, result = run_and_show(ctx, planned.plan, runs, aside=True, **how)
    found, report = check_expected(planned, result), report_path(result.folder)
    if as_json:
        print_json({**as_dict(planned, found), "recipe": result.recipe, "report": str(report)})
    else:
        print_lines(show_expected(found, width()))
        click.echo(f"report: {short(report, Path.cwd())}")
    if wrong := outside(found):
        raise StageError.of([Problem(told, f"{result.recipe} is not reproduced") for told in wrong])
    click.echo(f"reproduced: {counted(found)} where expected", err=as_json)


def counted(figures: Sequence[object]) -> str:
    return f"{len(figures)} figure{'s' if len(figures) > 1 else ''}"


def _run_called(name: str) -> "KeptRun":
    """Find a kept run. Raises RecipeError where there is none, with the packaged recipe that may have been meant."""
    from alignkit.store.runs import find_run

    try:
        return find_run(name, Path("runs"))
    except RecipeError as error:
        raise RecipeError(error.problem, error.where, _recipe_near(name) or error.remedy) from None


def _recipe_near(name: str) -> str:
    """Return which packaged recipe that expects figures may have been meant; nothing where none is near."""
    from alignkit.recipe.packaged import packaged_recipes
    from alignkit.use.expected import is_expecting

    return near_miss(name, [one for one in packaged_recipes() if is_expecting(one)])


def _repeat_run(ctx: click.Context, name: str, runs: Path, as_json: bool, **how: Any) -> None:
    """Run a kept run again, and end with 1 where something came out otherwise."""
    from alignkit.plan.pin import pin
    from alignkit.store.runs import open_run

    kept = _run_called(name)
    set_environment(how["offline"])
    from alignkit.use.reproduction import as_dict, compare_runs, plan_reproduction, show_reproduction  # loads torch

    plan = plan_reproduction(kept, runs)
    if any(stage.wanted and stage.fingerprint is None for stage in plan.stages):
        pin(plan, runs, how["offline"])
        plan = plan_reproduction(kept, runs)
    _, result = run_and_show(ctx, plan, runs, aside=True, **how)
    found = compare_runs(kept, open_run(result.folder))
    print_json(as_dict(found)) if as_json else print_lines(show_reproduction(found, width()))
    if found.wrong:
        raise StageError.of([Problem(told, f"{kept.id} is not reproduced") for told in found.wrong])
    same = sum(stage.same for stage in found.stages)
    click.echo(
        f"reproduced: {len(found.figures)} figures hold, {same} of {len(found.stages)} stages made the very same",
        err=as_json,
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
