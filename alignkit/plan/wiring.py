"""Wiring: which source or earlier stage each input of a stage is connected to. Kinds do the work, names break ties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.contract.constraint import COSTS
from alignkit.contract.kinds import Artifact, Policy, Reward, can_be_opened
from alignkit.contract.method import Input, Method
from alignkit.errors import RecipeError, near_miss
from alignkit.plugins import Plugins
from alignkit.recipe.recipe import Recipe

Wires = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Offers:
    """What a stage may be connected to: all sources, and the stages before it, in their order."""

    sources: Mapping[str, type[Artifact]]
    stages: Mapping[str, type[Artifact]]
    named_only: frozenset[str] = frozenset()
    """Sources that only a name connects a stage to."""
    later: tuple[str, ...] = ()
    unknown: frozenset[str] = frozenset()
    """Names that are in the recipe but whose kind is not known, because something is wrong with them."""

    def kind(self, name: str) -> type[Artifact] | None:
        return self.sources.get(name) or self.stages.get(name)


@dataclass(frozen=True)
class Taker:
    """A stage that takes inputs, and what it may be connected to."""

    recipe: Recipe
    stage: str
    method: Method
    offers: Offers
    bounded: tuple[str, ...] = ()
    """What it constrains, which is a reward only where the recipe names it as one."""

    def key(self, role: str) -> str:
        """Return where a recipe names what is taken as this."""
        return "constraints" if role == COSTS else f"inputs.{role}"


def wire(
    recipe: Recipe, stage: str, method: Method, offers: Offers, plugins: Plugins
) -> tuple[Wires, list[RecipeError]]:
    """Connect all inputs of a stage; give the wires and what is wrong."""
    named = {**recipe.stages[stage].get("inputs", {})}
    bounded = recipe.stages[stage].get("constraints", {})
    wires: Wires = {}
    errors: list[RecipeError] = []
    taker = Taker(recipe, stage, method, offers, tuple(bounded) if isinstance(bounded, dict) else ())
    if COSTS in method.consumes:
        if COSTS in named:
            where = recipe.where("stage", stage, "inputs", COSTS)
            problem = f"stage {stage!r}: inputs.{COSTS} are the rewards that have a bound"
            errors.append(RecipeError(problem, where, "write constraints.NAME.max = 0.05 in its place"))
        named[COSTS] = taker.bounded
    for role, wanted in method.consumes.items():
        try:
            if role == COSTS and not taker.bounded:
                continue
            if role in named:
                wires[role] = _named(taker, wanted, named[role])
            elif found := _found(taker, wanted, plugins):
                wires[role] = found
            if Reward in wanted.kinds:
                _check_opened(taker, role, wires.get(role, ()))
        except RecipeError as error:
            errors.append(error)
    return wires, errors + _ambiguous(recipe, stage, method, named)


def _check_opened(taker: Taker, role: str, names: Sequence[str]) -> None:
    """Refuse a reward of a package's own kind that does not say how it is opened, before it is trained in vain."""
    recipe, stage, method, offers = taker.recipe, taker.stage, taker.method, taker.offers
    for name in names:
        kind = offers.kind(name)
        if kind and issubclass(kind, Reward) and not can_be_opened(kind):
            raise RecipeError(
                f"stage {stage!r}: {method.name} takes {name!r} as {role}, and a {kind.__name__} cannot score answers",
                recipe.where("stage", stage),
                f"its package must say how it is opened ({kind.__name__}.open)",
            )


def _ambiguous(recipe: Recipe, stage: str, method: Method, named: Mapping[str, Any]) -> list[RecipeError]:
    """Refuse to guess which of two required inputs of one kind is which."""
    single = [i for i in method.consumes.values() if not i.several and not i.optional]
    alike = {i.role: [other for other in single if set(other.kinds) & set(i.kinds)] for i in single}
    twins = [i for i in single if len(alike[i.role]) > 1 and i.role not in named]
    if not twins:
        return []
    roles = " and ".join(repr(twin.role) for twin in twins)
    return [
        RecipeError(
            f"stage {stage!r}: {method.name} takes several inputs of the kind {twins[0].words}",
            recipe.where("stage", stage),
            f"say which is which: name {roles} under inputs",
        )
    ]


