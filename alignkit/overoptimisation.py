"""How the reward that counts rises and falls while another one is maximised, by distance from the start.

With d the root of the KL from the start, Gao et al. (2023, arXiv 2210.10760, section 3.2) find for the gain of the
reward that counts

    R(d) = d (alpha - beta log d)    under reinforcement learning
    R(d) = d (alpha - beta d)        of the best of n

Both are linear in alpha and beta, so they are fitted by least squares to the policies on the way of one run.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Series: TypeAlias = NDArray[np.float64]

LEAST_POINTS = 4
"""Fewer say nothing of two coefficients."""


class Law(NamedTuple):
    """Coefficients of a form, and the share of the gains' variance that it explains."""

    alpha: float
    beta: float
    r2: float


class Laws(NamedTuple):
    """Both forms, fitted to the same points."""

    rl: Law
    """d (alpha - beta log d)"""
    best_of_n: Law
    """d (alpha - beta d)"""


def fit_laws(kls: Sequence[float], gains: Sequence[float]) -> Laws | None:
    """Fit both forms to gains over the start, by the KL (in nats) at which they were measured.

    None where there are too few policies that have moved from the start, or all of them gained the same.
    """
    moved = [(math.sqrt(kl), gain) for kl, gain in zip(kls, gains, strict=True) if kl > 0]
    if len(moved) < LEAST_POINTS or len({gain for _, gain in moved}) == 1:
        return None
    d, gained = np.array(moved).T
    return Laws(_fit(d, -d * np.log(d), gained), _fit(d, -d * d, gained))


def _fit(first: Series, second: Series, gained: Series) -> Law:
    columns = np.stack([first, second], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, gained)
    left = gained - columns @ np.array([alpha, beta])
    return Law(float(alpha), float(beta), 1 - float(left @ left) / float(((gained - gained.mean()) ** 2).sum()))
