"""Rounds: what `[repeat]` says, unrolled, so that each round of a stage is a stage of its own.

Round 2 of stage `align` is the stage `align-2`. Its table is that of `align`, under what `[stage.align-2]` says, if the
recipe has that. Wherever a stage is named, `align` means its last round, and `align-*` all of its rounds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from pydantic import Field

from alignkit.contract.kinds import SOURCE_KINDS, Records
from alignkit.contract.mix import NAMING
from alignkit.contract.settings import Settings, merged
from alignkit.errors import Problem, RecipeError, near_miss
from alignkit.recipe.fingerprint import stage_seed
from alignkit.recipe.toml import Keys
from alignkit.recipe.validate import read_settings

MOST_ROUNDS = 100
EVERY = "-*"
"""Behind the name of a stage: all of its rounds."""

Tables = Mapping[str, Mapping[str, Any]]
Where = Callable[..., str]
"""Returns where a place of the recipe stands."""


class Repeat(Settings):
    """Stages that run in rounds, each of which starts from what the round before has made."""

    stages: tuple[str, ...]
    """The stages of a round; they stand one after the other in the recipe."""
    rounds: int = Field(ge=1, le=MOST_ROUNDS)
    """How many rounds there are. Round 2 of stage `align` is the stage `align-2`; `align` names the last one."""
    reference: Literal["moving", "fixed"] = "moving"
    """What a policy is pulled back to, and its KL measured from: the policy that its own round starts from, or the one
    that the first round starts from."""
    split: tuple[str, ...] = ()
    """Sources of rows that are divided among the rounds by the hashes of their prompts. Held-out rows are the same in
    all rounds."""


@dataclass(frozen=True)
class Round:
    """Which round of which stage of the recipe a stage is."""

    repeat: str
    """The name of its repeat; empty for `[repeat]` itself."""
    stage: str
    number: int
    """From 1."""
    of: int


def rounds_of(repeats: Mapping[str, Repeat]) -> dict[str, Round]:
    """Return every stage that is a round of another one."""
    return {
        f"{stage}-{number}": Round(name, stage, number, repeat.rounds)
        for name, repeat in repeats.items()
        for stage in repeat.stages
        for number in range(1, repeat.rounds + 1)
    }


def place_of(repeat: str) -> Keys:
    """Return where the recipe has a repeat of this name."""
    return ("repeat", repeat) if repeat else ("repeat",)


def read_repeats(table: Any, where: Where) -> tuple[dict[str, Repeat], list[RecipeError]]:
    """Read `[repeat]`, or several `[repeat.NAME]`; give those that are right, and what is wrong with the others."""
    if not isinstance(table, dict) or not table:
        return {}, [RecipeError("'repeat' must be a table", where("repeat"), "write [repeat]")] if table != {} else []
    several = all(isinstance(inner, dict) for inner in table.values())
    read: dict[str, Repeat] = {}
    errors: list[RecipeError] = []
    for name, given in table.items() if several else [("", table)]:
        try:
            read[name] = read_settings(Repeat, given, partial(_find, name, where))
        except RecipeError as error:
            errors.append(error)
    return read, errors


def _find(name: str, where: Where, keys: Keys) -> tuple[str, str]:
    path = (*place_of(name), *keys)
    return where(*path), ".".join(path)


def check_repeats(repeats: Mapping[str, Repeat], stages: Tables, sources: Tables, where: Where) -> list[RecipeError]:
    """Return what is wrong with repeats beside the stages and sources of their recipe."""
    problems = [
        Problem(f"{'.'.join(place_of(name))}: {problem}", where(*place_of(name), key), remedy)
        for name, repeat in repeats.items()
        for key, problem, remedy in (
            *_misnamed(repeat, stages, sources),
            *_scattered(repeat, [stage for stage in stages if stage not in rounds_of(repeats)]),
            *_taken_twice(name, repeats),
        )
    ]
    problems += [problem for repeat in repeats.values() for problem in _beyond(repeat, stages, where)]
    problems += [
        Problem(f"{name!r} names a round of {one.stage!r} and a source", where("sources", name), "rename the source")
        for name, one in rounds_of(repeats).items()
        if name in sources
    ]
    return [RecipeError.of([problem]) for problem in problems]


def _misnamed(repeat: Repeat, stages: Tables, sources: Tables) -> Iterator[tuple[str, str, str]]:
    if not repeat.stages:
        yield "stages", "it names no stage", 'write stages = ["..."]'
    for key, names, known, noun in (
        ("stages", repeat.stages, stages, "stage"),
        ("split", repeat.split, sources, "source"),
    ):
        for name in dict.fromkeys(names):
            if name not in known:
                yield key, f"there is no {noun} {name!r}", near_miss(name, list(known)) or f"{_listed(known, noun)}"
            if names.count(name) > 1:
                yield key, f"{noun} {name!r} is named twice", "name it once"
    for name in repeat.split:
        if any(not issubclass(kind, Records) for word, kind in SOURCE_KINDS.items() if word in sources.get(name, {})):
            yield "split", f"source {name!r} has no rows to divide", "name sources of rows"
    for name in repeat.split if repeat.rounds > 1 else ():
        if taken := [part for part in parts_of(name, repeat) if part in sources or part in stages]:
            yield "split", f"the parts of {name!r} are {name}-1, ..., and {taken[0]!r} is there", f"rename {taken[0]!r}"


def _listed(known: Tables, noun: str) -> str:
    return f"the {noun}s are {', '.join(known)}" if known else f"there are no {noun}s"


def _scattered(repeat: Repeat, stages: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the stages that stand between those of a round and belong to none."""
    places = [stages.index(name) for name in repeat.stages if name in stages]
    for between in stages[min(places, default=0) : max(places, default=0)]:
        if between not in repeat.stages:
            problem = f"stage {between!r} stands between {' and '.join(map(repr, repeat.stages))}"
            yield "stages", problem, "name it, too, or move it"


