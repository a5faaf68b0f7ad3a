"""The command line: parse, call, print. Slow imports stand inside the commands."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from alignkit.cli import completion
from alignkit.errors import INTERRUPTED, AlignkitError, DataError, RecipeError
from alignkit.text import line_width, short

if TYPE_CHECKING:
    from alignkit.compare.planning import ComparisonPlan
    from alignkit.contract.events import Event
    from alignkit.estimate.preflight import Preflight
    from alignkit.estimate.stage_previews import StagePreview
    from alignkit.plan.plan import Plan
    from alignkit.run.runner import RunResult
    from alignkit.show.console import Console
    from alignkit.sources.audit import Audit

F = TypeVar("F", bound=Callable[..., Any])

ARGUMENTS = "alignkit.arguments"
"""Where the context keeps the arguments as they were given, for the command that resumes."""


class Commands(click.Group):
    """The commands; a user's mistakes end in lines on standard error and in their exit status."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments, and keep them."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. What is no AlignkitError is a bug, and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except AlignkitError as error:
            _print_problems(error)
            ctx.exit(error.status)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            error.add_note("This is a bug in alignkit or in a plugin; add `alignkit doctor --json` to a report of it.")
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alignkit", message="%(package)s %(version)s")
def main() -> None:
    """Align language models from one recipe: CLM, SFT, reward model, PPO, and methods from any package."""


RUNS = click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="The folder of results.",
)
PLUGINS = click.option(
    "-p",
    "--plugin",
    "plugins",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE.py",
    help="Load a file as a plugin.",
)
SET = click.option("--set", "changes", metavar="KEY=VALUE", multiple=True, help="Change the recipe: align.method=dpo")
SEED = click.option("--seed", type=click.IntRange(min=0), help="Take another seed than the recipe's.")
UNTIL = click.option(
    "--until", metavar="STAGE", shell_complete=completion.stages, help="Run no more than this stage and what it needs."
)
AGAIN = click.option(
    "--again",
    metavar="STAGE",
    multiple=True,
    shell_complete=completion.stages,
    help="Run this stage although it is finished.",
)


INLINE = click.option("--inline", is_flag=True, help="Run the stages in this process, for debugging.")
MACHINE = click.option("--on", "machine", metavar="NAME", help="Use this machine of ./machines.toml.")
OFFLINE = click.option("--offline", is_flag=True, help="Open no connection; use what is on this machine.")


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Make one decorator of several, in the order in which help lists them."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@main.command()
@click.argument("recipe", shell_complete=completion.recipes)
@_options(SET, SEED, RUNS, UNTIL, AGAIN, PLUGINS)
@_options(INLINE, MACHINE, OFFLINE)
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON Lines.")
@click.pass_context
def recipe(
    ctx: click.Context,
    /,
    recipe: str,
    again: Sequence[str],
    inline: bool,
    machine: str | None,
    offline: bool,
    as_json: bool,
    **selection: Any,
) -> None:
    """Run RECIPE: a file, or the name of a packaged recipe. Finished stages are reused; the same command resumes."""
    path, runs = _announce(recipe), selection["runs"]
    from alignkit.run.machine import Machine, read_machine

    chosen = read_machine(machine, Path.cwd()) if machine else Machine()
    plan = _pinned_plan(path, offline, **selection)
    heard = [_printer(sys.stdout)] if as_json else []
    how: dict[str, Any] = {"inline": inline, "offline": offline, "machine": chosen, "check": True}
    console, _ = _run(ctx, plan, runs, again, heard=heard, aside=as_json, **how)
    _print_results(console, plan, runs, err=as_json)


@main.command()
@click.argument("recipe", shell_complete=completion.recipes)
@_options(SET, SEED, RUNS, UNTIL, AGAIN, PLUGINS)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(recipe: str, again: Sequence[str], as_json: bool, **selection: Any) -> None:
    """Show what RECIPE would run, reuse or leave out, and why. Imports nothing heavy and opens no connection."""
    from alignkit.recipe.packaged import find_recipe
    from alignkit.run.states import states_of
    from alignkit.show.planned import as_dict, heading, show_plan

    plan = _plan(find_recipe(recipe), **selection)
    states, remarks = states_of(plan, selection["runs"], again)
    if as_json:
        _print_json(as_dict(plan, states))
        return
    click.echo(_bold(heading(plan, Path.cwd())))
    _print_lines(show_plan(plan, states, remarks, _width()))


