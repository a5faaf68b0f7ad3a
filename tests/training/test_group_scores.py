"""Advantages of answers to one prompt: worked by hand, counted out, and against torch's own distributions."""

from itertools import combinations
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Beta

from alignkit.training.group_scores import best_of_advantages, beta_density, group_advantages
from alignkit.training.losses import most_uncertain, overlong, rewards_to_go

SCORES = torch.tensor([1, 2, 3, 6, 4, 4, 4, 4], dtype=torch.float64)
LENGTHS = torch.tensor([1, 1, 2, 4, 5, 5, 5, 5], dtype=torch.float64)


def assert_equal(given: Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(given, torch.tensor(wanted, dtype=given.dtype))


@pytest.mark.parametrize(
    ("baseline", "wanted"),
    [
        ("group", [-2, -1, 0, 3]),
        ("others", [1 - 11 / 3, 2 - 10 / 3, 0, 6 - 2]),
        ("length", [-3.125, -2.125, -1.125, 1.875]),  # (1 + 2 + 2 * 3 + 4 * 6) / 8 = 4.125
        ("none", [1, 2, 3, 6]),
    ],
)
def test_golden_baselines(baseline: Any, wanted: list[float]) -> None:
    found = group_advantages(SCORES, 4, "none", baseline, LENGTHS)

    assert_equal(found[:4], wanted)
    assert_equal(found[4:], [4 if baseline == "none" else 0] * 4)


def test_equal_lengths_make_the_mean_of_the_group() -> None:
    equal = torch.full_like(LENGTHS, 3)

    torch.testing.assert_close(
        group_advantages(SCORES, 4, "none", "length", equal), group_advantages(SCORES, 4, "none")
    )


def test_answers_without_tokens_have_an_advantage_all_the_same() -> None:
    assert group_advantages(SCORES, 4, "none", "length", 0 * LENGTHS).isfinite().all()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("scaled", [True, False])
def test_an_answer_is_judged_by_the_teams_that_it_is_in(k: int, scaled: bool) -> None:
    scores = [0.0, 1.0, 1.0, 0.0, 3.5, -2.0]

    found = best_of_advantages(torch.tensor(scores * 2, dtype=torch.float64), 6, k, scaled)

    teams = list(combinations(range(6), k))
    best = [max(scores[one] for one in team) for team in teams]
    deviation = pstdev(best) + 1e-4 if scaled else 1.0
    wanted = [
        (fmean(score for team, score in zip(teams, best, strict=True) if one in team) - fmean(best)) / deviation
        for one in range(6)
    ]
    assert_equal(found, wanted * 2)


def test_passes_at_k_have_the_advantages_of_the_paper() -> None:
    # 2 of 6 answers are right and k is 3: 4 of 20 teams have none, and of the 10 that a wrong answer is in, 3.
    found = best_of_advantages(torch.tensor([1, 0, 0, 1, 0, 0], dtype=torch.float64), 6, 3, scaled=True)

    mean = 1 - 4 / 20
    deviation = (mean * (1 - mean)) ** 0.5 + 1e-4
    right, wrong = (1 - mean) / deviation, (1 - mean - 3 / 10) / deviation
    assert_equal(found, [right, wrong, wrong, right, wrong, wrong])


def test_the_density_is_that_of_the_distribution_that_the_means_suggest() -> None:
    means = torch.tensor([0.2, 0.5, 0.9, 0.6], dtype=torch.float64)[:, None]

    size = means.mean() * (1 - means.mean()) / means.var() - 1
    wanted = Beta(1 + size * means.mean() / 3, 1 + size * (1 - means.mean()) / 3).log_prob(means).exp()
    torch.testing.assert_close(beta_density(means), wanted)


def test_means_spread_over_all_values_leave_advantages_as_they_are() -> None:
    # Beta(a, b) with a and b below 0 is taken for a flat one: REINFORCE with a baseline
    scores = torch.tensor([0, 0, 1, 1], dtype=torch.float64)

    torch.testing.assert_close(beta_density(torch.tensor([[0.0], [1.0]])), torch.ones(2, 1))
    assert_equal(group_advantages(scores, 2, "beta"), [0, 0, 0, 0])


def test_one_prompt_alone_is_divided_by_nothing() -> None:
    assert_equal(group_advantages(torch.tensor([0.0, 1.0]), 2, "beta"), [-0.5, 0.5])


def test_prompts_of_one_difficulty_and_prompts_that_are_always_answered_well_keep_numbers_finite() -> None:
    for scores in ([0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]):
        assert group_advantages(torch.tensor(scores).double(), 2, "beta").isfinite().all()


def test_rewards_to_go_are_what_a_token_and_those_behind_it_earn() -> None:
    assert_equal(rewards_to_go(torch.tensor([[1.0, -2.0, 4.0]])), [[3, 2, 4]])  # type: ignore[list-item]


@pytest.mark.parametrize(("share", "kept"), [(0.2, [0, 1, 0, 0]), (0.5, [1, 1, 0, 0]), (0.51, [1, 1, 0, 1])])
def test_the_most_uncertain_tokens_are_those_of_highest_entropy_under_the_mask(share: float, kept: list[int]) -> None:
    entropy, mask = torch.tensor([[0.5, 0.9], [9.0, 0.1]]), torch.tensor([[True, True], [False, True]])
    wide = torch.tensor([[0.5, 0.9, 9.0, 0.1, 0.2]]), torch.tensor([[True, True, False, True, True]])

    assert most_uncertain(*wide, share)[0, [0, 1, 2, 4]].int().tolist() == kept
    assert most_uncertain(entropy, mask, 1.0).tolist() == mask.tolist()
    assert not most_uncertain(entropy, torch.zeros_like(mask), share).any()


def test_golden_overlong_penalty() -> None:
    # of 20 tokens the last fifth is charged for: 17 pays a quarter
    assert_equal(overlong(torch.tensor([3, 16, 17, 18, 20]), 20, 0.2), [0, 0, 0.25, 0.5, 1])
