"""Settings that name inputs of their stage: what is named must be there, and a round has names of its own."""

from collections.abc import Sequence

from alignkit.contract.method import Method
from alignkit.contract.settings import InputNames, Settings
from alignkit.errors import RecipeError, near_miss
from alignkit.plan.wiring import Wires
from alignkit.recipe.recipe import Recipe


def name_inputs(
    recipe: Recipe, stage: str, method: Method, settings: Settings, wires: Wires
) -> tuple[Settings, list[RecipeError]]:
    """Return settings whose names of inputs are those that the stage's round has, and what is wrong with names.

    A name of several rounds means the last of them, as everywhere in a recipe.
    """
    naming = _Naming(recipe, stage, method, wires)
    return naming.of(settings, ()), naming.errors


class _Naming:
    """Names the inputs of one stage."""

    def __init__(self, recipe: Recipe, stage: str, method: Method, wires: Wires) -> None:
        self.recipe, self.stage, self.method, self.wires = recipe, stage, method, wires
        self.errors: list[RecipeError] = []

    def of(self, settings: Settings, keys: tuple[str, ...]) -> Settings:
        """Return settings, or a group of them that stands under `keys`, with names as the stage has them."""
        given = dict(settings)
        named = dict(given)
        for name, field in type(settings).model_fields.items():
            value, place = given[name], (*keys, name)
            if isinstance(value, Settings):
                named[name] = self.of(value, place)
            for mark in field.metadata:
                if isinstance(mark, InputNames) and value:
                    found = self._found([value] if isinstance(value, str) else value, mark.role, place)
                    named[name] = found[0] if isinstance(value, str) else tuple(found)
        changed = {name: value for name, value in named.items() if value != given[name]}
        return settings.model_copy(update=changed) if changed else settings

    def _found(self, names: Sequence[str], role: str, keys: tuple[str, ...]) -> list[str]:
        """Return the stage's own names of these inputs; one that it has not is told, and stays."""
        given = self.wires.get(role, ())
        own = {**{self.recipe.stage_in_file(one): one for one in given}, **{one: one for one in given}}
        for name in (name for name in names if name not in own):
            told = f"stage {self.stage!r}: {'.'.join((self.method.name, *keys))}"
            where = self.recipe.where("stage", self.stage, self.method.name, *keys)
            remedy = near_miss(name, [*own]) or (f"its {role} are {', '.join(given)}" if given else f"it has no {role}")
            self.errors.append(RecipeError(f"{told}: {name!r} is none of the stage's {role}", where, remedy))
        return [own.get(name, name) for name in names]
