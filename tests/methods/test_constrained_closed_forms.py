"""Where a constrained training ends is known: at start * exp((score - multiplier * cost) / kl_coef) / Z, the multiplier
such that the mean cost is the bound.

Of 16 tokens the even ones are rewarded, and the four lowest of these cost. Tokens do not depend on each other, so that
a token's share is exp((score - multiplier * cost) / (length * kl_coef)) / Z.
"""

import math
from dataclasses import replace
from statistics import fmean
from types import ModuleType

import pytest
import torch
from test_group_closed_forms import grpo_settings, rloo_settings
from test_ppo_closed_forms import KL_COEF, settings as ppo_settings
from tiny_models import STOP, uniform_models

from alignkit.contract.constraint import Constraint
from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.methods import grpo, ppo, rloo
from alignkit.training.multipliers import Multiplier
from alignkit.training.rollouts import Rollout
from alignkit.training.scoring import Scored
from alignkit.training.updates import Loop, start

LENGTH, TOKENS = 8, 16
BOUND = 0.1
COSTLY = (0, 2, 4, 6)


def scored(rollout: Rollout) -> Scored:
    even = torch.tensor([[token % 2 == 0 for token in answer] for answer in rollout.answers]).float().mean(dim=1)
    costly = torch.tensor([[token in COSTLY for token in answer] for answer in rollout.answers]).float().mean(dim=1)
    return Scored(even, {"even": even}, {"costly": costly})


def best() -> tuple[float, float]:
    """Give the multiplier at the optimum and its score: 4 x / (4 x + 4 y + 8) = bound, y = exp(1 / (8 kl_coef)) and
    x = y ** (1 - multiplier)."""
    y = math.exp(1 / (LENGTH * KL_COEF))
    x = BOUND * (4 * y + 8) / (4 * (1 - BOUND))
    return 1 - math.log(x) / math.log(y), (4 * x + 4 * y) / (4 * x + 4 * y + 8)


def trained(method: ModuleType, settings: SamplingSettings, seed: int) -> list[dict[str, float]]:
    models = uniform_models(TOKENS, seed, frozenset())
    models = models if method is ppo else replace(models, critic=None)
    log: list[dict[str, float]] = []
    state = start(models, settings, 3e-3)
    state.multipliers["costly"] = Multiplier.of(Constraint(max=BOUND, learning_rate=0.3))
    method.train(Loop(models, state, [[STOP]], scored, settings, seed, lambda _, metrics: log.append(dict(metrics))))
    return log


def mean_of_last_half(log: list[dict[str, float]], name: str) -> float:
    """Average over many updates: what a noisy mean cost moves a multiplier by comes to nothing."""
    return fmean(figures[name] for figures in log[len(log) // 2 :])


SHORT = rloo_settings(LENGTH, 0, updates=50, epochs=2)
SETTINGS = {
    ppo: ppo_settings(100, LENGTH, 0),
    rloo: rloo_settings(LENGTH, 0, updates=100, epochs=4),
    grpo: grpo_settings(LENGTH, 0, updates=150),
}
LONG = [(method, given, seed) for method, given in SETTINGS.items() for seed in (1, 2)]
CASES = [(rloo, SHORT, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG)]


@pytest.mark.parametrize(("method", "settings", "seed"), CASES)
def test_the_multiplier_comes_to_where_the_best_policy_costs_the_bound(method, settings, seed) -> None:
    log = trained(method, settings, seed)

    multiplier, score = best()
    assert multiplier == pytest.approx(1.3954, abs=1e-4)
    assert mean_of_last_half(log, "lambda/costly") == pytest.approx(multiplier, abs=0.1)
    assert mean_of_last_half(log, "cost/costly") == pytest.approx(BOUND, abs=0.01)
    assert mean_of_last_half(log, "objective/scores") == pytest.approx(score, abs=0.015)
