"""Rows of several sources, read source by source, in the order that their stage's mix says."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Generic, NamedTuple, TypeVar

from alignkit.contract.kinds import Records
from alignkit.contract.mix import counts
from alignkit.data.records import Record
from alignkit.errors import DataError
from alignkit.training.encoding import LengthReport, at_place
from alignkit.training.made_rows import MadeRows
from alignkit.training.row_order import RowOrder, ranks_of
from alignkit.training.row_texts import Row

T = TypeVar("T")
R = TypeVar("R", bound=Records)


class OrderedRows(MadeRows[T]):
    """Rows with the order in which they are learnt from."""

    def __init__(self, rows: Sequence[T], order: RowOrder) -> None:
        self._rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self._rows)

    def made(self, row: int) -> T:
        return self._rows[row]


class _Joined(MadeRows[T]):
    """Sequences one behind the other, of which none is copied."""

    def __init__(self, several: Sequence[Sequence[T]]) -> None:
        self._several, self._ends = several, list(accumulate(map(len, several)))

    def __len__(self) -> int:
        return self._ends[-1]

    def made(self, row: int) -> T:
        source = bisect_right(self._ends, row)
        return self._several[source][row - (self._ends[source - 1] if source else 0)]


@dataclass(frozen=True)
class ReadRows(Generic[T]):
    """The rows of one source as they are learnt from."""

    rows: Sequence[T]
    lengths: LengthReport
    values: Sequence[float] = ()
    """What the mix orders them by, where it does."""


class Mixed(NamedTuple, Generic[T]):
    """The rows of all sources, and what the length limit did to them."""

    rows: Sequence[T]
    lengths: LengthReport


def mixed(records: R, read: Callable[[R], ReadRows[T]]) -> Mixed[T]:
    """Return the rows that `read` makes of records: of all together or, where they have a mix, source by source.

    Raises DataError where a source that is read has no row.
    """
    if records.mix is None:
        found = read(records)
        return Mixed(found.rows, found.lengths)
    mix = records.mix
    sources = {name: read(source) for name, source in records.by_source().items() if mix.reads(name)}
    sizes = {name: len(source.rows) for name, source in sources.items()}
    for name in (name for name, size in sizes.items() if not size):
        raise DataError("no row is left to learn from", f"source {name!r}", "check it, or leave it out of the mix")
    ranks = [ranks_of(source.values, mix.buckets, descending=mix.descending) for source in sources.values()]
    order = RowOrder([*sizes.values()], [*counts(mix, sizes).values()], ranks if mix.order else None)
    rows = OrderedRows(_Joined([source.rows for source in sources.values()]), order)
    return Mixed(rows, _together([source.lengths for source in sources.values()]))


def _together(reports: Sequence[LengthReport]) -> LengthReport:
    added = {name: sum(getattr(one, name) for one in reports) for name in ("rows", "cut", "dropped", "refused")}
    return replace(reports[0], longest=max(one.longest for one in reports), **added)


def order_of(rows: Sequence[T]) -> int | RowOrder:
    """Return the order of rows that have one, else how many they are."""
    return rows.order if isinstance(rows, OrderedRows) else len(rows)


def in_order_of(rows: Sequence[T], others: Sequence[object]) -> Sequence[T]:
    """Return rows, each made of the one at its place among others, that are learnt from in the order of those.

    Where a stage mixes its sources, the rows that it reads know their order; what a method makes of them does not.
    """
    return OrderedRows(rows, others.order) if isinstance(others, OrderedRows) else rows


def value_of(row: Row, column: str) -> float:
    """Return the number by which a row is ordered. Raises DataError where it has none."""
    value = row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    problem = f"rows are ordered by {column!r}, which must be a number"
    shown = f"{problem}, and is {value!r:.40}" if column in row else f"{problem}, and the row has none"
    raise at_place(DataError(shown, "", "correct the row, or leave mix.order out"), row)


def values_of(rows: Iterable[Row], records: Records) -> list[float]:
    """Return the numbers by which the mix of records orders rows; none where it does not order them."""
    order = records.mix.order if records.mix else None
    return [value_of(row, order) for row in rows] if order else []


def held_out_rows(records: Records, most: int) -> dict[str, list[Record]]:
    """Return so many rows to measure on; of a mix, by their sources, of each the same number at most."""
    if records.mix is None:
        return {records.name: list(islice(records.held_out(), most))}
    sources = records.by_source()
    each = max(1, most // len(sources))
    return {name: list(islice(source.held_out(), each)) for name, source in sources.items()}


class HeldOut(NamedTuple, Generic[T]):
    """Rows to measure on."""

    rows: list[T]
    sources: list[str]
    """Where there are several, the source of each; else empty."""


def flat(rows: Mapping[str, Sequence[T]]) -> HeldOut[T]:
    """Return rows by their sources one behind the other."""
    sources = [name for name, some in rows.items() for _ in some]
    return HeldOut([row for some in rows.values() for row in some], sources if len(rows) > 1 else [])


def places_of(sources: Sequence[str]) -> dict[str, list[int]]:
    """Return where the rows of each source stand, given the source of each row."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(sources):
        places.setdefault(name, []).append(place)
    return places
