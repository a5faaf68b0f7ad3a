"""What was computed of pairs once, before they are learnt from, beside each of them."""

from collections.abc import Sequence
from typing import TypeVar

from alignkit.training.encoding import TokenPair
from alignkit.training.made_rows import MadeRows
from alignkit.training.mixed_rows import in_order_of
from alignkit.training.rows import Pair

PairT = TypeVar("PairT", Pair, TokenPair)


def with_values(pairs: Sequence[PairT], column: str, values: Sequence[object]) -> Sequence[PairT]:
    """Return pairs in the order that they have, each with its value under this column of its `row`."""
    return in_order_of(ValuedPairs(pairs, column, values), pairs)


class ValuedPairs(MadeRows[PairT]):
    """Pairs, each made when it is asked for, with a value in its row."""

    def __init__(self, pairs: Sequence[PairT], column: str, values: Sequence[object]) -> None:
        if len(pairs) != len(values):
            raise ValueError(f"{len(values)} values under {column!r} for {len(pairs)} pairs")
        self._pairs: Sequence[PairT] = pairs
        self._column, self._values = column, values

    def __len__(self) -> int:
        return len(self._pairs)

    def made(self, row: int) -> PairT:
        pair: PairT = self._pairs[row]
        return pair._replace(row={**pair.row, self._column: self._values[row]})
