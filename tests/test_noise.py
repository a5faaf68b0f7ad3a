"""Intervals hold what they promise: the truth, 95 times of 100, also where few rows were measured."""

import math
from collections.abc import Callable, Sequence
from random import Random
from statistics import fmean

import pytest
from hypothesis import given, strategies as st

from alignkit.noise import (
    Interval,
    area_interval,
    change_interval,
    detectable,
    mean_interval,
    over_seeds,
    ratio_interval,
    wilson,
)

TIMES = 1500
"""A share of 0.95 of so many has a standard error of 0.6 points."""


def coverage(draw: Callable[[Random], Interval | None], truth: float) -> float:
    random = Random(5)
    found = [draw(random) for _ in range(TIMES)]
    return fmean(around is not None and around[0] <= truth <= around[1] for around in found)


def shares(random: Random, rate: float, rows: int) -> list[float]:
    return [float(random.random() < rate) for _ in range(rows)]


@pytest.mark.parametrize("rows", [12, 100])
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_the_interval_of_a_share_holds_the_truth(rate: float, rows: int) -> None:
    assert coverage(lambda random: mean_interval(shares(random, rate, rows)), rate) > 0.925


@pytest.mark.parametrize("rows", [6, 40])
def test_the_interval_of_a_mean_holds_the_truth(rows: int) -> None:
    assert coverage(lambda random: mean_interval([random.gauss(3, 2) for _ in range(rows)]), 3) == pytest.approx(
        0.95, abs=0.02
    )


@pytest.mark.parametrize("rows", [10, 40, 200])
def test_the_interval_of_a_share_that_changed_holds_the_truth(rows: int) -> None:
    def draw(random: Random) -> Interval | None:
        before = shares(random, 0.5, rows)
        return change_interval(before, [1.0 if random.random() < 0.4 else value for value in before])

    assert coverage(draw, 0.2) > 0.935


def test_four_rows_that_all_turned_right_tell_little() -> None:
    around = change_interval([0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])

    # Bonett and Price: 2 gains and no loss, one more of each, of two rows more: 3 / 6 and 1 / 6
    half = 1.959964 * math.sqrt((3 / 6 + 1 / 6 - (2 / 6) ** 2) / 6)
    assert around == pytest.approx((2 / 6 - half, 2 / 6 + half), abs=1e-5)
    assert around[0] < 0


def test_a_ratio_of_sums_holds_the_truth() -> None:
    def draw(random: Random) -> Interval | None:
        tokens = [random.randint(1, 60) for _ in range(50)]
        return ratio_interval([sum(random.expovariate(0.5) for _ in range(count)) for count in tokens], tokens)

    assert coverage(draw, 2) > 0.92


def test_the_interval_of_an_area_holds_the_truth() -> None:
    def draw(random: Random) -> Interval | None:
        return area_interval([random.gauss(1, 1) for _ in range(30)], [random.gauss(0, 1) for _ in range(30)])

    truth = 0.5 * (1 + math.erf(1 / 2))  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    assert coverage(draw, truth) > 0.92


@pytest.mark.parametrize("seeds", [2, 5, 20])
def test_an_interval_over_seeds_holds_what_the_others_come_to(seeds: int) -> None:
    def draw(random: Random) -> Interval | None:
        means = [random.gauss(1, 0.05) for _ in range(seeds)]
        rows = [means[0] + random.gauss(0, 0.4) for _ in range(256)]
        around = mean_interval(rows)
        return around and over_seeds(around, [fmean(rows), *means[1:]], 256)

    assert coverage(draw, 1) > 0.94


def test_one_seed_widens_nothing() -> None:
    assert over_seeds((0.0, 1.0), [0.5], 100) == (0.0, 1.0)
    assert over_seeds((0.0, 1.0), [0.5, 0.5], 10_000) == pytest.approx((0.0, 1.0))


def test_a_change_of_the_detectable_size_is_found_four_times_of_five() -> None:
    random, rows = Random(3), 60
    some = change_interval([0.0] * rows, [random.gauss(0, 1) for _ in range(rows)])
    assert some
    size = 2.8016 / math.sqrt(rows)  # z(0.975) + z(0.8), spread 1
    found = [change_interval([0.0] * rows, [random.gauss(size, 1) for _ in range(rows)]) for _ in range(TIMES)]

    assert detectable(some) == pytest.approx(size, rel=0.25)
    assert fmean(around is not None and around[0] > 0 for around in found) == pytest.approx(0.8, abs=0.04)


@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_an_interval_is_around_its_mean(values: Sequence[float]) -> None:
    around = mean_interval(values)

    assert around is None or around[0] <= fmean(values) + 1e-6 <= around[1] + 2e-6


@pytest.mark.parametrize("values", [[], [3.0], [1.0, math.nan], [math.inf, 1.0]])
def test_what_says_nothing_has_no_interval(values: Sequence[float]) -> None:
    assert mean_interval(values) is None
    assert change_interval(0.0, values) is None


def test_rows_that_are_not_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        change_interval([1.0], [1.0, 2.0])


def test_wilsons_interval_is_never_certain() -> None:
    assert wilson(1.0, 4) == pytest.approx((0.5101, 1.0), abs=1e-4)
