"""The ceiling: the best reward that there is at each KL from a start policy, told by the start policy's own answers.

Of N answers y_j to a prompt, drawn from the start p, with rewards r_j, and a temperature b > 0:

    w_j = exp(r_j / b) / sum_k exp(r_k / b)
    J(b) = mean over prompts of sum_j w_j r_j
    KL(b) = mean over prompts of sum_j w_j log(N w_j)
    F(b) = mean over prompts of b log((1 / N) sum_j exp(r_j / b)) = J(b) - b KL(b)

By Gibbs' variational principle (Donsker and Varadhan 1975, Communications on Pure and Applied Mathematics 28; for
language models Korbak et al. 2022, arXiv 2205.11275) every policy has, at each prompt, E[r] - b KL <= F(b), and
p exp(r / b), normalised, reaches it. So (KL(b), J(b)) is the best curve there is: with one b for all prompts, since b
is the Lagrange multiplier of the mean KL, and with b as its slope. Where a policy with a mean KL of k is held against
it, at the b whose KL(b) is k, the ceiling is F(b) + b k, the curve's tangent, and what holds for any b holds here.

The answers with the greatest weights are rare: what is estimated is reliable up to a KL of about log N - 2, where about
e^2 answers of N still count, and the curve ends there. A logarithm of a mean is on average too low, by O(1 / N); each
prompt's figures are corrected for that by a jackknife (Quenouille 1956, Biometrika 43).

Best of n: the answer with the highest of some reward among n. Its mean over all subsets of n of the N answers is found
by sorting, unbiased (Nakano et al. 2021, arXiv 2112.09332, appendix I; Gao et al. 2023, arXiv 2210.10760; as a policy
Stiennon et al. 2020, arXiv 2009.01325). Its KL is at most log n - (n - 1) / n (Beirami et al. 2024, arXiv 2401.01879).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignkit.noise import Interval, mean_interval_of_any

Table: TypeAlias = NDArray[np.float64]
"""Rewards of answers (prompts, N), or a figure for each prompt (prompts,)."""

UNRELIABLE = 2.0
"""Nats below log N at which the curve ends."""
POINTS = 40
"""Of the curve, besides the start; their temperatures are evenly spaced in the logarithm."""
LEAST_KL = 0.01
"""A policy that is closer to its start is held against the ceiling as if it were so far: the bound holds at any b."""
HALVINGS = 36
"""Of the span in which a temperature is looked for."""
WIDEST = 1e4
"""Temperatures from the rewards' spread divided by this to their spread times this are looked at."""
SURE = 2.0
"""Standard errors by which a policy must lie above the ceiling before reward or KL is called mismeasured."""


class Tilted(NamedTuple):
    """What the weights exp(r / b) make of the start's answers, by prompt."""

    reward: Table
    kl: Table

    def bound(self, temperature: float) -> Table:
        """Return F(b): no policy's reward less b times its KL is above it."""
        return self.reward - temperature * self.kl


class CurvePoint(NamedTuple):
    """A point of the curve."""

    kl: float
    reward: float
    temperature: float


@dataclass(frozen=True)
class Attained:
    """A policy held against the ceiling."""

    kl: float
    """From the start, by the policy's own answers."""
    ceiling: float
    """The highest reward there is at its KL."""
    excess: float
    """Its reward less that; above 0 only by noise, or where reward or KL is mismeasured."""
    excess_error: float
    """The standard error of that over the prompts."""
    share: float | None
    """What it has gained of what can be gained at its KL; None where the curve does not reach so far, or nothing can be
    told from nothing."""
    interval: Interval | None
    """95 % around the share, over the prompts."""
    by_prompt: tuple[float, ...]
    """Figures whose mean is the share and whose spread is its noise: it is a ratio of means, linearised."""

    @property
    def above(self) -> bool:
        """Whether it lies above the ceiling by more than noise."""
        return self.excess > SURE * self.excess_error


def reliable_kl(answers: int) -> float:
    """Return up to which KL so many answers to a prompt tell the ceiling."""
    return math.log(answers) - UNRELIABLE


def tilt(rewards: Table, temperature: float) -> Tilted:
    """Weigh each prompt's answers by exp(r / b), jackknifed over the answers."""
    reward, kl = _tilted(rewards, temperature)
    without = _leave_one_out(rewards, temperature)
    count = rewards.shape[1]
    jackknifed = [count * whole - (count - 1) * part for whole, part in zip((reward, kl), without, strict=True)]
    return Tilted(*jackknifed)


def _tilted(rewards: Table, temperature: float) -> Tilted:
    high = rewards.max(axis=1)
    lifted = np.exp((rewards - high[:, None]) / temperature)
    total = lifted.sum(axis=1)
    reward = (lifted * rewards).sum(axis=1) / total
    log_mean = np.log(total / rewards.shape[1]) + high / temperature
    return Tilted(reward, reward / temperature - log_mean)


