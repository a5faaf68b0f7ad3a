"""The order in which rows are learnt from, of one source and of a mix of several."""

from collections import Counter

import pytest
import torch

from alignkit.training.row_order import RowOrder, in_turn, ranks_of, rows_of_step

OLD_STEPS = [[1, 4, 0], [2, 5, 6], [3], [5, 4, 2]]
OLD_PART = [2, 1, 3]
OLD_TURNS = [0, 1, 3, 4, 5, 0]
"""As they were drawn before sources could be mixed."""
MIX = RowOrder(sizes=[30, 4, 9], counts=[24, 12, 7])


def epochs(order, count, seed=17, part=""):
    """Return the rows of so many epochs, as steps of 5 rows take them."""
    steps = -(-len(order) // 5)
    return [
        [row for step in range(steps) for row in rows_of_step(order, epoch * steps + step, 5, seed, part)]
        for epoch in range(count)
    ]


def of_source(rows, source, sizes=MIX.sizes):
    start = sum(sizes[:source])
    return [row - start for row in rows if start <= row < start + sizes[source]]


def test_without_a_mix_the_order_is_what_it_always_was() -> None:
    assert [rows_of_step(7, step, 3, 17) for step in range(4)] == OLD_STEPS
    assert rows_of_step(7, 0, 3, 17, "round-1") == OLD_PART
    assert in_turn(7, 5, 6, 17) == OLD_TURNS


def test_an_epoch_has_of_each_source_what_the_mix_says() -> None:
    for rows in epochs(MIX, 4):
        assert [len(of_source(rows, source)) for source in range(3)] == MIX.counts


@pytest.mark.parametrize("source", range(3))
def test_every_row_of_a_source_comes_once_before_any_comes_twice(source) -> None:
    read = of_source([row for rows in epochs(MIX, 5) for row in rows], source)

    for place in range(1, len(read) + 1):
        times = Counter(read[:place])
        assert max(times.values()) - (min(times.values()) if len(times) == MIX.sizes[source] else 0) <= 1


def test_any_stretch_of_an_epoch_has_the_shares_give_or_take_a_row_for_each_source() -> None:
    order = RowOrder(sizes=[300, 40, 90], counts=[240, 120, 70])
    (rows,) = epochs(order, 1)
    for begin in range(0, 430, 7):
        for end in range(begin + 1, 431, 11):
            for source, count in enumerate(order.counts):
                expected = (end - begin) * count / 430
                assert abs(len(of_source(rows[begin:end], source, order.sizes)) - expected) <= len(order.sizes)


def test_epochs_parts_and_seeds_have_orders_of_their_own() -> None:
    first, second = epochs(MIX, 2)

    assert first != second
    assert first != epochs(MIX, 1, seed=18)[0]
    assert first != epochs(MIX, 1, part="round-1")[0]
    assert first == epochs(MIX, 1)[0]


def test_a_step_can_be_told_by_itself() -> None:
    together = epochs(MIX, 3)

    assert rows_of_step(RowOrder(MIX.sizes, MIX.counts), 2 * 9 + 3, 5, 17) == together[2][15:20]


def test_prompts_of_a_mix_are_asked_round_by_round() -> None:
    asked = in_turn(MIX, 0, 2 * 43, seed=3)

    for rows in (asked[:43], asked[43:]):
        assert [len(of_source(rows, source)) for source in range(3)] == MIX.counts
    assert in_turn(MIX, 40, 9, seed=3) == asked[40:49]
    assert len(set(of_source(asked, 0))) == 30


def test_ordered_rows_go_from_low_to_high_in_each_pass_while_shares_stay() -> None:
    values = [[float(row % 10) for row in range(size)] for size in MIX.sizes]
    order = RowOrder(MIX.sizes, MIX.counts, [ranks_of(some, None) for some in values])
    first, second = epochs(order, 2)

    easy_first = [values[0][row] for row in of_source(first, 0)]
    assert easy_first == sorted(easy_first)
    small = of_source(first, 1)
    assert [small[place : place + 4] for place in (0, 4, 8)] == [[0, 1, 2, 3]] * 3  # three passes
    rest, again = [values[0][row] for row in of_source(second, 0)][:6], of_source(second, 0)[6:]
    assert rest == sorted(rest)
    assert {*of_source(first, 0), *of_source(second, 0)[:6]} == set(range(30))
    assert len(set(again)) == 18
    stretch = first[:22]
    assert [len(of_source(stretch, source)) for source in range(3)] == pytest.approx([12.3, 6.1, 3.6], abs=2)


def test_buckets_have_one_size_and_are_shuffled_within() -> None:
    values = list(map(float, range(12)))
    ranks = ranks_of(values, 3)
    (rows,) = epochs(RowOrder([12], [12], [ranks]), 1)

    assert [sorted(rows[place : place + 4]) for place in (0, 4, 8)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert rows != sorted(rows)
    assert torch.equal(ranks_of(values, 3, descending=True), -ranks)


def test_rows_of_the_same_number_share_a_bucket() -> None:
    assert ranks_of([1.0, 1.0, 1.0, 2.0], 2).tolist() == [0, 0, 0, 1]


def test_every_prompt_is_asked_once_a_round() -> None:
    order = in_turn(7, start=0, count=14, seed=3)

    assert sorted(order[:7]) == list(range(7))
    assert sorted(order[7:]) == list(range(7))
    assert order[:7] != order[7:]


def test_turns_can_be_taken_up_anywhere() -> None:
    assert in_turn(7, 0, 20, seed=3)[9:13] == in_turn(7, 9, 4, seed=3)