@main.command()
@click.argument("what", metavar="RECIPE|FILE", shell_complete=completion.recipes)
@click.option("--as", "kind", metavar="KIND", help="What a FILE holds: demonstrations, preferences, ratings, ...")
@_options(SET, SEED, RUNS, UNTIL, PLUGINS)
@click.option(
    "--fix",
    "fixed",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="NEW.jsonl",
    help="Write a FILE's good rows, each once, to a new file.",
)
@click.option("--rows-only", is_flag=True, help="Read the rows and nothing else: open no model's files.")
@click.option("--smoke", is_flag=True, help="Then run every stage in small, through save and load, to time it.")
@OFFLINE
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    what: str,
    kind: str | None,
    fixed: Path | None,
    rows_only: bool,
    smoke: bool,
    offline: bool,
    as_json: bool,
    **selection: Any,
) -> None:
    """Read every row of a RECIPE's sources, or of a FILE, a folder or a pattern; tell what is in them, what is wrong,
    what is learnt, and what memory, time and disk every stage will need."""
    from alignkit.contract.kinds import Records
    from alignkit.environment import set_environment
    from alignkit.estimate.preflight import Preflight as Found
    from alignkit.estimate.preflight import preflight, show
    from alignkit.recipe.packaged import find_recipe
    from alignkit.show.audit_lines import show_audit, show_preview
    from alignkit.sources.fetch import audits
    from alignkit.sources.file import files_at, source_of, write_fixed

    set_environment(offline)

    seen, plan, needs = list["StagePreview"](), None, Found()
    rows = files_at(what)
    if rows.files:
        sources = [source_of(rows.files, Path(what).name, kind, rows.splits)]
        if fixed:
            kept, left_out = write_fixed(sources[0], fixed)
            click.echo(f"{fixed} has {kept} rows; {left_out} are left out, bad or there twice", err=True)
        if smoke:
            raise RecipeError("--smoke is for a recipe, and this is a file", what, "leave it out")
    elif kind or fixed:
        raise RecipeError("--as and --fix are for a file, and this is none", what, "leave them out")
    else:
        plan = _pinned_plan(find_recipe(what), offline, **selection)
        used = {name for stage in plan.stages if stage.wanted for several in stage.inputs.values() for name in several}
        sources = [one for name, one in plan.sources.items() if name in used and issubclass(one.kind, Records)]
    found, errors = audits(sources, selection["runs"], offline)
    if plan and not rows_only:
        from alignkit.estimate.stage_previews import previews

        known = {one.source: one for one in found}
        try:
            needs = preflight(plan, known, selection["runs"], offline)
            seen = list(previews(plan, known, selection["runs"], offline))
        except AlignkitError as problem:
            told = {one.problem for one in needs.problems}
            errors += [] if told.issuperset(one.problem for one in problem.problems) else [problem]
        if needs.problems:
            errors.append(RecipeError.of(needs.problems))
    if as_json:
        shown = [one._asdict() | {"preview": one.preview.as_dict()} for one in seen]
        audited = [one.as_dict() for one in found]
        problems, remarks = list(map(str, errors)), list(map(str, needs.remarks))
        found_all = {"sources": audited, "stages": shown, "needs": needs.stages, "remarks": remarks}
        _print_json({**found_all, "problems": problems})
    else:
        _print_lines(line for one in found for line in [*show_audit(one, _width()), ""])
        _print_lines(line for one in seen for line in [*show_preview(*one, colour=sys.stdout.isatty()), ""])
        _print_lines(show(needs.stages, _width()))
        _print_lines(f"! {remark}" for remark in needs.remarks)
    for error in errors:
        _print_problems(error)
    if errors:
        ctx.exit(errors[0].status)
    if smoke and plan:
        _smoke(ctx, plan, needs, {one.source: one for one in found}, selection["runs"], offline, as_json)


def _smoke(
    ctx: click.Context,
    plan: "Plan",
    needs: "Preflight",
    audits: Mapping[str, "Audit"],
    runs: Path,
    offline: bool,
    as_json: bool,
) -> None:
    from alignkit.estimate.preflight import show
    from alignkit.run import smoke

    place = smoke.emptied(runs)
    small = smoke.small_plan(plan, needs, audits, place)
    click.echo(f"\nrunning every stage in small, in {short(place, Path.cwd())}", err=True)
    _, result = _run(ctx, small, place, (), aside=as_json, offline=offline)
    found = smoke.calibrated(needs, small, result, place, offline)
    if as_json:
        _print_json({"smoke": found})
        return
    click.echo("measured in small, and reckoned from it for the whole:")
    _print_lines(show(found, _width()))


