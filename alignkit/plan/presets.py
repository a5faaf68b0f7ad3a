"""Presets: settings of a method by the name of the paper that they are of, as in `grpo.preset = "dapo"`.

A preset lies below all that the recipe says. It is gone once settings are read: a preset and its settings written out
are the same stage.
"""

from collections.abc import Mapping
from typing import Any

from alignkit.contract.method import Method
from alignkit.contract.paper import Paper
from alignkit.contract.settings import merged
from alignkit.errors import RecipeError, near_miss
from alignkit.recipe.recipe import Recipe

PRESET = "preset"


def preset_of(recipe: Recipe, stage: str, method: Method) -> Paper | None:
    """Return the preset that a stage names for a method. Raise RecipeError where there is none of that name."""
    table, presets = recipe.stages[stage].get(method.name), method.presets
    name = table.get(PRESET) if isinstance(table, Mapping) else None
    if name is None or not presets:  # without presets it is an unknown setting
        return None
    if isinstance(name, str) and name in presets:
        return presets[name]
    hint = near_miss(str(name), list(presets)) or f"there are {', '.join(presets)}"
    problem = f"stage {stage!r}: {method.name}.{PRESET}: there is no preset {name!r}"
    raise RecipeError(problem, recipe.where("stage", stage, method.name, PRESET), hint)


def over_preset(recipe: Recipe, stage: str, method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over the preset that a stage names. Raise RecipeError where there is none of that name."""
    paper = preset_of(recipe, stage, method)
    said = {key: given[key] for key in given if key != PRESET or not method.presets}
    return merged(paper.settings, said) if paper else said
