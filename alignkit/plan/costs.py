"""Costs: the rewards of a stage whose means have bounds, and what a recipe may say of them."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from alignkit.contract.constraint import COSTS, Constraint
from alignkit.contract.method import Method
from alignkit.errors import RecipeError
from alignkit.plan.plan import PlannedStage
from alignkit.plan.wiring import Wires
from alignkit.plugins import Plugins
from alignkit.recipe.recipe import Recipe
from alignkit.recipe.toml import Keys
from alignkit.recipe.validate import read_settings

KEY = "constraints"


def constraints_of(
    recipe: Recipe, stage: str, method: Method, wires: Wires, plugins: Plugins
) -> tuple[dict[str, Constraint], list[RecipeError]]:
    """Return the bounds of a stage's costs, by their names, and what is wrong with them."""
    table, where = recipe.stages[stage].get(KEY, {}), recipe.where("stage", stage, KEY)
    if not isinstance(table, dict) or not all(isinstance(bounds, dict) for bounds in table.values()):
        problem = f"stage {stage!r}: {KEY} must be a table of rewards, each with a max or a min"
        return {}, [RecipeError(problem, where, f"write {KEY}.NAME.max = 0.05")]
    if table and not method.takes_constraints:
        able = sorted(one.name for one in plugins.methods.values() if one.takes_constraints)
        problem = f"stage {stage!r}: {method.name} takes no constraints"
        return {}, [RecipeError(problem, where, f"methods that do: {', '.join(able)}")]
    constraints: dict[str, Constraint] = {}
    errors: list[RecipeError] = []
    for cost, bounds in table.items():
        try:
            find, typed = partial(_find, recipe, stage, cost), recipe.typed("stage", stage, KEY, cost)
            constraints[cost] = read_settings(Constraint, bounds, find, typed)
        except RecipeError as error:
            errors.append(error)
    return constraints, errors + list(_check_rewarded(recipe, stage, constraints, wires))


def _find(recipe: Recipe, stage: str, cost: str, keys: Keys) -> tuple[str, str]:
    """Return where a setting of a constraint stands, and what it is called."""
    path = (KEY, cost, *keys)
    return recipe.where("stage", stage, *path), f"stage {stage!r}: {'.'.join(path)}"


def _check_rewarded(
    recipe: Recipe, stage: str, constraints: Mapping[str, Constraint], wires: Wires
) -> Iterator[RecipeError]:
    """Refuse a cost that is also a reward of the stage where that is not asked for, and asking for it in vain."""
    rewards = {name for role, names in wires.items() if role != COSTS for name in names}
    for cost, constraint in constraints.items():
        where, name = _find(recipe, stage, cost, ())
        if cost in rewards and not constraint.rewarded:
            problem = f"{name}: {cost!r} is also a reward of the stage, so it would count twice"
            remedy = f"leave it out of the stage's rewards, or set {KEY}.{cost}.rewarded = true"
            yield RecipeError(problem, where, remedy)
        elif constraint.rewarded and cost not in rewards:
            problem = f"{name}.rewarded does nothing: {cost!r} is no reward of the stage"
            yield RecipeError(problem, where, "name it under inputs.rewards, or leave `rewarded` out")


def idle_weights(recipe: Recipe, stages: Sequence[PlannedStage]) -> list[RecipeError]:
    """Return what is wrong with weights of rewards whose mean is bounded by all stages that take them."""
    taken = [(name, role) for stage in stages for role, names in stage.inputs.items() for name in names]
    bounded = {name for name, role in taken if role == COSTS} - {name for name, role in taken if role != COSTS}
    return [
        RecipeError(
            f"source {name!r}: weight does nothing: its mean is bounded, and it is nowhere a reward",
            recipe.where("sources", name, "weight"),
            f"leave it out, or name {name!r} under inputs.rewards",
        )
        for name in sorted(bounded)
        if recipe.sources.get(name, {}).get("weight", 1) != 1
    ]