def _taken_twice(name: str, repeats: Mapping[str, Repeat]) -> Iterator[tuple[str, str, str]]:
    for other, repeat in repeats.items():
        if other == name:
            return
        for stage in sorted({*repeat.stages} & {*repeats[name].stages}):
            yield "stages", f"stage {stage!r} belongs to repeat.{other} already", "name it in one of them"


def _beyond(repeat: Repeat, stages: Tables, where: Where) -> Iterator[Problem]:
    """Yield what is said of rounds that there are not."""
    for stage in repeat.stages:
        for name in stages:
            number = name.removeprefix(f"{stage}-")
            if number != name and number.isdecimal() and not 1 <= int(number) <= repeat.rounds:
                problem = f"stage {name!r} would be a round of {stage!r}, of which there are {repeat.rounds}"
                yield Problem(problem, where("stage", name), "raise rounds, or rename it")


def parts_of(source: str, repeat: Repeat) -> list[str]:
    """Name the parts of a source that is divided among rounds."""
    return [f"{source}-{number}" for number in range(1, repeat.rounds + 1)]


def with_parts(sources: Tables, repeats: Mapping[str, Repeat]) -> dict[str, Mapping[str, Any]]:
    """Return all sources, those that rounds divide among each other followed by their parts."""
    made: dict[str, Mapping[str, Any]] = {}
    for name, table in sources.items():
        made[name] = table
        for repeat in repeats.values():
            if name in repeat.split and repeat.rounds > 1:
                parts = enumerate(parts_of(name, repeat), start=1)
                made |= {part: {**table, "part": [number, repeat.rounds]} for number, part in parts}
    return made


class _Place(NamedTuple):
    """Where a round of a stage stands."""

    repeat: Repeat
    before: Sequence[str]
    """The stages before it in its round."""
    number: int
    """Of the round."""


def unrolled(stages: Tables, repeats: Mapping[str, Repeat], seed: int) -> dict[str, Mapping[str, Any]]:
    """Return all stages, each that repeats as so many stages of their own."""
    rounds = rounds_of(repeats)
    repeat_of = {stage: repeat for repeat in repeats.values() for stage in repeat.stages}
    made: dict[str, Mapping[str, Any]] = {}
    for name, table in stages.items():
        if name in repeat_of:
            made |= _block(name, stages, repeat_of, seed)
        elif name not in rounds:
            made[name] = _wired(table, repeat_of, None)
    return made


def _block(
    first: str, stages: Tables, repeat_of: Mapping[str, Repeat], seed: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield all rounds of a repeat, if this is the first of its stages."""
    repeat = repeat_of[first]
    block = [stage for stage in stages if stage in repeat.stages]
    for number in range(1, repeat.rounds + 1) if first == block[0] else ():
        for place, stage in enumerate(block):
            written = _round(stages, stage, number, seed)
            yield f"{stage}-{number}", _wired(written, repeat_of, _Place(repeat, block[:place], number))


def _round(stages: Tables, stage: str, number: int, seed: int) -> Mapping[str, Any]:
    """Return the table of one round; the first has the seed that the stage would have without rounds."""
    first = stages[stage].get("seed", stage_seed(seed, stage))
    drawn = stage_seed(first, f"{stage}/round {number}") if number > 1 and isinstance(first, int) else first
    return merged({"method": stage, **stages[stage], "seed": drawn}, stages.get(f"{stage}-{number}", {}))


def _wired(table: Mapping[str, Any], repeat_of: Mapping[str, Repeat], place: _Place | None) -> Mapping[str, Any]:
    """Write what a stage takes with the rounds that are meant; a role for which there is none yet is left out."""

    def named(said: Any) -> Any:
        """Write a table by names with the rounds that are meant."""
        if not isinstance(said, dict):
            return said
        return {one: value for name, value in said.items() for one in _meant(name, repeat_of, place)}

    table = {key: named(value) if key == "constraints" else value for key, value in table.items()}
    if isinstance(mix := table.get("mix"), dict):
        table["mix"] = {key: named(value) if key in NAMING else value for key, value in mix.items()}
    inputs = table.get("inputs")
    if not isinstance(inputs, dict):
        return table
    written = {}
    for role, given in inputs.items():
        several = given if isinstance(given, list) else [given]
        names = [name for one in several for name in _meant(one, repeat_of, place)]
        if names or not several:
            written[role] = names if names != several else given
    return {**table, "inputs": written}


def _meant(name: Any, repeat_of: Mapping[str, Repeat], place: _Place | None) -> list[Any]:
    """Return the rounds that a name means: of its own repeat the latest so far, of another the last one."""
    stage = name.removesuffix(EVERY) if isinstance(name, str) else ""
    repeat = repeat_of.get(stage)
    if repeat is None:
        return [name]
    last = repeat.rounds
    if place and place.repeat is repeat:
        last = place.number if stage in place.before else place.number - 1
    rounds = [f"{stage}-{number}" for number in range(1, last + 1)]
    return rounds if name.endswith(EVERY) else rounds[-1:]
