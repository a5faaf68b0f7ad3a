"""Where PPO ends is known: the best policy is start * exp(score / kl_coef) / Z, and its objective kl_coef * log Z.

A wrong sign, mask, placement or scale anywhere in the method misses these numbers.
"""

import copy
import math
from itertools import product

import pytest
import torch
from tiny_models import STOP, laid_out, two_layers_and_a_peaked_start, uniform_models, updated
from torch import Tensor
from transformers import PreTrainedModel

from alignkit.contract.settings import Optimisation
from alignkit.methods.ppo import KL, CriticSettings, Generation, PPOSettings, train
from alignkit.training.layouts import Models
from alignkit.training.rollouts import Rollout, answer_logprobs, answer_mask
from alignkit.training.scoring import Scored

KL_COEF = 0.1


def settings(updates: int, longest: int, penalty: float) -> PPOSettings:
    return PPOSettings(
        learning_rate=3e-3,
        updates=updates,
        batch=128,
        kl=KL(coef=KL_COEF),
        critic=CriticSettings(learning_rate=3e-3),
        generation=Generation(max_new_tokens=longest, unfinished="subtract", penalty=penalty),
        optimisation=Optimisation(),
    )


def as_scores(values: list[float]) -> Scored:
    scores = torch.tensor(values)
    return Scored(scores, {"known": scores})


def last_10(log: list[dict[str, float]], name: str) -> float:
    return sum(figures[name] for figures in log[-10:]) / 10


def even_tokens(rollout: Rollout) -> Scored:
    return as_scores([sum(token % 2 == 0 for token in answer) / len(answer) for answer in rollout.answers])


SEEDS = [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]


@pytest.mark.parametrize("layout", ["separate", pytest.param("shared", marks=pytest.mark.slow)])
@pytest.mark.parametrize("seed", SEEDS)
def test_answers_of_fixed_length_reach_the_known_optimum(seed, layout) -> None:
    length, share = 8, 1 / (1 + math.exp(-1 / (8 * KL_COEF)))
    best_kl = length * (share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share)))
    models = laid_out(uniform_models(vocabulary=16, seed=seed, stop=frozenset()), layout)
    given = settings(60, length, penalty=0)

    log = updated(train, models, given, [[1]], even_tokens, seed)

    assert share - KL_COEF * best_kl == pytest.approx(0.6470, abs=1e-4)
    assert last_10(log, "objective/rlhf_reward") == pytest.approx(0.6470, abs=0.01)
    # A head on one small body learns more slowly, and the objective is flat around its top.
    assert last_10(log, "objective/kl") == pytest.approx(best_kl, abs=0.15 if layout == "separate" else 0.25)


def ones_and_an_end(answer: list[int]) -> float:
    """Reward tokens 1, of at most 5, and take a half off answers that do not end."""
    return answer.count(1) / 5 - 0.5 * (answer[-1] != STOP)


def all_answers() -> list[list[int]]:
    """Enumerate all 1,365 answers of at most 5 tokens out of 5, token 0 ending them."""
    return [
        [*body, last]
        for length in range(1, 6)
        for body in product(range(1, 5), repeat=length - 1)
        for last in (range(5) if length == 5 else [STOP])
    ]


def best_objective_of_ended_answers() -> float:
    expected = sum(5.0 ** -len(answer) * math.exp(ones_and_an_end(answer) / KL_COEF) for answer in all_answers())
    return KL_COEF * math.log(expected)


def ones(rollout: Rollout) -> Scored:
    return as_scores([answer.count(1) / 5 for answer in rollout.answers])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["separate", "shared"])
@pytest.mark.parametrize("seed", SEEDS)
def test_answers_that_end_by_themselves_come_near_the_known_optimum(seed, layout) -> None:
    models = laid_out(uniform_models(vocabulary=5, seed=seed, stop=frozenset([STOP])), layout)
    given = settings(80, 5, penalty=0.5)

    log = updated(train, models, given, [[STOP]], ones, seed)

    assert best_objective_of_ended_answers() == pytest.approx(0.19826, abs=1e-5)
    assert 0.17 <= last_10(log, "objective/rlhf_reward") < 0.205


def logprobs_of_all(model: PreTrainedModel) -> Tensor:
    answers = all_answers()
    with torch.no_grad():
        table = answer_logprobs(model, [[STOP]] * len(answers), answers)
    return table.masked_fill(~answer_mask(answers), 0.0).sum(dim=1)


@pytest.mark.slow
def test_frozen_lower_layers_leave_nearly_the_optimum_of_all_weights() -> None:
    """The objective is exact here: every answer is weighed by its probability."""
    policy = two_layers_and_a_peaked_start(vocabulary=5, seed=2)
    start_logprobs, rewards = logprobs_of_all(policy), torch.tensor(list(map(ones_and_an_end, all_answers())))
    best = float(KL_COEF * (start_logprobs + rewards / KL_COEF).logsumexp(0))
    models = laid_out(Models(policy, copy.deepcopy(policy), None, frozenset([STOP])), "frozen")
    given = settings(80, 5, penalty=0.5)

    updated(train, models, given, [[STOP]], ones, 2)

    logprobs = logprobs_of_all(policy)
    reached = float((logprobs.exp() * (rewards - KL_COEF * (logprobs - start_logprobs))).sum())
    assert float((start_logprobs.exp() * rewards).sum()) < 0.1
    assert 0.95 * best <= reached <= best
