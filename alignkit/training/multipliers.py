"""Bounds on costs by Lagrange multipliers: reward is maximised while the mean of each cost keeps its bound.

max_policy min_{l >= 0} E[r] - kl_coef KL - sum_i l_i (E[c_i] - bound_i), by turns: a step of the policy at the present
multipliers, then one of the multipliers against the mean costs of the same answers (Ray et al. 2019, "Benchmarking Safe
Exploration in Deep Reinforcement Learning"; Tessler et al. 2018, arXiv 1805.11074; for language models Dai et al. 2023,
arXiv 2310.12773). Where it ends, the policy is start * exp((r - sum_i l_i c_i) / kl_coef) / Z.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.contract.constraint import Constraint
from alignkit.errors import PluginError
from alignkit.training import losses
from alignkit.training.seen import Seen


@dataclass
class Multiplier:
    """What a unit of a cost takes off the reward."""

    constraint: Constraint
    value: float
    followed: float = 0.0
    """The sum of all steps, without what the last update alone adds."""
    scale: float = 0.0
    """Standard deviation of the reward over the variance of the cost, in the first update in which both differ from
    answer to answer; until then the multiplier stays."""

    @classmethod
    def of(cls, constraint: Constraint) -> "Multiplier":
        """Return the multiplier of a constraint before the first update."""
        return cls(constraint, constraint.start, constraint.start)

    def ascend(self, mean: float, cost_std: float, reward_std: float) -> None:
        """Take a step against the mean cost of an update."""
        constraint = self.constraint
        if not self.scale and cost_std:
            self.scale = reward_std / cost_std**2
        excess = self.scale * constraint.sign * (mean - constraint.bound)
        cap = math.inf if constraint.cap is None else constraint.cap
        self.followed = losses.dual_ascent(self.followed, excess, constraint.learning_rate, cap)
        self.value = losses.dual_ascent(self.followed, excess, constraint.gain, cap)


def charged(seen: Seen, costs: Mapping[str, Tensor], multipliers: Mapping[str, Multiplier]) -> Seen:
    """Return what was seen with scores less what their costs (n,) take off, and the pull to the start on that scale."""
    if not multipliers:
        return seen
    limits = {name: one.constraint for name, one in multipliers.items()}
    found = {name: costs[name].to(seen.scores) for name in multipliers}
    excess = torch.stack([limits[name].sign * (cost - limits[name].bound) for name, cost in found.items()])  # (k, n)
    values = seen.scores.new_tensor([one.value for one in multipliers.values()])
    metrics = {
        **{f"cost/{name}": float(cost.mean()) for name, cost in found.items()},
        **{f"cost_std/{name}": float(cost.std(unbiased=False)) for name, cost in found.items()},
        **{f"lambda/{name}": one.value for name, one in multipliers.items()},
    }
    return seen._replace(
        scores=losses.lagrangian_scores(seen.scores, excess, values),
        kl_coef=seen.kl_coef / (1 + float(values.sum())),
        metrics={**seen.metrics, **metrics},
    )


def ascend(multipliers: Mapping[str, Multiplier], metrics: Mapping[str, float]) -> None:
    """Step all multipliers after an update. Raise PluginError where its metrics do not tell the costs."""
    for name, multiplier in multipliers.items():
        if f"cost/{name}" not in metrics:
            raise PluginError(f"an update was ended without its cost/{name}", remedy="pass the metrics of its Seen on")
        std = metrics["objective/scores_std"]
        multiplier.ascend(metrics[f"cost/{name}"], metrics[f"cost_std/{name}"], std)