def _named(taker: Taker, wanted: Input, value: Any) -> tuple[str, ...]:
    stage, offers = taker.stage, taker.offers
    key = taker.key(wanted.role)
    where = taker.recipe.where("stage", stage, *key.split("."))
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else (value,)
    may_be_empty = wanted.several and wanted.optional
    if not all(isinstance(name, str) for name in names) or not (names or may_be_empty):
        problem = f"stage {stage!r}: {key} must be a name or a list of names"
        raise RecipeError(problem, where, f'write {key} = ["..."]')
    for name in names:
        if names.count(name) > 1:
            problem = f"stage {stage!r}: {key} names {name!r} twice"
            raise RecipeError(problem, where, "name it once")
        _check_named(taker, wanted, name, where)
    kinds = [kind for name in names if (kind := offers.kind(name))]
    if len(names) > 1 and not wanted.several and not _concatenate(kinds):
        raise RecipeError(
            f"stage {stage!r}: {key} takes one {wanted.words}, not {len(names)}",
            where,
            "only rows of one kind are put together",
        )
    return names


def _weights(recipe: Recipe, stage: str) -> Sequence[str]:
    """Return the sources that a stage's mix weighs, which need not be named under inputs besides."""
    mix = recipe.stages[stage].get("mix")
    weights = mix.get("weights") if isinstance(mix, dict) else None
    return list(weights) if isinstance(weights, dict) else []


def _concatenate(kinds: Sequence[type[Artifact]]) -> bool:
    return len(set(kinds)) <= 1 and all("parts" in kind.model_fields for kind in kinds)


def _check_named(taker: Taker, wanted: Input, name: str, where: str) -> None:
    stage, method, offers, key = taker.stage, taker.method, taker.offers, taker.key(wanted.role)
    if name in offers.unknown:
        return
    kind = offers.kind(name)
    if name == stage:
        problem = f"stage {stage!r}: {key} names {name!r}, which is the stage itself"
        raise RecipeError(problem, where, "name an earlier one")
    if kind is None and name in offers.later:
        raise RecipeError(
            f"stage {stage!r}: {key} names {name!r}, which comes later",
            where,
            "move that stage up in the recipe",
        )
    if kind is None:
        known = [*offers.sources, *offers.stages]
        hint = near_miss(name, known) or f"there are {', '.join(known) or 'none'}"
        raise RecipeError(f"stage {stage!r}: {key} names {name!r}, which is no source or earlier stage", where, hint)
    if not wanted.takes(kind):
        raise RecipeError(
            f"stage {stage!r}: {method.name} takes {wanted.words} as {wanted.role}, and {name!r} is {kind.__name__}",
            where,
            _fitting(wanted, offers),
        )


def _fitting(wanted: Input, offers: Offers) -> str:
    fitting = [n for n, k in [*offers.sources.items(), *offers.stages.items()] if wanted.takes(k)]
    return f"of that kind there are {', '.join(fitting)}" if fitting else "nothing before it is of that kind"


def _found(taker: Taker, wanted: Input, plugins: Plugins) -> tuple[str, ...]:
    recipe, stage, method, offers = taker.recipe, taker.stage, taker.method, taker.offers
    if wanted.optional and not wanted.several:
        return ()
    made = [name for name, kind in offers.stages.items() if wanted.takes(kind) and name not in taker.bounded]
    closed = {*taker.bounded, *offers.named_only}
    given = [name for name, kind in offers.sources.items() if wanted.takes(kind) and name not in closed]
    if made and wanted.several and wanted.kinds == (Policy,) and len(given) == 1:
        return (given[0], made[-1])  # what compares policies compares the end with the start
    if weighed := [name for name in _weights(recipe, stage) if name in (*made, *given)]:
        return tuple(weighed)
    if made:
        return (made[-1],)
    if len(given) == 1:
        return (given[0],)
    if given:
        raise RecipeError(
            f"stage {stage!r}: {method.name} needs {wanted.words} as {wanted.role}, and several sources are that:"
            f" {', '.join(given)}",
            recipe.where("stage", stage),
            f'name it: inputs.{wanted.role} = "{given[0]}"',
        )
    if wanted.optional or offers.unknown:
        return ()
    makers = sorted(m.name for m in plugins.methods.values() if wanted.takes(m.produces))
    words = [word for word, kind in plugins.source_kinds.items() if wanted.takes(kind)]
    source = f'add a source: {{ {words[0]} = "..." }}' if words else "add a stage that does"
    them = "them" if all("parts" in kind.model_fields for kind in wanted.kinds) else "one"
    raise RecipeError(
        f"stage {stage!r}: {method.name} needs {wanted.words} as {wanted.role}, and nothing before it makes {them}",
        recipe.where("stage", stage),
        f"methods that do: {', '.join(makers)}" if makers else source,
    )
