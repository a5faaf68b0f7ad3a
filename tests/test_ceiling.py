"""The ceiling: closed forms of a toy, what lies above it, and the best of n against really choosing.

The toy: an answer has 8 tokens, each even with probability 1/2, and its reward is the share of even ones. The policy
that has the most of reward - b KL draws even tokens with p* = sigmoid(1 / (8 b)), whatever the others are.
"""

import math
from itertools import combinations, pairwise
from statistics import fmean, stdev

import numpy as np
import pytest

from alignkit.ceiling import (
    Attained,
    Table,
    best_of,
    best_of_kl,
    ceiling_curve,
    evenly,
    held_against,
    reliable_kl,
    temperature_at,
    tilt,
)

LENGTH = 8
PROMPTS, SAMPLES = 256, 128


def drawn(even: float, prompts: int, answers: int, seed: int) -> Table:
    """Return rewards of answers whose tokens are even with this probability."""
    return np.random.default_rng(seed).binomial(LENGTH, even, size=(prompts, answers)) / LENGTH


def kl_of(even: float) -> float:
    return LENGTH * (even * math.log(2 * even) + (1 - even) * math.log(2 - 2 * even))


def log_ratios(rewards: Table, even: float) -> Table:
    """Return log p - log q of answers with such rewards, p drawing even tokens so often and q half of the time."""
    return LENGTH * (rewards * math.log(2 * even) + (1 - rewards) * math.log(2 - 2 * even))


@pytest.fixture(scope="module")
def pool() -> Table:
    return drawn(0.5, PROMPTS, SAMPLES, seed=1)


def held(pool: Table, even: float, *, wrongly: float = 1.0, prompts: int = PROMPTS) -> Attained:
    """Hold the toy's policy against the ceiling, its KL measured so many times too large."""
    rewards = drawn(even, prompts, 1, seed=2)[:, 0]
    return held_against(pool, rewards.tolist(), (wrongly * log_ratios(rewards, even)).tolist())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.3, 0.2, 0.15, 0.1])
def test_the_ceiling_of_a_toy_is_its_closed_form(pool: Table, temperature: float) -> None:
    even = 1 / (1 + math.exp(-1 / (LENGTH * temperature)))

    found = tilt(pool, temperature)

    assert found.reward.mean() == pytest.approx(even, abs=0.01)
    assert found.bound(temperature).mean() == pytest.approx(even - temperature * kl_of(even), abs=0.01)
    assert found.kl.mean() == pytest.approx(kl_of(even), abs=0.05)


def test_a_jackknife_takes_off_what_few_answers_make_too_low() -> None:
    few, temperature = drawn(0.5, 4096, 16, seed=3), 0.15
    truth = temperature * LENGTH * math.log((1 + math.exp(1 / (LENGTH * temperature))) / 2)
    high = few.max(axis=1)
    plain = high + temperature * np.log(np.exp((few - high[:, None]) / temperature).mean(axis=1))

    bias = [abs(float(values.mean()) - truth) for values in (plain, tilt(few, temperature).bound(temperature))]

    assert bias[1] < bias[0] / 3


def test_the_temperature_of_a_kl_has_that_kl(pool: Table) -> None:
    found = temperature_at(pool, 1.3)

    assert tilt(pool, found).kl.mean() == pytest.approx(1.3, abs=1e-6)


def test_the_curve_rises_from_the_start_to_where_the_answers_are_reliable(pool: Table) -> None:
    curve = ceiling_curve(pool)

    assert (curve[0].kl, curve[0].reward) == (0, pytest.approx(pool.mean()))
    assert curve[-1].kl == pytest.approx(math.log(SAMPLES) - 2)
    assert all(one.kl < two.kl and one.reward <= two.reward for one, two in pairwise(curve))


def test_where_no_answer_is_better_than_another_the_curve_is_level() -> None:
    assert [point[:2] for point in ceiling_curve(np.ones((4, 16)))] == [(0.0, 1.0), (math.log(16) - 2, 1.0)]


