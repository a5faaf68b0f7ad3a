"""Samples are the extremes and some others, each row once."""

import pytest
from hypothesis import given, strategies as st

from alignkit.training.picking import picked_samples


def test_best_worst_and_others_are_shown() -> None:
    assert picked_samples([5.0, 1.0, 2.0, 9.0, 3.0, 4.0], 2) == [
        (3, "best"),
        (0, "best"),
        (1, "worst"),
        (2, "worst"),
        (4, ""),
        (5, ""),
    ]


@pytest.mark.parametrize(("rows", "count", "shown"), [(3, 4, 3), (0, 4, 0), (5, 0, 0), (5, 4, 5), (9, 4, 9)])
def test_of_few_rows_all_are_shown(rows: int, count: int, shown: int) -> None:
    assert len(picked_samples([0.0] * rows, count)) == shown


@given(st.lists(st.floats(allow_nan=False)), st.integers(0, 8))
def test_each_row_is_shown_once(values: list[float], count: int) -> None:
    rows = [row for row, _ in picked_samples(values, count)]

    assert len(rows) == len({*rows}) <= 3 * count
