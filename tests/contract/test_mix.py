"""How many rows of each source a mix reads."""

import pytest
from hypothesis import given, strategies as some

from alignkit.contract.mix import Mix, counts

ROWS = {"chats": 3750, "code": 250}


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ({"weights": {"chats": 3, "code": 1}}, {"chats": 3000, "code": 1000}),
        ({"weights": {"chats": 0, "code": 1}}, {"chats": 0, "code": 250}),
        ({"shares": {"code": 0.25}}, {"chats": 3000, "code": 1000}),
        ({"epochs": {"code": 4}}, {"chats": 3750, "code": 1000}),
        ({"epochs": {"chats": 0.1, "code": 0.001}}, {"chats": 375, "code": 1}),
        ({"temperature": 1.0}, ROWS),
        ({"temperature": 2.0}, {"chats": 3179, "code": 821}),  # sqrt(3750) : sqrt(250) = 61.24 : 15.81
        ({"order": "difficulty"}, ROWS),
    ],
)
def test_an_epoch_reads_what_the_mix_says(mix, expected) -> None:
    assert counts(Mix(**mix), ROWS) == expected


def test_what_two_shares_leave_is_parted_by_rows() -> None:
    rows = {"a": 100, "b": 30, "c": 10}

    assert counts(Mix(shares={"a": 0.2}), rows) == {"a": 28, "b": 84, "c": 28}


@given(some.dictionaries(some.sampled_from("abcdef"), some.tuples(some.integers(1, 900), some.floats(0.01, 50))))
def test_rounding_keeps_the_sum_and_misses_no_count_by_a_row(sources) -> None:
    rows = {name: count for name, (count, _) in sources.items()}
    weights = {name: weight for name, (_, weight) in sources.items()}
    if not rows:
        return

    found, total = counts(Mix(weights=weights), rows), sum(weights.values())

    assert sum(found.values()) == sum(rows.values())
    assert all(abs(found[name] - weights[name] / total * sum(rows.values())) < 1 for name in rows)
