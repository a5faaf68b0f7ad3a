"""What a recipe says of itself: how it is compared, which figures are expected of it, and its small edition.

`[compare]`, `[[expect]]` and `[smoke]` enter no fingerprint, and `alignkit recipe` takes no notice of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from pydantic import PositiveInt, model_validator

from alignkit.contract.names import NAME
from alignkit.contract.settings import Settings
from alignkit.errors import Problem, RecipeError
from alignkit.recipe.toml import Keys
from alignkit.recipe.validate import read_settings

S = TypeVar("S", bound=Settings)
Where = Callable[..., str]
"""Returns where a place of the recipe stands."""
TABLES = ("compare", "expect", "smoke")
START = "start"
"""What the policy that all variants start from is called in a comparison."""


class ComparisonTable(Settings):
    """What `alignkit compare RECIPE` runs where the command does not say what shall be compared."""

    stage: str | None = None
    """The stage that is compared. Unset: the last one that makes a policy."""
    methods: tuple[str, ...] = ()
    """Methods, or papers, that the stage is run with."""
    vary: Mapping[str, Any] = {}
    """Setting -> the values that it is run with, as of `--vary`: `vary.align.dpo.beta = [0.05, 0.1]`."""
    variants: Mapping[str, Mapping[str, Any]] = {}
    """Name -> what the stage says otherwise: `dpo-low = { method = "dpo", dpo.beta = 0.05 }`."""
    seeds: PositiveInt = 1
    """How many seeds each variant is run with."""
    rewards: tuple[str, ...] = ()
    """Rewards that are measured besides those that decide. Unset: all that a variant learns from."""


class Expectation(Settings):
    """A figure that is expected of a recipe, or of its comparison."""

    figure: str
    """`STAGE/RESULT` of a run, such as `scores/reward align`; of a comparison `VARIANT/FIELD`, such as `dpo/reward`."""
    minus: str | None = None
    """Another figure, which is subtracted: a difference is expected."""
    at_least: float | None = None
    """The least that it may be."""
    at_most: float | None = None
    """The most that it may be."""
    paper: float | str | None = None
    """The number, or the statement, of the paper."""
    source: str | None = None
    """Where the paper has it."""
    differs: str | None = None
    """What is not as in the paper."""

    @model_validator(mode="after")
    def _expects_something(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("nothing is expected: write at_least, at_most, or both")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least:g} is above at_most {self.at_most:g}")
        return self

    @property
    def named(self) -> str:
        """What is measured, in words."""
        return f"{self.figure} minus {self.minus}" if self.minus else self.figure


class SmallEdition(Settings):
    """What `alignkit reproduce RECIPE --smoke` runs: the same in minutes, with expectations of its own."""

    set: Mapping[str, Any] = {}
    """What is changed, as by `--set`: `set.align.ppo.updates = 4`."""
    seeds: PositiveInt | None = None
    """How many seeds each variant is run with. Unset: as many as else."""
    variants: tuple[str, ...] = ()
    """The variants that are run. Unset: all."""
    rewards: tuple[str, ...] = ()
    """Rewards that are measured besides those that decide. Unset: those of `[compare]`."""
    expect: tuple[Expectation, ...] = ()
    """What is expected of it; nothing else is."""


@dataclass(frozen=True)
class SelfChecks:
    """What a recipe says of itself, as far as it is right."""

    compare: ComparisonTable | None = None
    expect: tuple[Expectation, ...] = ()
    smoke: SmallEdition | None = None


def read_self_checks(table: Mapping[str, Any], where: Where) -> tuple[SelfChecks, list[RecipeError]]:
    """Read the tables in which a recipe speaks of itself; give what is right, and what is wrong with the rest."""
    errors: list[RecipeError] = []
    compare = _read(ComparisonTable, table, "compare", where, errors)
    expect = _expected(table.get("expect", []), ("expect",), where, errors)
    small = table.get("smoke")
    smoke = None
    if isinstance(small, dict):
        own = _expected(small.get("expect", []), ("smoke", "expect"), where, errors)
        rest = {key: value for key, value in small.items() if key != "expect"}
        smoke = _read(SmallEdition, {"smoke": rest}, "smoke", where, errors)
        smoke = smoke.model_copy(update={"expect": own}) if smoke else None
    elif small is not None:
        errors.append(RecipeError("'smoke' must be a table", where("smoke"), "write [smoke]"))
    errors += map(RecipeError.of, ([problem] for problem in _misfits(compare, smoke, table, where)))
    return SelfChecks(compare, expect, smoke), errors


def _read(kind: type[S], table: Mapping[str, Any], name: str, where: Where, errors: list[RecipeError]) -> S | None:
    given = table.get(name)
    if given is None:
        return None
    if not isinstance(given, dict):
        errors.append(RecipeError(f"{name!r} must be a table", where(name), f"write [{name}]"))
        return None
    try:
        return read_settings(kind, given, partial(_find, (name,), where))
    except RecipeError as error:
        errors.append(error)
        return None


def _expected(given: Any, place: Keys, where: Where, errors: list[RecipeError]) -> tuple[Expectation, ...]:
    name = ".".join(place)
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        errors.append(RecipeError(f"{name!r} must be a list of tables", where(*place), f"write [[{name}]]"))
        return ()
    read = []
    for number, one in enumerate(given):
        try:
            read.append(read_settings(Expectation, one, partial(_find, (*place, str(number)), where)))
        except RecipeError as error:
            errors.append(error)
    return tuple(read)


def _find(place: Keys, where: Where, keys: Keys) -> tuple[str, str]:
    return where(*place, *keys), ".".join(part for part in (*place, *keys) if not part.isdecimal())


def _misfits(
    compare: ComparisonTable | None, smoke: SmallEdition | None, table: Mapping[str, Any], where: Where
) -> Iterator[Problem]:
    """Yield what does nothing, and what could not be told apart."""
    for name, changes in compare.variants.items() if compare else ():
        if not NAME.fullmatch(name) or name == START:
            problem = f"compare.variants: no variant can be called {name!r}"
            yield Problem(problem, where("compare", "variants", name), f"its name must match {NAME.pattern}")
        if "seed" in changes:
            problem = f"compare.variants.{name}: all variants run under the same seeds"
            yield Problem(problem, where("compare", "variants", name, "seed"), "write seeds = N under [compare]")
    for keys, values in flat(compare.vary) if compare else ():
        if not isinstance(values, list) or not values:
            problem = f"compare.vary.{'.'.join(keys)}: must be a list of values"
            yield Problem(problem, where("compare", "vary", *keys), "write vary.KEY = [A, B]")
    for key in ("seeds", "variants", "rewards"):
        if smoke and "compare" not in table and key in smoke.model_fields_set:
            problem = f"smoke.{key}: this recipe has no [compare] whose {key} there could be fewer of"
            yield Problem(problem, where("smoke", key), "leave it out, or add [compare]")


def flat(table: Mapping[str, Any]) -> Iterator[tuple[Keys, Any]]:
    """Yield the values of nested tables, each with the keys that lead to it, of which one may hold several parts."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from (((key, *keys), inner) for keys, inner in flat(value))
        elif not isinstance(value, Mapping):
            yield (key,), value
