"""Figures that a recipe expects, `STAGE/RESULT`: whether its stages tell them."""

from collections.abc import Callable, Iterator, Sequence

from alignkit.errors import RecipeError, near_miss
from alignkit.plan.plan import PlannedStage
from alignkit.recipe.recipe import Recipe
from alignkit.recipe.self_checks import Expectation

MOST = 8
"""Results of a stage that are listed; a comparison has one of each for every variant."""


def unmade_figures(recipe: Recipe, stages: Sequence[PlannedStage]) -> Iterator[RecipeError]:
    """Yield the figures that a recipe expects and no stage tells; of a recipe as it stands in its file."""
    yield from unmade(recipe, recipe.checks.expect, ("expect",), lambda figure: why_unmade(recipe, figure, stages))


def unmade(
    recipe: Recipe,
    expected: Sequence[Expectation],
    place: tuple[str, ...],
    why_not: Callable[[str], tuple[str, str] | None],
) -> Iterator[RecipeError]:
    """Yield the figures among those expected at a place of the recipe that there are not, and why."""
    for number, one in enumerate(expected):
        for key, figure in (("figure", one.figure), ("minus", one.minus)):
            if figure and (why := why_not(figure)):
                where = recipe.where(*place, str(number), key)
                yield RecipeError(f"{'.'.join(place)}.{key} {figure!r}: {why[0]}", where, why[1])


def why_unmade(recipe: Recipe, figure: str, stages: Sequence[PlannedStage]) -> tuple[str, str] | None:
    """Return why no stage tells a figure, and what to do; None where one does."""
    name, _, result = figure.partition("/")
    known = [stage.name for stage in stages if stage.wanted]
    stage = next((one for one in stages if one.name == recipe.last_round(name)), None)
    if stage is None:
        return f"there is no stage {name!r}", near_miss(name, known) or "write STAGE/RESULT"
    if not stage.wanted:
        return f"nothing that the recipe wants needs stage {name!r}", "add it to result"
    if not result or not stage.method.tells(result, stage.inputs):
        told = stage.method.result_names(stage.inputs)
        listed = ", ".join([*told[:MOST], *(["..."] if len(told) > MOST else [])])
        return f"{stage.method.name} reports no such result", near_miss(result, told) or f"its results are {listed}"
    return None
