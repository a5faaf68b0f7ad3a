"""What was computed of pairs once, before they are learnt from, beside each of them."""

from collections.abc import Sequence

from alignkit.training.made_rows import MadeRows
from alignkit.training.mixed_rows import in_order_of
from alignkit.training.rows import Pair


def with_values(pairs: Sequence[Pair], column: str, values: Sequence[object]) -> Sequence[Pair]:
    """Return pairs in the order that they have, each with its value under this column of its `row`."""
    return in_order_of(ValuedPairs(pairs, column, values), pairs)


class ValuedPairs(MadeRows[Pair]):
    """Pairs, each made when it is asked for, with a value in its row."""

    def __init__(self, pairs: Sequence[Pair], column: str, values: Sequence[object]) -> None:
        if len(pairs) != len(values):
            raise ValueError(f"{len(values)} values under {column!r} for {len(pairs)} pairs")
        self._pairs, self._column, self._values = pairs, column, values

    def __len__(self) -> int:
        return len(self._pairs)

    def made(self, row: int) -> Pair:
        pair = self._pairs[row]
        return pair._replace(row={**pair.row, self._column: self._values[row]})
