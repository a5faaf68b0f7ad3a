"""Where rloo and grpo end is known, and it is not the same place: see what grpo's file says about its pull.

RLOO's gradient is the unbiased one of E[score] - kl_coef * KL, so it ends where PPO ends. GRPO runs with
`scale = "none"`, because dividing by a group's deviation changes the trade of score against KL from update to update,
and with `average = "fixed"`, because the other averages let a token weigh less in a long answer. Its advantages are
1 - 1/answers of RLOO's while its pull is whole, so `KL_COEF * (1 - 1/answers)` is what trades like KL_COEF.
"""

import math
from dataclasses import replace
from functools import cache
from types import ModuleType

import pytest
from test_ppo_closed_forms import (
    KL_COEF,
    as_scores,
    best_objective_of_ended_answers as best_objective,
    even_tokens,
    last_10,
)
from tiny_models import STOP, uniform_models, updated

from alignkit.contract.sampling_settings import KL, Generation
from alignkit.methods import grpo, rloo
from alignkit.training.rollouts import Rollout
from alignkit.training.scoring import Scored

SEEDS = [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
ANSWERS = 8
TRAINING = {"learning_rate": 3e-3, "batch": 128, "answers": ANSWERS}


def rloo_settings(longest: int, penalty: float, **given) -> rloo.RLOOSettings:
    generation = Generation(max_new_tokens=longest, unfinished="subtract", penalty=penalty)
    return rloo.RLOOSettings(**TRAINING, kl=KL(coef=KL_COEF), generation=generation, **given)


def grpo_settings(longest: int, penalty: float, corrected: bool = True, **given) -> grpo.GRPOSettings:
    generation = Generation(max_new_tokens=longest, unfinished="subtract", penalty=penalty)
    kl = grpo.GroupKL(coef=KL_COEF * (1 - 1 / ANSWERS), corrected=corrected)
    return grpo.GRPOSettings(**TRAINING, kl=kl, scale="none", average="fixed", generation=generation, **given)


def ending(
    method: ModuleType, settings, vocabulary: int, stop: frozenset[int], score, seed: int
) -> tuple[float, float]:
    """Train, and give the score and the KL of the last updates."""
    models = replace(uniform_models(vocabulary, seed, stop), critic=None)
    log = updated(method.train, models, settings, [[STOP]], score, seed)
    return last_10(log, "objective/scores"), last_10(log, "objective/kl")


def kl_of_share(share: float, length: int = 8) -> float:
    """Give the KL of answers whose tokens are even with this chance, from answers whose are with a half."""
    return length * (share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share)))


def best_share() -> float:
    return 1 / (1 + math.exp(-1 / (8 * KL_COEF)))


@pytest.mark.parametrize("seed", SEEDS)
def test_rloo_reaches_the_optimum_of_answers_of_fixed_length(seed) -> None:
    settings = rloo_settings(8, 0, updates=60, epochs=4)

    score, kl = ending(rloo, settings, 16, frozenset(), even_tokens, seed)

    assert score - KL_COEF * kl == pytest.approx(0.6470, abs=0.005)
    assert kl == pytest.approx(kl_of_share(best_share()), abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_grpo_reaches_the_optimum_of_answers_of_fixed_length(seed) -> None:
    """A token's choice leads to no later departure here, so that paying for its own is exact."""
    settings = grpo_settings(8, 0, updates=150)

    score, kl = ending(grpo, settings, 16, frozenset(), even_tokens, seed)

    assert score - KL_COEF * kl == pytest.approx(0.6470, abs=0.005)
    assert kl == pytest.approx(kl_of_share(best_share()), abs=0.15)


def share_by_the_pull_of_the_paper() -> float:
    """Solve for where scores and the gradient of KL(start || policy) balance.

    A token of value q pushes its logit by p (q - mean q), the pull by kl_coef (1/2 - p). With q = 1/8 for even tokens:
    p (1 - p) / 8 = kl_coef (p - 1/2), a quadratic equation.
    """
    linear = 1 - 8 * KL_COEF
    return (linear + math.sqrt(linear**2 + 16 * KL_COEF)) / 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_pull_of_the_paper_ends_elsewhere(seed) -> None:
    settings = grpo_settings(8, 0, corrected=False, updates=150)

    score, kl = ending(grpo, settings, 16, frozenset(), even_tokens, seed)

    assert share_by_the_pull_of_the_paper() == pytest.approx(0.7403, abs=1e-4)
    assert score == pytest.approx(0.7403, abs=0.01)
    assert kl == pytest.approx(kl_of_share(0.7403), abs=0.1)


def ones(rollout: Rollout) -> Scored:
    return as_scores([answer.count(1) / 5 for answer in rollout.answers])


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_rloo_comes_near_the_optimum_of_answers_that_end_by_themselves(seed) -> None:
    settings = rloo_settings(5, 0.5, updates=60, epochs=4)

    score, kl = ending(rloo, settings, 5, frozenset([STOP]), ones, seed)

    assert best_objective() == pytest.approx(0.19826, abs=1e-5)
    assert 0.19 <= score - KL_COEF * kl < 0.205


@cache
def where_tokens_pay_for_themselves(place: int = 0, found: int = 0) -> tuple[float, float]:
    """Give score and KL from a place of an answer on, if each token is chosen by start * exp(score to come / kl_coef).

    That is where a pull in the loss balances: at each place, by the KL of that place alone. In PPO and RLOO the KL to
    come would be taken off the score to come.
    """
    outcomes = []
    for token in range(5):
        ones = found + (token == 1)
        if token == STOP or place == 4:
            outcomes.append((ones / 5 - 0.5 * (token != STOP), 0.0))
        else:
            outcomes.append(where_tokens_pay_for_themselves(place + 1, ones))
    weights = [math.exp(score / KL_COEF) for score, _ in outcomes]
    shares = [weight / sum(weights) for weight in weights]
    score = sum(share * score for share, (score, _) in zip(shares, outcomes, strict=True))
    return score, sum(share * (math.log(5 * share) + kl) for share, (_, kl) in zip(shares, outcomes, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_grpo_ends_where_each_token_pays_for_itself(seed) -> None:
    settings = grpo_settings(5, 0.5, updates=60, epochs=4)

    score, kl = ending(grpo, settings, 5, frozenset([STOP]), ones, seed)

    assert where_tokens_pay_for_themselves() == (pytest.approx(0.52025, abs=1e-5), pytest.approx(3.44213, abs=1e-5))
    # Along this line score and KL trade at nearly their price, so that noise moves both; RLOO ends at 0.447 and 2.49.
    assert score == pytest.approx(0.52025, abs=0.04)
    assert kl == pytest.approx(3.44213, abs=0.45)
    assert score - KL_COEF * kl == pytest.approx(0.17603, abs=0.01)