def test_of_right_and_wrong_answers_the_curve_is_level_from_where_all_are_right() -> None:
    *_, right, end = ceiling_curve(np.tile([0.0, 1.0], (64, 64)))

    assert right.reward == end.reward == pytest.approx(1, abs=0.01)
    assert right.kl == pytest.approx(math.log(2), abs=0.05)
    assert end.kl == pytest.approx(math.log(128) - 2)


def test_the_best_policy_has_all_that_is_attainable_and_is_not_above_it(pool: Table) -> None:
    found = held(pool, 0.75)

    assert found.share is not None
    assert found.interval is not None
    assert found.interval[0] < 1 < found.interval[1]
    assert found.share == pytest.approx(1, abs=0.05)
    assert fmean(found.by_prompt) == pytest.approx(found.share)
    assert not found.above
    assert abs(found.excess) < 3 * found.excess_error


@pytest.mark.parametrize("wrongly", [0.5, 0.0])
def test_a_policy_whose_kl_is_measured_too_small_is_above_the_ceiling(pool: Table, wrongly: float) -> None:
    assert held(pool, 0.75, wrongly=wrongly).above


def test_a_policy_that_only_moves_away_has_nothing_of_what_is_attainable(pool: Table) -> None:
    rewards = drawn(0.5, PROMPTS, 1, seed=4)[:, 0]

    found = held_against(pool, rewards.tolist(), [1.0] * PROMPTS)

    assert found.share == pytest.approx(0, abs=0.15)  # 3 standard errors
    assert found.excess < 0


@pytest.mark.parametrize("even", [0.5, 0.97])
def test_a_policy_that_has_not_moved_or_is_beyond_the_curve_has_no_share(pool: Table, even: float) -> None:
    found = held(pool, even)

    assert (found.share, found.interval, found.by_prompt) == (None, None, ())
    assert not found.above


def test_a_pool_of_some_prompts_tells_the_same_with_a_wider_interval(pool: Table) -> None:
    whole, part = held(pool, 0.7), held(pool[evenly(PROMPTS, 64)], 0.7)

    assert whole.share is not None
    assert part.share is not None
    assert part.interval is not None
    assert whole.interval is not None
    assert part.interval[0] < whole.share < part.interval[1]
    assert whole.interval[1] - whole.interval[0] < part.interval[1] - part.interval[0]


def test_so_many_places_are_evenly_spaced() -> None:
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(3, 3) == [0, 1, 2]


def test_the_best_of_n_is_the_mean_over_all_subsets() -> None:
    chosen_by, measured = np.array([[3.0, 1.0, 2.0, 5.0]]), np.array([[0.1, 0.9, 0.4, 0.2]])
    by_hand = fmean(measured[0, max(some, key=lambda i: chosen_by[0, i])] for some in combinations(range(4), 2))

    assert best_of(chosen_by, measured, 2)[0] == pytest.approx(by_hand)
    assert best_of(chosen_by, measured, 4)[0] == pytest.approx(0.2)
    assert best_of(chosen_by, measured, 1)[0] == pytest.approx(measured.mean())


def test_the_best_of_4_from_a_pool_is_that_of_really_choosing(pool: Table) -> None:
    really = drawn(0.5, 2048, 4, seed=5).max(axis=1).tolist()
    from_pool = best_of(pool, pool, 4).tolist()

    error = math.hypot(*(stdev(values) / math.sqrt(len(values)) for values in (really, from_pool)))
    assert abs(fmean(really) - fmean(from_pool)) < 2 * error


def test_the_kl_of_the_best_of_n_has_a_bound() -> None:
    assert best_of_kl(1) == 0
    assert best_of_kl(4) == pytest.approx(math.log(4) - 0.75)
    assert reliable_kl(64) == pytest.approx(math.log(64) - 2)