@main.command()
@click.argument("recipe", shell_complete=completion.recipes)
@click.option(
    "--stage",
    metavar="STAGE",
    shell_complete=completion.stages,
    help="The stage to compare; unset: the last one that makes a policy.",
)
@click.option("--methods", metavar="A,B,...", help="Run the stage with each of these methods.")
@click.option("--vary", metavar="KEY=A,B,...", multiple=True, help="Run it with each value: align.dpo.beta=0.05,0.1")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Run each with so many seeds.")
@click.option("--plan", "only_plan", is_flag=True, help="Show what would run, and run nothing.")
@_options(SET, SEED, RUNS, AGAIN, PLUGINS)
@_options(INLINE, MACHINE, OFFLINE)
@click.option("--json", "as_json", is_flag=True, help="Print the result, or the plan, as JSON.")
@click.pass_context
def compare(
    ctx: click.Context,
    /,
    recipe: str,
    stage: str | None,
    methods: str | None,
    vary: Sequence[str],
    seeds: int,
    only_plan: bool,
    changes: Sequence[str],
    again: Sequence[str],
    inline: bool,
    machine: str | None,
    offline: bool,
    as_json: bool,
    **more: Any,
) -> None:
    """Compare methods, or values of settings, in one stage of RECIPE: what they share runs once, then each variant
    under the same seeds, then all are measured on the same held-out prompts."""
    from alignkit.compare.planning import plan_comparison
    from alignkit.compare.tables import show_heading
    from alignkit.compare.variants import VariantRequest, read_vary, split

    asked = VariantRequest(stage, split(methods or ""), read_vary(vary), seeds)
    selection = {"set": _changes(changes), **more}
    if only_plan:
        _show_comparison_plan(plan_comparison(recipe, asked, **selection), selection["runs"], again, as_json)
        return
    from alignkit.compare.comparison import conclude, plan_pinned
    from alignkit.compare.tables import as_dict, show_comparison
    from alignkit.run.machine import Machine, read_machine
    from alignkit.store.layout import report_path

    chosen = read_machine(machine, Path.cwd()) if machine else Machine()
    planned = plan_pinned(recipe, asked, offline=offline, **selection)
    click.echo(_bold(show_heading(planned, Path.cwd())), err=True)
    how: dict[str, Any] = {"inline": inline, "offline": offline, "machine": chosen}
    _, result = _run(ctx, planned.plan, selection["runs"], again, aside=as_json, **how)
    found = conclude(planned, result, selection["runs"])
    if as_json:
        _print_json(as_dict(found))
        return
    _print_lines(show_comparison(found, _width()))
    path = report_path(selection["runs"].resolve(), planned.plan.recipe.name)
    click.echo(f"report: {short(path, Path.cwd())}")


def _show_comparison_plan(planned: "ComparisonPlan", runs: Path, again: Sequence[str], as_json: bool) -> None:
    from alignkit.compare.tables import plan_as_dict, show_heading
    from alignkit.run.states import states_of
    from alignkit.show.planned import as_dict, show_plan

    states, remarks = states_of(planned.plan, runs, again)
    if as_json:
        _print_json({**plan_as_dict(planned), "plan": as_dict(planned.plan, states)})
        return
    click.echo(_bold(show_heading(planned, Path.cwd())))
    _print_lines(show_plan(planned.plan, states, remarks, _width()))


@main.command()
@click.argument("name", required=False, shell_complete=completion.methods)
@PLUGINS
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def methods(name: str | None, plugins: Sequence[Path], as_json: bool) -> None:
    """List all methods, rewards and judges, or tell what one takes, makes and can be told."""
    from dataclasses import asdict

    from alignkit.plugins import load_plugins
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
    if name is None:
        _print_json(all_as_dict(loaded)) if as_json else _print_lines(list_methods(loaded, _width()))
        return
    scorer = find_scorer(loaded, name) if name not in loaded.methods else None
    if scorer:
        _print_json(asdict(scorer)) if as_json else _print_lines(describe_scorer(scorer, _width()))
        return
    method = find_method(loaded, name)
    _print_json(as_dict(loaded, method)) if as_json else _print_lines(describe_method(loaded, method, _width()))


@main.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--template",
    metavar="NAME",
    shell_complete=completion.templates,
    default="rlhf",
    show_default=True,
    help="The packaged recipe to start from.",
)
def init(path: Path | None, template: str) -> None:
    """Write a recipe to start from, to PATH (default: NAME.toml), and its schema for editors. Never overwrites."""
    from alignkit.plan.schema import recipe_schema
    from alignkit.plugins import load_plugins
    from alignkit.recipe.starter import write_schema, write_starter

    written = write_starter(template, path)
    write_schema(recipe_schema(load_plugins(())), written.parent)
    click.echo(f"{written} is written; see what it does: alignkit plan {shlex.quote(str(written))}")


@main.command()
@PLUGINS
def schema(plugins: Sequence[Path]) -> None:
    """Print the JSON Schema of recipes with every installed method's settings, for editors."""
    from alignkit.plan.schema import recipe_schema
    from alignkit.plugins import load_plugins

    _print_json(recipe_schema(load_plugins(plugins)))


