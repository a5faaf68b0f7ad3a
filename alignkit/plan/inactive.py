"""What stands by: settings and inputs of a stage that only another method has, so that a swap is one word.

What belongs to a method of the same kind, installed or not, waits for it. Near misses of known names stay errors.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from pydantic import PositiveInt

from alignkit.contract.method import STAGE_KEYS, Method
from alignkit.contract.settings import SHARED, LoRA, Optimisation, Precision, Settings
from alignkit.errors import RecipeError, near_miss
from alignkit.plan.presets import over_preset
from alignkit.plugins import WELL_KNOWN, Plugins
from alignkit.recipe.other_names import other_name
from alignkit.recipe.recipe import Recipe
from alignkit.recipe.toml import Keys
from alignkit.recipe.validate import read_settings


class Shared(Settings):
    """The shared settings, to check those that stand by."""

    lora: LoRA | None = None
    precision: Precision = "auto"
    max_length: PositiveInt = 1
    optimisation: Optimisation = Optimisation()


def standing_by(recipe: Recipe, stage: str, method: Method, plugins: Plugins) -> tuple[list[str], list[RecipeError]]:
    """Return what of a stage waits for another method, and what no method could know."""
    found: list[str] = []
    errors: list[RecipeError] = []
    for key, value in recipe.stages[stage].items():
        try:
            if key in SHARED and key not in method.settings.model_fields:
                read_settings(Shared, {key: value}, partial(_find, recipe, stage), recipe.typed("stage", stage))
                found.append(key)
            elif key not in STAGE_KEYS and key != method.name:
                found += _table(recipe, stage, key, method, plugins)
        except RecipeError as error:
            errors.append(error)
    for role in _roles(recipe, stage):
        if role not in method.consumes:
            problem = _unknown_role(recipe, stage, method, plugins, role)
            found += [] if problem else [f"inputs.{role}"]
            errors += [problem] if problem else []
    return found, errors


def _table(recipe: Recipe, stage: str, key: str, method: Method, plugins: Plugins) -> list[str]:
    """Check the settings of another method; raises RecipeError where there is none of that name."""
    value: Any = recipe.stages[stage][key]
    where = recipe.where("stage", stage, key)
    other = plugins.methods.get(key)
    if other is None and (not isinstance(value, dict) or (_near(key, plugins) and key not in WELL_KNOWN)):
        raise RecipeError(f"stage {stage!r}: unknown key {key!r}", where, _advice(method, key, plugins))
    if not isinstance(value, dict):
        raise RecipeError(f"stage {stage!r}: {key} must be a table of settings", where, f"write {key}.NAME = ...")
    if other and not (issubclass(other.produces, method.produces) or issubclass(method.produces, other.produces)):
        raise RecipeError(
            f"stage {stage!r}: {key} makes {other.produces.__name__}, so its settings cannot stand in a stage of"
            f" {method.name}, which makes {method.produces.__name__}",
            where,
            f"move them to a stage of {key}",
        )
    if other:
        value = over_preset(recipe, stage, other, value)
        read_settings(other.settings, value, partial(_find, recipe, stage, key), recipe.typed("stage", stage, key))
    return [f"{key}.{inner}" for inner in recipe.stages[stage][key]]


def _find(recipe: Recipe, stage: str, *path: str | Keys) -> tuple[str, str]:
    """Return where a setting stands and what it is called; the last of `path` are its keys inside its table."""
    *table, keys = path
    full = (*map(str, table), *keys)
    return recipe.where("stage", stage, *full), f"stage {stage!r}: {'.'.join(full)}"


def _near(key: str, plugins: Plugins) -> str:
    return near_miss(key, [*STAGE_KEYS, *plugins.methods])


def _advice(method: Method, key: str, plugins: Plugins) -> str:
    if key in method.consumes:
        return f"inputs stand under inputs: inputs.{key} = ..."
    if key in method.settings.model_fields:
        return f"settings stand under the method's name: {method.name}.{key}"
    if name := other_name(key, method.settings):
        return f"{name}; settings stand under the method's name: {method.name}.NAME"
    if near := _near(key, plugins):
        return near
    if near := near_miss(key, list(method.settings.model_fields)):
        return f"{near} settings stand under the method's name: {method.name}.NAME"
    return f"a stage has {', '.join(STAGE_KEYS)}, and its method's settings under {method.name}"


def _roles(recipe: Recipe, stage: str) -> Iterator[str]:
    table = recipe.stages[stage].get("inputs")
    yield from table if isinstance(table, dict) else ()


def _unknown_role(recipe: Recipe, stage: str, method: Method, plugins: Plugins, role: str) -> RecipeError | None:
    """Return what is wrong with an input that the method lacks, unless another method of the stage may have it."""
    alike = [m for m in plugins.methods.values() if issubclass(m.produces, method.produces)]
    stranger = any(key not in (*STAGE_KEYS, *plugins.methods) for key in recipe.stages[stage])
    near = near_miss(role, list(method.consumes))
    if any(role in other.consumes for other in alike) or (stranger and not near):
        return None
    where = recipe.where("stage", stage, "inputs", role)
    takes = f"{method.name} takes {', '.join(method.consumes) or 'none'}"
    return RecipeError(f"stage {stage!r}: {method.name} has no input {role!r}", where, near or takes)
