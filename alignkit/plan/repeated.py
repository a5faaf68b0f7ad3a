"""Rounds in a plan: what each takes that its kind alone does not tell, and what is wrong with a repeat as a whole."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from alignkit.contract.kinds import Policy
from alignkit.contract.method import Method
from alignkit.contract.needs import SamplingNeeds
from alignkit.contract.settings import Settings
from alignkit.errors import AlignkitError, RecipeError
from alignkit.plan.plan import PlannedStage
from alignkit.plan.wiring import Wires
from alignkit.recipe.recipe import Recipe
from alignkit.recipe.rounds import Repeat, parts_of, place_of

START, REFERENCE = "policy", "reference"
"""The roles of the policy that a stage starts from, and of the one that it is compared with in place of that."""

GateT = TypeVar("GateT")


def parts_of_rounds(recipe: Recipe) -> frozenset[str]:
    """Name the sources that are one round's part of another source; no stage is connected to them by their kind."""
    divided = ((name, repeat) for repeat in recipe.repeats.values() if repeat.rounds > 1 for name in repeat.split)
    return frozenset(part for name, repeat in divided for part in parts_of(name, repeat))


def in_round(recipe: Recipe, stage: str, method: Method, wires: Wires, earlier: Mapping[str, Wires]) -> Wires:
    """Return a stage's wires with what its round alone gets: its part of rows, and the reference that stays fixed."""
    one = recipe.rounds.get(stage)
    if one is None or one.of == 1:
        return wires
    repeat, parts = recipe.repeats[one.repeat], parts_in_round(recipe, stage)
    wired = {role: tuple(parts.get(name, name) for name in names) for role, names in wires.items()}
    first = earlier.get(f"{one.stage}-1", wires).get(START)
    fixed = repeat.reference == "fixed" and REFERENCE not in wired and takes_reference(method)
    return {**wired, REFERENCE: first} if fixed and first and first != wired.get(START) else wired


def parts_in_round(recipe: Recipe, stage: str) -> dict[str, str]:
    """Return the part of each divided source that the round of a stage gets."""
    one = recipe.rounds.get(stage)
    if one is None or one.of == 1:
        return {}
    repeat = recipe.repeats[one.repeat]
    return {name: parts_of(name, repeat)[one.number - 1] for name in repeat.split}


def takes_reference(method: Method) -> bool:
    """Return whether a method may be told what to compare the policy with."""
    role = method.consumes.get(REFERENCE)
    return role is not None and role.optional and role.takes(Policy)


def refused_reference(
    recipe: Recipe, stage: str, method: Method, settings: Settings | None, wires: Wires
) -> list[RecipeError]:
    """Return what is wrong with a reference: with these settings the method compares the policy with nothing."""
    needs = method.needs(settings) if settings and REFERENCE in wires and takes_reference(method) else None
    if not isinstance(needs, SamplingNeeds) or needs.start:
        return []
    problem = (
        f"stage {stage!r}: {method.name} compares its policy with none where kl.coef is 0, so {wires[REFERENCE][0]!r}"
    )
    where, instead, one = recipe.where("stage", stage, "inputs", REFERENCE), "leave it out", recipe.rounds.get(stage)
    if one and REFERENCE not in recipe.stages[stage].get("inputs", {}):
        place = (*place_of(one.repeat), REFERENCE)
        where, instead = recipe.where(*place), f'set {".".join(place)} = "moving"'
    problem = f"{problem} as reference does nothing"
    return [RecipeError(problem, where, f"raise {method.name}.kl.coef, or {instead}")]


def renamed_gates(
    gates: Mapping[str, GateT], recipe: Recipe, method: Method, wires: Mapping[str, Sequence[str]]
) -> dict[str, GateT]:
    """Return gates on the results of rounds where the recipe has the names of the stages that they are rounds of."""
    if not gates:
        return {}
    plain = {role: [*map(recipe.stage_in_file, names)] for role, names in wires.items()}
    names = dict(zip(method.result_names(plain), method.result_names(wires), strict=True))
    return {names.get(result, result): bounds for result, bounds in gates.items()}


def told_once(errors: Sequence[AlignkitError], recipe: Recipe) -> list[AlignkitError]:
    """Return errors without those that tell of a later round what is told of an earlier one."""
    seen, kept = set[str](), []
    for error in errors:
        alike = str(error)
        for name, one in recipe.rounds.items():
            alike = alike.replace(f"{name!r}", f"{one.stage!r}")
        if alike not in seen:
            kept.append(error)
        seen.add(alike)
    return kept


def check_rounds(recipe: Recipe, stages: Sequence[PlannedStage]) -> list[AlignkitError]:
    """Refuse repeats whose rounds would be alike, and settings of them that do nothing."""
    by_name = {stage.name: stage for stage in stages}
    errors: list[AlignkitError] = []
    for name, repeat in recipe.repeats.items():
        rounds = [
            [by_name[f"{stage}-{number}"] for stage in repeat.stages if f"{stage}-{number}" in by_name]
            for number in range(1, repeat.rounds + 1)
        ]
        place = ".".join(place_of(name))
        for key, problem, remedy in _idle(repeat, rounds) if all(rounds) and repeat.rounds > 1 else ():
            errors.append(RecipeError(f"{place}: {problem}", recipe.where(*place_of(name), key), remedy))
    return errors


def _idle(repeat: Repeat, rounds: Sequence[Sequence[PlannedStage]]) -> Iterator[tuple[str, str, str]]:
    """Yield what of a repeat does nothing, where it stands and what to do."""
    first, second = rounds[:2]
    taken = {name for stage in second for name in stage.taken}
    if not taken & {stage.name for stage in first}:
        problem = "no stage of a round takes what the round before has made, so all rounds are alike"
        yield "stages", problem, "let one take its policy, or leave the repeat out"
    if repeat.reference == "fixed" and not any(REFERENCE in stage.inputs for several in rounds for stage in several):
        named = ", ".join(dict.fromkeys(stage.method.name for stage in first))
        able = any(takes_reference(stage.method) for stage in first)
        problem = "every round starts from the same policy" if able else f"no input {REFERENCE!r} is in {named}"
        yield "reference", f'reference = "fixed" does nothing: {problem}', "leave it out"
    used = {name for stage in first for name in stage.taken}
    for source in repeat.split:
        if parts_of(source, repeat)[0] not in used:
            yield "split", f"no stage of a round takes {source!r}", f"these are taken: {', '.join(sorted(used))}"