def _leave_one_out(rewards: Table, temperature: float) -> Tilted:
    """Return the mean, over the answers, of what is found without that answer."""
    ordered = np.sort(rewards, axis=1)[:, ::-1]
    count = rewards.shape[1]
    first = _tilted(ordered[:, 1:], temperature)  # without the best one, whose weight may be nearly all there is
    high = ordered[:, :1]
    lifted = np.exp((ordered - high) / temperature)
    total = lifted.sum(axis=1, keepdims=True) - lifted[:, 1:]
    weighted = (lifted * (ordered - high)).sum(axis=1, keepdims=True) - (lifted * (ordered - high))[:, 1:]
    above = weighted / total  # of each, less the best one's reward
    log_mean = np.log(total / (count - 1))
    reward = (first.reward + (above + high).sum(axis=1)) / count
    kl = (first.kl + (above / temperature - log_mean).sum(axis=1)) / count
    return Tilted(reward, kl)


def temperature_at(rewards: Table, kl: float) -> float:
    """Return the b whose KL(b) this is; the least or the greatest that is looked at where none has it."""
    spread = float(rewards.std(axis=1).max()) or 1.0
    low, high = math.log(spread / WIDEST), math.log(spread * WIDEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if tilt(rewards, math.exp(middle)).kl.mean() > kl else (low, middle)
    return math.exp((low + high) / 2)


def ceiling_curve(rewards: Table) -> list[CurvePoint]:
    """Return the best reward at each KL, from the start itself to where so many answers are reliable.

    It is level from where no further KL is of use: the best of the answers are then all that is chosen.
    """
    points = [CurvePoint(0.0, float(rewards.mean()), math.inf)]
    most = reliable_kl(rewards.shape[1])
    widest, narrowest = (temperature_at(rewards, kl) for kl in (LEAST_KL, most))
    for temperature in np.geomspace(widest, narrowest, POINTS).tolist():
        tilted = tilt(rewards, temperature)
        kl, reward = float(tilted.kl.mean()), float(tilted.reward.mean())
        if kl > points[-1].kl and reward >= points[-1].reward:
            points.append(CurvePoint(kl, reward, temperature))
    last = points[-1]
    return points if last.kl > most - LEAST_KL else [*points, last._replace(kl=most)]


def evenly(count: int, some: int) -> list[int]:
    """Return so many places among `count`, evenly spaced."""
    return [number * count // some for number in range(some)]


def held_against(rewards: Table, reward: Sequence[float], kl: Sequence[float]) -> Attained:
    """Hold a policy, with its reward and its KL from the start at each prompt, against the ceiling.

    The pool may be of fewer prompts, those at the places that `evenly` gives: the ceiling's figures are then means over
    these, the policy's over all.
    """
    own, far = np.array(reward), np.array(kl)
    places, times = evenly(len(own), len(rewards)), len(own) / len(rewards)
    most, mean = reliable_kl(rewards.shape[1]), float(far.mean())
    temperature = temperature_at(rewards, min(max(mean, LEAST_KL), most))
    bound, start = tilt(rewards, temperature).bound(temperature), rewards.mean(axis=1)

    def spread(values: Table) -> Table:
        """Place figures of the pool's prompts among all, so that mean and noise over all are those over the pool."""
        placed = np.full(len(own), float(values.mean()))
        placed[places] += times * (values - values.mean())
        return placed

    ceiling = spread(bound) + temperature * far
    over, gains = own - ceiling, ceiling - spread(start)
    parts: list[float] = []
    if LEAST_KL <= mean <= most and float(gains.mean()) > SURE * _error(gains):
        gain, gained = float(gains.mean()), own - spread(start)
        share = float(gained.mean()) / gain
        parts = (share + (gained - share * gains) / gain).tolist()
    return Attained(
        kl=mean,
        ceiling=float(ceiling.mean()),
        excess=float(over.mean()),
        excess_error=_error(over),
        share=fmean(parts) if parts else None,
        interval=mean_interval_of_any(parts),
        by_prompt=tuple(parts),
    )


def _error(values: Table) -> float:
    return stdev(values.tolist()) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def best_of(chosen_by: Table, measured: Table, n: int) -> Table:
    """Return, by prompt, what the answer that is best by one reward has of another, on average over all subsets of n.

    Of the N answers in ascending order, the one of rank k is the best of C(k - 1, n - 1) of the C(N, n) subsets.
    """
    count = chosen_by.shape[1]
    order = np.argsort(chosen_by, axis=1, kind="stable")
    weights = [math.comb(rank - 1, n - 1) / math.comb(count, n) for rank in range(1, count + 1)]
    best: Any = np.take_along_axis(measured, order, axis=1) @ np.array(weights)
    return np.asarray(best, dtype=np.float64)


def best_of_kl(n: int) -> float:
    """Return the most that the best of n is from the policy that it is chosen from, in nats."""
    return math.log(n) - (n - 1) / n
