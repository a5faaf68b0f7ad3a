"""Where methods end that learn from preferences among a policy's own answers, or from the best of them, is known.

Online DPO with soft labels, ReMax and best-of-n with a pull end where PPO does: start * exp(score / kl_coef) / Z.
Online IPO and Nash-MD end at the policy that answers best to its opponent, start * exp(P(better than the opponent's) /
kl_coef) / Z, which against itself is the Nash equilibrium of the regularised game (Munos et al. 2023, arXiv 2312.00886,
section 3).
"""

import math
from dataclasses import replace
from functools import partial

import pytest
from alignkit_online.nash_md import NashMDSettings, train as train_nash
from alignkit_online.online_dpo import OnlineDPOSettings, train as train_dpo
from alignkit_online.preferring import PairKL
from alignkit_online.remax import ReMaxSettings, train as train_remax
from test_ppo_closed_forms import as_scores, even_tokens, last_10
from tiny_models import uniform_models, updated

from alignkit.contract.sampling_settings import KL, Generation
from alignkit.methods import best_of_n
from alignkit.training.rollouts import Rollout
from alignkit.training.scoring import Scored

slow = pytest.mark.slow
SEEDS = [1, pytest.param(2, marks=slow), pytest.param(3, marks=slow)]
LENGTH = 4
TRAINING = {
    "learning_rate": 4e-3,
    "updates": 60,
    "batch": 128,
    "minibatches": 2,
    "generation": Generation(max_new_tokens=LENGTH, unfinished="subtract", penalty=0),
}
KL_COEF = 0.2
GAME_COEF = 0.1
GAME = 4.0
"""By how much an answer of even tokens alone scores more than one of odd tokens, in nats of Bradley and Terry."""


def ending(train, settings, score, seed: int) -> tuple[float, float]:
    """Train, and give the score and the KL of the last updates."""
    models = replace(uniform_models(16, seed, frozenset()), critic=None)
    log = updated(train, models, settings, [[1]], score, seed)
    return last_10(log, "objective/scores"), last_10(log, "objective/kl")


def kl_of_share(share: float) -> float:
    """Give the KL of answers whose tokens are even with this chance, from answers whose are with a half."""
    return LENGTH * (share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share)))


def check_optimum(score: float, kl: float) -> None:
    """Compare with the best trade of score against KL, of which each token has its own part."""
    best = 1 / (1 + math.exp(-1 / (LENGTH * KL_COEF)))
    assert score - KL_COEF * kl == pytest.approx(best - KL_COEF * kl_of_share(best), abs=0.005)
    assert kl == pytest.approx(kl_of_share(best), abs=0.15)


@pytest.mark.parametrize("seed", SEEDS)
def test_online_dpo_with_soft_labels_reaches_the_optimum_of_scores(seed) -> None:
    kl = PairKL(coef=KL_COEF)
    settings = OnlineDPOSettings(**TRAINING, epochs=2, labels="soft", kl=kl)

    check_optimum(*ending(train_dpo, settings, even_tokens, seed))


@slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_remax_reaches_the_optimum_of_scores(seed) -> None:
    settings = ReMaxSettings(**TRAINING, epochs=4, kl=KL(coef=KL_COEF))

    check_optimum(*ending(train_remax, settings, even_tokens, seed))


@slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_best_of_n_with_a_pull_settles_at_the_optimum_of_scores(seed) -> None:
    settings = best_of_n.BestOfNSettings(**TRAINING | {"updates": 120}, answers=2, kl=KL(coef=KL_COEF))

    check_optimum(*ending(best_of_n.train, settings, even_tokens, seed))


def game(rollout: Rollout) -> Scored:
    return as_scores([GAME * value for value in even_tokens(rollout).total.tolist()])


def equilibrium(mixture: float = 0.0) -> tuple[float, float]:
    """Solve for the score and the KL where a policy answers best to its opponent, policy^(1 - mixture) * start^mixture.

    Answers with equally many even tokens are equally likely, so that the game has LENGTH + 1 of them.
    """
    answers = range(LENGTH + 1)
    start = [math.comb(LENGTH, even) / 2**LENGTH for even in answers]
    better = [[1 / (1 + math.exp(GAME * (other - one) / LENGTH)) for other in answers] for one in answers]
    policy = start
    for _ in range(500):
        opponent = normalised([p ** (1 - mixture) * s**mixture for p, s in zip(policy, start, strict=True)])
        wins = [sum(q * chance for q, chance in zip(opponent, row, strict=True)) for row in better]
        best = normalised([s * math.exp(win / GAME_COEF) for s, win in zip(start, wins, strict=True)])
        policy = [0.9 * p + 0.1 * b for p, b in zip(policy, best, strict=True)]
    score = sum(p * GAME * even / LENGTH for even, p in enumerate(policy))
    return score, sum(p * math.log(p / s) for p, s in zip(policy, start, strict=True))


def normalised(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


close = partial(pytest.approx, abs=0.15)


def test_who_plays_against_their_start_wins_by_less() -> None:
    assert equilibrium() == (pytest.approx(3.5274, abs=1e-4), pytest.approx(1.3342, abs=1e-4))
    assert equilibrium(1.0) == (pytest.approx(3.3620, abs=1e-4), pytest.approx(1.0237, abs=1e-4))


@slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_online_ipo_with_soft_labels_reaches_the_equilibrium(seed) -> None:
    kl = PairKL(coef=GAME_COEF)
    settings = OnlineDPOSettings(**TRAINING, epochs=2, labels="soft", loss="ipo", kl=kl)

    score, kl = ending(train_dpo, settings, game, seed)

    assert (score, kl) == (close(equilibrium()[0]), close(equilibrium()[1]))


@slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("mixture", [0.0, 1.0])
def test_nash_md_answers_best_to_its_opponent(seed, mixture) -> None:
    settings = NashMDSettings(**TRAINING, epochs=2, mixture=mixture, kl=KL(coef=GAME_COEF))

    score, kl = ending(train_nash, settings, game, seed)

    assert (score, kl) == (close(equilibrium(mixture)[0]), close(equilibrium(mixture)[1]))
