"""Mixes: how often a stage learns from the rows of each of its sources, and in which order."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from alignkit.contract.settings import Settings

NAMING = ("weights", "shares", "epochs")
"""Settings that name sources."""
WAYS = (*NAMING, "temperature")
"""Settings of which one says how often each source is read."""
Share = Annotated[float, Field(ge=0, le=1)]
SLACK = 1e-6
"""By how much shares may miss 1, as one third of each of three does."""


class Mix(Settings):
    """How a stage reads the sources of its rows; one of `weights`, `shares`, `epochs` and `temperature` says how often.

    By the first two and the last an epoch has as many rows as all sources together: rows of a source that gets more
    than it has come again once all of them were read, those of one that gets less wait for the next epoch.
    """

    weights: Mapping[str, NonNegativeFloat] = {}
    """Source -> how many of its rows are read to those of the others, `{ chats = 3, code = 1 }`. 0: only measured."""
    shares: Mapping[str, Share] = {}
    """Source -> its share of the rows, `{ code = 0.25 }`; sources without one share the rest by their rows."""
    epochs: Mapping[str, PositiveFloat] = {}
    """Source -> how often each of its rows is read, 1 where none is given; in place of the method's `epochs`."""
    temperature: PositiveFloat | None = None
    """Sources are read in proportion to rows ** (1 / temperature) (Raffel et al. 2020, arXiv 1910.10683): 1 by their
    rows, 2 to 5 to read more of small ones, a large one the same of each."""
    order: str | None = None
    """A column of numbers that the sources keep, such as `difficulty`: each pass over a source goes from low to high
    (Bengio et al. 2009, a curriculum), while shares stay as they are. Unset: rows are shuffled."""
    descending: bool = False
    """With `order`: from high to low."""
    buckets: PositiveInt | None = None
    """With `order`: rows are parted into so many buckets of one size, and shuffled within each. Unset: rows of the same
    number alone are shuffled."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if len(self.ways) > 1:
            raise ValueError(f"{' and '.join(self.ways)} both say how often sources are read; leave one of them out")
        if not self.ways and self.order is None:
            raise ValueError(f"it says nothing; write {', '.join(WAYS)} or order")
        for name in ("descending", "buckets"):
            if getattr(self, name) and self.order is None:
                raise ValueError(f"{name} does nothing without order; say by which column rows are ordered")
        if self.weights and not any(self.weights.values()):
            raise ValueError("all weights are 0, so nothing would be read")
        if (total := sum(self.shares.values())) > 1 + SLACK:
            raise ValueError(f"shares sum to {total:g}, and may sum to 1")
        return self

    @property
    def ways(self) -> list[str]:
        """The settings that say how often each source is read; none or one."""
        return [name for name in WAYS if getattr(self, name)]

    @property
    def named(self) -> list[str]:
        """The sources that it names."""
        return [*self.weights, *self.shares, *self.epochs]

    def reads(self, name: str) -> bool:
        """Return whether it reads rows of a source, rather than only measuring on them."""
        return bool(self.weights.get(name, 0) if self.weights else self.shares.get(name, 1))

    def renamed(self, names: Mapping[str, str]) -> "Mix":
        """Return it with other names of sources, as those of a round are called."""
        ways = {way: getattr(self, way) for way in NAMING}
        changed = {way: {names.get(name, name): one for name, one in said.items()} for way, said in ways.items()}
        return self.model_copy(update=changed)

    def placed(self, names: Sequence[str]) -> dict[str, object]:
        """Return what it says, with the places of sources among these names in place of their names."""
        said = self.model_dump(mode="json", exclude_defaults=True)
        places = {name: str(place) for place, name in enumerate(names)}
        return {
            key: {places.get(name, name): one for name, one in value.items()} if isinstance(value, dict) else value
            for key, value in said.items()
        }


def counts(mix: Mix, rows: Mapping[str, int]) -> dict[str, int]:
    """Return how many rows of each source an epoch reads, of sources with so many rows.

    Fractions are rounded by largest remainders, so that the sum is that of the rows of all sources that are read.
    """
    if mix.epochs:
        return {name: max(min(1, count), round(mix.epochs.get(name, 1.0) * count)) for name, count in rows.items()}
    shares = _shares(mix, rows)
    total = sum(count for name, count in rows.items() if shares[name])
    exact = {name: share * total for name, share in shares.items()}
    found = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(found, key=lambda name: found[name] - exact[name])
    for name in by_remainder[: total - sum(found.values())]:
        found[name] += 1
    return found


def _shares(mix: Mix, rows: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each source; they sum to 1, unless there is no row."""
    if mix.shares:
        rest = 1 - sum(mix.shares.values())
        others = sum(count for name, count in rows.items() if name not in mix.shares)
        found = {name: mix.shares.get(name, rest * count / max(others, 1)) for name, count in rows.items()}
    elif mix.weights:
        found = {name: mix.weights[name] for name in rows}
    else:
        found = {name: count ** (1 / (mix.temperature or 1.0)) for name, count in rows.items()}
    total = sum(found.values())
    return {name: value / total if total else 0.0 for name, value in found.items()}
