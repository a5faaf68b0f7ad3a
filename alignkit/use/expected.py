"""A recipe that says which figures are expected of it: planned, whole or in its small edition, and checked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.compare.comparison import conclude, report_comparison
from alignkit.compare.line_figures import measured_in, why_no_figure
from alignkit.compare.planning import ComparisonPlan, plan_comparison
from alignkit.compare.variants import VariantRequest
from alignkit.errors import AlignkitError, Problem, RecipeError
from alignkit.noise import Interval
from alignkit.plan.figures import unmade, why_unmade
from alignkit.plan.pin import pin
from alignkit.plan.plan import Plan
from alignkit.plan.planner import make_plan
from alignkit.recipe.packaged import find_recipe, packaged_recipes
from alignkit.recipe.recipe import Recipe, combine, read_recipe
from alignkit.recipe.self_checks import Expectation, flat
from alignkit.run.run_result import RunResult
from alignkit.show.index_page import write_index
from alignkit.show.report import write_report
from alignkit.store import rundir
from alignkit.store.durable import write_json
from alignkit.store.runs import KeptRun
from alignkit.text import number, table


@dataclass(frozen=True)
class ExpectedPlan:
    """What a recipe's expectations are checked on: a plan, that of its comparison where it has one."""

    plan: Plan
    comparison: ComparisonPlan | None
    expected: tuple[Expectation, ...]
    smoke: bool
    """It is the recipe's small edition."""


class CheckedFigure(NamedTuple):
    """A figure that was expected, and what it is."""

    expected: Expectation
    measured: float | None
    interval: Interval | None
    """95 %, where it is known."""

    @property
    def holds(self) -> bool:
        """Return whether it lies where it was expected; one that was not measured does not."""
        value, least, most = self.measured, self.expected.at_least, self.expected.at_most
        if value is None or not isfinite(value):
            return False
        return (least is None or value >= least) and (most is None or value <= most)

    @property
    def bounds(self) -> str:
        """Where it was expected, in words."""
        least, most = self.expected.at_least, self.expected.at_most
        if least is not None and most is not None:
            return f"{number(least)} to {number(most)}"
        return f"at least {number(least)}" if most is None else f"at most {number(most)}"


def is_expecting(name: str) -> bool:
    """Return whether a name means a recipe, and no kept run: a file `.toml`, or a packaged one that expects figures."""
    path = packaged_recipes().get(name)
    return name.endswith(".toml") or (path is not None and bool(read_recipe(path).checks.expect))


def plan_expected(
    name: str, *, smoke: bool, runs: Path, plugins: Sequence[Path] = (), offline: bool = False
) -> ExpectedPlan:
    """Plan a recipe, or its comparison where it has `[compare]`, and check that it makes what is expected of it.

    Raises RecipeError, DataError or PluginError, each with all that is wrong.
    """
    recipe = read_recipe(find_recipe(name))
    if recipe.errors:
        raise combine(recipe.errors)
    edition = _edition(recipe, smoke)
    changes, places = _changes(recipe, smoke)
    planning = partial(_plan, recipe, edition, changes, runs=runs, plugins=plugins)
    try:
        found = planning()
        if any(stage.wanted and stage.fingerprint is None for stage in found.plan.stages):
            pin(found.plan, runs, offline)
            found = planning()
    except AlignkitError as error:
        raise type(error).of([_placed(problem, places) for problem in error.problems]) from error
    if wrong := list(_unmade(recipe, found)):
        raise combine(wrong)
    return found


class _Edition(NamedTuple):
    expected: tuple[Expectation, ...]
    request: VariantRequest
    smoke: bool


def _edition(recipe: Recipe, smoke: bool) -> _Edition:
    """Return what is expected of a recipe or of its small edition. Raises RecipeError where nothing is."""
    small = recipe.checks.smoke if smoke else None
    if smoke and small is None:
        raise RecipeError("the recipe has no small edition", recipe.path.name, "add [smoke], or leave out --smoke")
    expected = small.expect if small else recipe.checks.expect
    if not expected:
        name = "smoke.expect" if smoke else "expect"
        raise RecipeError("the recipe expects no figure", recipe.path.name, f"add [[{name}]] with a figure")
    request = VariantRequest()
    if small and recipe.checks.compare:
        only = {"only": recipe.where("smoke", "variants")}
        request = VariantRequest(seeds=small.seeds, only=small.variants, rewards=small.rewards, places=only)
    return _Edition(expected, request, smoke)


