"""Noise: how far two variants may differ by luck alone, with the same prompts and the same seeds.

Two things make a measured difference uncertain: which prompts were asked, and which seeds the variants were trained
with. Every variant answers the same prompts, so differences are taken prompt by prompt (paired), averaged over the
seeds; their spread gives the standard error of the prompts. The spread of a variant's means from seed to seed, pooled
over all variants because each has few, gives the standard error of the seeds. Both are added as squares; the interval
is Student's, its degrees of freedom after Welch and Satterthwaite (Satterthwaite 1946, Biometrics Bulletin 2). Where
the best variant is compared with several others, the level is divided by their number (Bonferroni).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

ALLOWED = 0.05
"""How often an interval may miss the truth: 95 % intervals."""

Scores = Sequence[Sequence[float]]
"""One variant's scores: a sequence for each seed, each in the order of the prompts."""


@dataclass(frozen=True)
class Difference:
    """By how much one mean exceeds another, and half the width of the interval around that."""

    value: float
    half: float

    @property
    def within_noise(self) -> bool:
        """Zero lies in the interval."""
        return abs(self.value) <= self.half


@dataclass(frozen=True)
class SeedSpread:
    """How much a variant's mean varies from seed to seed; unknown (0 degrees of freedom) where each had one."""

    variance: float = 0.0
    freedom: int = 0


def spread_of_seeds(variants: Sequence[Scores]) -> SeedSpread:
    """Pool the variance of each variant's means over its seeds."""
    several = [[fmean(scores) for scores in seeds] for seeds in variants if len(seeds) > 1]
    freedom = sum(len(means) - 1 for means in several)
    total = sum((len(means) - 1) * variance(means) for means in several)
    return SeedSpread(total / freedom, freedom) if freedom else SeedSpread()


def difference(
    ours: Scores, theirs: Scores, spread: SeedSpread, *, comparisons: int = 1, start: bool = False
) -> Difference:
    """Measure by how much ours is higher. With `start`, theirs is no variant: no seed has moved it."""
    by_prompt = [a - b for a, b in zip(_over_seeds(ours), _over_seeds(theirs), strict=True)]
    count = len(by_prompt)
    prompts = variance(by_prompt) / count if count > 1 else 0.0
    seeds = spread.variance * (1 / len(ours) + (0 if start else 1 / len(theirs)))
    freedom = _freedom((prompts, count - 1), (seeds, spread.freedom))
    half = quantile(ALLOWED / comparisons, freedom) * math.sqrt(prompts + seeds) if freedom else 0.0
    return Difference(fmean(by_prompt), half)


def interval(ours: Scores, spread: SeedSpread) -> float:
    """Return half the width of the interval around a variant's own mean."""
    return difference(ours, [[0.0] * len(ours[0])], spread, start=True).half


def _over_seeds(scores: Scores) -> list[float]:
    return [fmean(values) for values in zip(*scores, strict=True)]


def _freedom(*parts: tuple[float, int]) -> float:
    """Combine variances of means, each with its degrees of freedom, after Welch and Satterthwaite."""
    known = [(value, freedom) for value, freedom in parts if value > 0 and freedom > 0]
    below = sum(value * value / freedom for value, freedom in known)
    return sum(value for value, _ in known) ** 2 / below if below else 0.0


def quantile(outside: float, freedom: float) -> float:
    """Return the t beyond which, on both sides together, Student's distribution has this share.

    Hill 1970 (Algorithm 396, Communications of the ACM 13); exact for 1 and 2 degrees of freedom, which are rounded
    down there: the interval becomes wider, never narrower.
    """
    if freedom < 2:
        return 1 / math.tan(outside * math.pi / 2)
    if freedom < 3:
        return math.sqrt(2 / (outside * (2 - outside)) - 2)
    n, a = freedom, 1 / (freedom - 0.5)
    b = 48 / (a * a)
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    x = d * outside
    y = x ** (2 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(outside / 2)
        y = x * x
        c += 0.3 * (n - 4.5) * (x + 0.6) if n < 5 else 0.0
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1)
        y = y / (n + 2) + 1 / (x ** (2 / n))
    return math.sqrt(n * y)
