"""Noise: how sure a figure is that was measured on held-out rows, and how far two may differ by luck alone.

One figure: a share (each row is right, wrong or a tie) has Wilson's interval (Wilson 1927), any other mean Student's.
What it was before is taken off row by row, since the rows are the same; for shares after Bonett and Price (2012,
Statistics in Medicine 31), which holds where few rows have changed, too. A ratio of sums, such as a loss for each
token, has the interval of the linearised ratio, rows being what was drawn (Cochran 1977, Sampling Techniques,
chapter 6).

Variants under seeds: two things make a measured difference uncertain: which prompts were asked, and which seeds the
variants were trained with. Every variant answers the same prompts, so differences are taken prompt by prompt (paired),
averaged over the seeds; their spread gives the standard error of the prompts. The spread of a variant's means from seed
to seed, pooled over all variants because each has few, gives the standard error of the seeds. Both are added as
squares; the interval is Student's, its degrees of freedom after Welch and Satterthwaite (Satterthwaite 1946, Biometrics
Bulletin 2). Where the best variant is compared with several others, the level is divided by their number (Bonferroni).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev, variance

ALLOWED = 0.05
"""How often an interval may miss the truth: 95 % intervals."""

POWER = 0.8
"""How often a change of the size that is called detectable would be found."""

ENOUGH_ROWS = 30
"""Held-out rows below which a figure says so little that people are told: a share of one half then has a standard
error of 9 points and more."""

Z = NormalDist().inv_cdf(1 - ALLOWED / 2)

Interval = tuple[float, float]
"""The lower and the upper end."""

Scores = Sequence[Sequence[float]]
"""One variant's scores: a sequence for each seed, each in the order of the prompts."""


def wilson(rate: float, count: int) -> Interval:
    """Return the ends of the 95 % interval around a share of so many trials (Wilson 1927)."""
    centre = (rate + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(rate * (1 - rate) / count + Z * Z / (4 * count * count))
    return centre - half, centre + half


def is_share(*several: Sequence[float]) -> bool:
    """Return whether every row is right, wrong or a tie."""
    return all(value in (0.0, 0.5, 1.0) for values in several for value in values)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95 % interval around a mean over rows; None where a single row, or a value that is not finite, says
    nothing of the spread."""
    if values and is_share(values):
        return wilson(fmean(values), len(values))
    return mean_interval_of_any(values)


def change_interval(before: Sequence[float] | float, after: Sequence[float]) -> Interval | None:
    """Return the 95 % interval around the change of a mean from `before` to `after`, row by row.

    Raise ValueError where they are not of the same rows.
    """
    if isinstance(before, int | float):
        around = mean_interval(after)
        return around and (around[0] - before, around[1] - before)
    changes = [now - was for was, now in zip(before, after, strict=True)]
    if not changes or not is_share(before, after):
        return mean_interval_of_any(changes)
    count = len(changes) + 2
    gained = (sum(change for change in changes if change > 0) + 1) / count
    lost = (1 - sum(change for change in changes if change < 0)) / count
    half = Z * math.sqrt((gained + lost - (gained - lost) ** 2) / count)
    return gained - lost - half, gained - lost + half


def mean_interval_of_any(values: Sequence[float]) -> Interval | None:
    """Return Student's 95 % interval around a mean; None where there are fewer than two values, or one is no number."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return _around(fmean(values), stdev(values) / math.sqrt(len(values)), len(values))


def ratio_interval(sums: Sequence[float], counts: Sequence[int]) -> Interval | None:
    """Return the 95 % interval around sum / count, of rows with a sum and a count each (a loss, and its tokens)."""
    total, rows = sum(counts), len(counts)
    if rows < 2 or not total or not all(map(math.isfinite, sums)):
        return None
    ratio = sum(sums) / total
    squares = sum((part - ratio * count) ** 2 for part, count in zip(sums, counts, strict=True))
    return _around(ratio, math.sqrt(squares * rows / (rows - 1)) / total, rows)


def area_interval(good: Sequence[float], bad: Sequence[float]) -> Interval | None:
    """Return the 95 % interval around the area under the ROC curve: how often a good row's value exceeds a bad one's,
    ties half (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44)."""
    if len(good) < 2 or len(bad) < 2:
        return None
    over = [fmean((one > other) + 0.5 * (one == other) for other in bad) for one in good]
    under = [fmean((one > other) + 0.5 * (one == other) for one in good) for other in bad]
    error = math.sqrt(variance(over) / len(good) + variance(under) / len(bad))
    return _around(fmean(over), error, min(len(good), len(bad)))


def _around(centre: float, error: float, rows: int) -> Interval:
    half = quantile(ALLOWED, rows - 1) * error
    return centre - half, centre + half


def over_seeds(around: Interval, values: Sequence[float], rows: int) -> Interval:
    """Widen an interval over so many rows by how far the figure varies from seed to seed: `values` has it for each.

    Both variances are added, the degrees of freedom after Welch and Satterthwaite. What each seed's rows were answered
    by luck is in both, so that the interval is rather too wide than too narrow.
    """
    if len(values) < 2 or rows < 2:
        return around
    centre, error = (around[0] + around[1]) / 2, (around[1] - around[0]) / 2 / quantile(ALLOWED, rows - 1)
    parts = (error * error, rows - 1), (variance(values), len(values) - 1)
    freedom = _freedom(*parts)
    half = quantile(ALLOWED, freedom) * math.sqrt(sum(value for value, _ in parts)) if freedom else 0.0
    return centre - half, centre + half


def detectable(change: Interval) -> float:
    """Return the smallest change that rows like these would tell from none, `POWER` of the time."""
    error = (change[1] - change[0]) / 2 / Z
    return error * (Z + NormalDist().inv_cdf(POWER))


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