def _changes(recipe: Recipe, smoke: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the small edition changes, as for `--set`, and where the recipe says so."""
    small = recipe.checks.smoke
    if not smoke or small is None:
        return {}, {}
    said = {".".join(keys): (keys, value) for keys, value in flat(small.set)}
    places = {f"--set {key}": recipe.where("smoke", "set", *keys) for key, (keys, _) in said.items()}
    return {"name": f"{recipe.name}-smoke", **{key: value for key, (_, value) in said.items()}}, places


def _plan(
    recipe: Recipe, edition: _Edition, changes: Mapping[str, Any], *, runs: Path, plugins: Sequence[Path]
) -> ExpectedPlan:
    if recipe.checks.compare is None:
        plan = make_plan(recipe.path, set=changes, runs=runs, plugins=plugins)
        return ExpectedPlan(plan, None, edition.expected, edition.smoke)
    compared = plan_comparison(recipe.path, edition.request, set=changes, runs=runs, plugins=plugins)
    return ExpectedPlan(compared.plan, compared, edition.expected, edition.smoke)


def _placed(problem: Problem, places: Mapping[str, str]) -> Problem:
    return Problem(problem.problem, places.get(problem.where, problem.where), problem.remedy)


def _unmade(recipe: Recipe, found: ExpectedPlan) -> Iterator[RecipeError]:
    place, comparison = ("smoke", "expect") if found.smoke else ("expect",), found.comparison

    def why_not(figure: str) -> tuple[str, str] | None:
        return why_no_figure(comparison, figure) if comparison else why_unmade(recipe, figure, found.plan.stages)

    return unmade(recipe, found.expected, place, why_not)


def check_expected(planned: ExpectedPlan, result: RunResult) -> list[CheckedFigure]:
    """Hold what was run against what was expected, keep that in the run's folder, and write its report."""
    if planned.comparison:
        conclude(planned.comparison, result)
    run = KeptRun(result.folder)
    found = [_checked(run, one) for one in planned.expected]
    write_json(rundir.expected_path(run.folder), as_dict(planned, found))
    kept = KeptRun(result.folder)
    report_comparison(kept) if kept.comparison else write_report(kept)
    write_index(kept.runs)
    return found


def _checked(run: KeptRun, one: Expectation) -> CheckedFigure:
    value, interval = measured_in(run, one.figure)
    if one.minus is None:
        return CheckedFigure(one, value, interval)
    other, _ = measured_in(run, one.minus)
    return CheckedFigure(one, None if value is None or other is None else value - other, None)


def as_dict(planned: ExpectedPlan, found: Sequence[CheckedFigure]) -> dict[str, Any]:
    """Return what was expected and measured as plain JSON values."""
    figures = [
        {
            **one.expected.model_dump(mode="json"),
            "named": one.expected.named,
            "bounds": one.bounds,
            "measured": one.measured if one.measured is not None and isfinite(one.measured) else None,
            "interval": list(one.interval) if one.interval else None,
            "holds": one.holds,
        }
        for one in found
    ]
    edition = "small" if planned.smoke else "full"
    return {"edition": edition, "holds": all(one.holds for one in found), "figures": figures}


def show_expected(found: Sequence[CheckedFigure], width: int | None) -> list[str]:
    """Return the table of what was expected and measured."""
    rows = [
        (
            one.expected.named,
            one.bounds,
            number(one.measured),
            "" if one.interval is None else f"{number(one.interval[0])} to {number(one.interval[1])}",
            "yes" if one.holds else "NO",
            in_paper(one.expected.paper),
        )
        for one in found
    ]
    return table(rows, width, ("figure", "expected", "measured", "95 %", "holds", "paper"))


def in_paper(value: float | str | None) -> str:
    """Write what a paper has."""
    return number(value) if isinstance(value, float | int) else value or ""


def outside(found: Sequence[CheckedFigure]) -> list[str]:
    """Return a sentence for each figure that is not where it was expected."""
    return [
        f"{one.expected.named} is {number(one.measured)}, not {one.bounds}"
        if one.measured is not None
        else f"{one.expected.named} was not measured"
        for one in found
        if not one.holds
    ]