@main.command()
@click.argument("name")
@click.option("--in", "place", type=click.Path(path_type=Path, file_okay=False), default=".", help="Where to write it.")
def new(name: str, place: Path) -> None:
    """Write a package with a method NAME that works and passes its tests, to make your own of. Never overwrites."""
    from alignkit.scaffold import new_package

    folder = new_package(name, place)
    click.echo(f"{folder} is written; go on with: cd {shlex.quote(str(folder))}; pip install -e .; pytest")


@main.command()
@RUNS
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, for a bug report.")
def doctor(runs: Path, as_json: bool) -> None:
    """Tell what this machine offers, and what to mend."""
    from alignkit.doctor.examine import report
    from alignkit.doctor.findings import as_dict, render

    click.echo("looking (importing torch, about 5 s)", err=True)
    found = report(runs)
    _print_json(as_dict(found)) if as_json else click.echo(render(found))


def _announce(name: str) -> Path:
    """Say at once which recipe is run."""
    from alignkit.recipe.packaged import find_recipe, is_packaged

    path = find_recipe(name)
    what = f"running the packaged recipe {path.stem}" if is_packaged(path) else f"running {short(path, Path.cwd())}"
    click.echo(_bold(what), err=True)
    return path


def _plan(
    path: Path,
    changes: Sequence[str],
    seed: int | None,
    runs: Path,
    until: str | None,
    plugins: Sequence[Path],
) -> "Plan":
    from alignkit.plan.planner import make_plan

    return make_plan(path, set=_changes(changes), seed=seed, runs=runs, until=until, plugins=plugins)


def _pinned_plan(path: Path, offline: bool, **selection: Any) -> "Plan":
    """Plan a recipe, and find out the commits of what it takes from the hub where they are not known yet."""
    plan = _plan(path, **selection)
    if any(stage.wanted and stage.fingerprint is None for stage in plan.stages):
        from alignkit.plan.pin import pin

        click.echo("asking the hub for commits", err=True)
        pin(plan, selection["runs"], offline)
        plan = _plan(path, **selection)
    return plan


def _run(
    ctx: click.Context,
    plan: "Plan",
    runs: Path,
    again: Sequence[str],
    *,
    heard: Sequence[Callable[["Event"], None]] = (),
    aside: bool,
    **how: Any,
) -> tuple["Console", "RunResult"]:
    """Run a plan and show it; a failure ends the command, with what is finished and the command that goes on.

    With `aside` whatever stages print goes to standard error.
    """
    from alignkit.run.runner import run_plan
    from alignkit.run.states import states_of
    from alignkit.show.console import Console

    states, remarks = states_of(plan, runs, again)
    console = Console([stage.name for stage in plan.stages if stage.wanted])
    try:
        with console, redirect_stdout(sys.stderr if aside else sys.stdout):
            console.begin(plan, states, remarks)
            result = run_plan(plan, runs=runs, observers=[console, *heard], again=again, **how)
    except AlignkitError as error:
        _print_results(console, plan, runs, err=True)
        _print_problems(error)
        if error.status not in (RecipeError.status, DataError.status):  # the same command would only fail again
            click.echo(f"go on with: {shlex.join(['alignkit', *ctx.meta[ARGUMENTS]])}", err=True)
        ctx.exit(error.status)
    return console, result


def _changes(given: Sequence[str]) -> Mapping[str, str]:
    changes = {}
    for change in given:
        key, sign, value = change.partition("=")
        if not sign or not key:
            raise RecipeError("this changes nothing", f"--set {change}", "write --set KEY=VALUE")
        changes[key.strip()] = value
    return changes


def _print_results(console: "Console", plan: "Plan", runs: Path, *, err: bool) -> None:
    from alignkit.store.layout import report_path

    report = report_path(runs.resolve(), plan.recipe.name)
    _print_lines(console.closing(_width(), Path.cwd()), err=err)
    if report.is_file():
        click.echo(f"report: {short(report, Path.cwd())}", err=err)


def _print_problems(error: AlignkitError) -> None:
    for problem in error.problems:
        click.echo(f"error: {problem}", err=True)


def _printer(file: TextIO) -> Callable[["Event"], None]:
    from alignkit.contract.events import to_json

    return lambda event: click.echo(json.dumps(to_json(event), ensure_ascii=False), file=file)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_lines(lines: Iterable[str], err: bool = False) -> None:
    for line in lines:
        click.echo(line, err=err)


def _width() -> int | None:
    return line_width(sys.stdout)


def _bold(text: str) -> str:
    return text if os.environ.get("TERM") == "dumb" else click.style(text, bold=True)
