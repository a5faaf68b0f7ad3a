"""Commands that run recipes."""

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkit.cli import completion
from alignkit.cli.options import (
    AGAIN,
    INLINE,
    JOBS,
    MACHINE,
    OFFLINE,
    PLUGINS,
    QUIET,
    RUNS,
    SEED,
    SET,
    TRACK,
    UNTIL,
    how_of,
    options,
    pinned_plan,
    selection_of,
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
from alignkit.errors import AlignkitError, DataError, PluginError, RecipeError
from alignkit.text import plain, short

if TYPE_CHECKING:
    from alignkit.compare.planning import ComparisonPlan
    from alignkit.contract.events import Event
    from alignkit.plan.plan import Plan
    from alignkit.run.run_result import RunResult
    from alignkit.show.console import Console

ARGUMENTS = "alignkit.arguments"
"""Where the context keeps the arguments as they were given, for the command that resumes."""


SETTLED = (RecipeError.status, DataError.status, PluginError.status)
"""After these the same command would only fail again."""


@click.command()
@click.argument("recipe", shell_complete=completion.recipes)
@options(SET, SEED, RUNS, UNTIL, AGAIN, TRACK, PLUGINS)
@options(JOBS, INLINE, MACHINE, OFFLINE, QUIET)
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON Lines.")
@click.pass_context
def recipe(ctx: click.Context, /, recipe: str, as_json: bool, quiet: bool, **words: Any) -> None:
    """Run RECIPE: a file, or the name of a packaged recipe. Finished stages are reused; the same command resumes."""
    path, runs, how = announce(recipe, quiet), words["runs"], how_of(words)
    plan = pinned_plan(path, how["offline"], **words)
    heard = [printer(sys.stdout)] if as_json else []
    console, result = run_and_show(ctx, plan, runs, heard=heard, aside=as_json, quiet=quiet, **how)
    print_results(console, result.folder, err=as_json)


@click.command()
@click.argument("recipe", shell_complete=completion.recipes)
@click.option(
    "--stage",
    metavar="STAGE",
    shell_complete=completion.stages,
    help="The stage to compare; unset: the last one that makes a policy.",
)
@click.option("--methods", metavar="A,B,...", help="Run the stage with each of these methods, or papers (ipo, dapo).")
@click.option("--vary", metavar="KEY=A,B,...", multiple=True, help="Run it with each value: align.dpo.beta=0.05,0.1")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="Run each with so many seeds; unset: those of the recipe's [compare], else one.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Show what would run, and run nothing.")
@options(SET, SEED, RUNS, AGAIN, TRACK, PLUGINS)
@options(JOBS, INLINE, MACHINE, OFFLINE, QUIET)
@click.option("--json", "as_json", is_flag=True, help="Print the result, or the plan, as JSON.")
@click.pass_context
def compare(ctx: click.Context, /, recipe: str, only_plan: bool, as_json: bool, quiet: bool, **words: Any) -> None:
    """Compare methods, or values of settings, in one stage of RECIPE, unset: what its [compare] says. What they share
    runs once, then each variant under the same seeds, then all are measured on the same held-out prompts."""
    from alignkit.compare.planning import plan_comparison
    from alignkit.compare.tables import show_heading
    from alignkit.compare.variants import VariantRequest, read_vary, split

    varied, methods = read_vary(words.pop("vary")), split(words.pop("methods") or "")
    asked = VariantRequest(words.pop("stage"), methods, varied, words.pop("seeds"))
    how, selection = how_of(words), selection_of(words)
    if only_plan:
        _show_comparison_plan(plan_comparison(recipe, asked, **selection), selection["runs"], how["again"], as_json)
        return
    from alignkit.compare.comparison import conclude, plan_pinned
    from alignkit.compare.tables import as_dict, show_comparison
    from alignkit.store.rundir import report_path

    planned = plan_pinned(recipe, asked, offline=how["offline"], **selection)
    if not quiet:
        click.echo(bold(show_heading(planned, Path.cwd())), err=True)
    _, result = run_and_show(ctx, planned.plan, selection["runs"], aside=as_json, quiet=quiet, **how)
    found = conclude(planned, result)
    if as_json:
        print_json(as_dict(found))
        return
    print_lines(show_comparison(found, width()))
    click.echo(f"report: {short(report_path(result.folder), Path.cwd())}")


def _show_comparison_plan(planned: "ComparisonPlan", runs: Path, again: Sequence[str], as_json: bool) -> None:
    from alignkit.compare.tables import plan_as_dict, show_heading
    from alignkit.run.states import states_of
    from alignkit.show.planned import as_dict, show_plan

    states, remarks = states_of(planned.plan, runs, again)
    if as_json:
        print_json({**plan_as_dict(planned), "plan": as_dict(planned.plan, states)})
        return
    click.echo(bold(show_heading(planned, Path.cwd())))
    print_painted(show_plan(planned.plan, states, remarks, width()))


def announce(name: str, quiet: bool = False) -> Path:
    """Say at once which recipe is run."""
    from alignkit.recipe.packaged import find_recipe, is_packaged

    path = find_recipe(name)
    what = f"running the packaged recipe {path.stem}" if is_packaged(path) else f"running {short(path, Path.cwd())}"
    if not quiet:
        click.echo(bold(what), err=True)
    return path


def run_and_show(
    ctx: click.Context,
    plan: "Plan",
    runs: Path,
    *,
    heard: Sequence[Callable[["Event"], None]] = (),
    aside: bool,
    quiet: bool = False,
    **how: Any,
) -> tuple["Console", "RunResult"]:
    """Run a plan and show it; a failure ends the command, with what is finished and the command that goes on.

    With `aside` whatever stages print goes to standard error.
    """
    from alignkit.run.gates import GateError
    from alignkit.run.keeping import RunRecord
    from alignkit.run.runner import run_plan
    from alignkit.run.states import states_of
    from alignkit.show.console import Console

    states, remarks = states_of(plan, runs, how.get("again", ()))
    console = Console([stage.name for stage in plan.stages if stage.wanted], quiet=quiet)
    kept = RunRecord(plan, runs, ctx.meta[ARGUMENTS])
    try:
        with kept, console, redirect_stdout(sys.stderr if aside else sys.stdout):
            console.begin(plan, states, remarks, how.get("jobs", 1))
            result = run_plan(plan, runs=runs, observers=[console, *heard], stop=ctx.obj, record=kept, **how)
    except AlignkitError as error:
        print_results(console, kept.folder, err=True)
        print_problems(error)
        if error.status not in SETTLED and not isinstance(error, GateError):
            click.echo(plain(f"go on with: {shlex.join(['alignkit', *ctx.meta[ARGUMENTS]])}"), err=True)
        ctx.exit(error.status)
    return console, result
