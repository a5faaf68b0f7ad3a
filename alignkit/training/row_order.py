"""The order in which rows are learnt from: shuffled anew each time, or by the mix of their sources.

Of a mix an epoch takes of each source as many rows as the mix says, and the next one goes on where it left off: no row
comes twice before all of its source have come once. Sources alternate as evenly as their counts allow: the k-th of a
source's c rows of an epoch stands at the place (k + u) / c of it, with one u for the source, drawn anew for each epoch.
So each source has its share in any stretch of an epoch, give or take a row for each source.

All of it is drawn from the seed, whatever the number of processes, and can be told of any epoch by itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from alignkit.training.rollouts import generator_for


@dataclass(frozen=True, eq=False)
class RowOrder:
    """How rows that lie source behind source are read."""

    sizes: Sequence[int]
    """Rows of each source."""
    counts: Sequence[int]
    """Of them in an epoch: fewer than there are, or more, where they come several times."""
    ranks: Sequence[Tensor] | None = None
    """Where rows are ordered, a number for each row of each source (n,): each pass goes from low to high."""

    def __len__(self) -> int:
        return sum(self.counts)

    def epoch(self, number: int, seed: int, *part: int | str) -> Tensor:
        """Return the rows of an epoch in their order (n,)."""
        chance = generator_for(seed, *part, "sources", number)
        starts = torch.rand(len(self.counts), generator=chance, dtype=torch.float64)
        places = [
            (torch.arange(count, dtype=torch.float64) + start) / max(count, 1)
            for count, start in zip(self.counts, starts, strict=True)
        ]
        rows = [self._taken(source, number, seed, *part) for source in range(len(self.counts))]
        return torch.cat(rows)[torch.cat(places).argsort(stable=True)]

    def _taken(self, source: int, number: int, seed: int, *part: int | str) -> Tensor:
        """Return the rows of a source that an epoch takes: the next of its passes, each a shuffle of its own."""
        size, count = self.sizes[source], self.counts[source]
        begin, end = number * count, (number + 1) * count
        taken = [torch.empty(0, dtype=torch.int64)]
        for turn in range(begin // size, math.ceil(end / size)) if count else ():
            shuffled = torch.randperm(size, generator=generator_for(seed, *part, "source", source, turn))
            rows = shuffled[max(0, begin - turn * size) : end - turn * size]
            taken.append(rows if self.ranks is None else rows[self.ranks[source][rows].argsort(stable=True)])
        return torch.cat(taken) + sum(self.sizes[:source])


def ranks_of(values: Sequence[float], buckets: int | None, *, descending: bool = False) -> Tensor:
    """Return numbers by which rows with these values are read from low to high (n,), or their buckets of one size."""
    table = torch.tensor(values, dtype=torch.float64)
    below = torch.searchsorted(table.sort().values, table)
    ranks = below if buckets is None else below * buckets // max(len(table), 1)
    return -ranks if descending else ranks


def rows_of_step(rows: int | RowOrder, step: int, batch: int, seed: int, part: str = "") -> list[int]:
    """Return the rows of one step; an epoch's last step may be short."""
    steps = math.ceil(size_of(rows) / batch)
    place = step % steps * batch
    taken: list[int] = _epoch(rows, step // steps, seed, part)[place : place + batch].tolist()
    return taken


def in_turn(rows: int | RowOrder, start: int, count: int, seed: int) -> list[int]:
    """Return the rows asked at places `start` to `start + count`, where a round asks every row once, shuffled anew, or
    is an epoch of their mix."""
    size = size_of(rows)
    rounds = range(start // size, (start + count - 1) // size + 1)
    shuffled = [_round(rows, number, seed) for number in rounds]
    offset = start - rounds[0] * size
    order: list[int] = torch.cat(shuffled)[offset : offset + count].tolist()
    return order


def size_of(rows: int | RowOrder) -> int:
    """Return how many rows an epoch has."""
    return rows if isinstance(rows, int) else len(rows)


@lru_cache(maxsize=1)
def _epoch(rows: int | RowOrder, number: int, seed: int, part: str) -> Tensor:
    place = (part,) if part else ()
    if isinstance(rows, RowOrder):
        return rows.epoch(number, seed, *place)
    return torch.randperm(rows, generator=generator_for(seed, *place, "epoch", number))


@lru_cache(maxsize=2)
def _round(rows: int | RowOrder, number: int, seed: int) -> Tensor:
    if isinstance(rows, RowOrder):
        return rows.epoch(number, seed, "rounds")
    return torch.randperm(rows, generator=generator_for(seed, "round", number))
