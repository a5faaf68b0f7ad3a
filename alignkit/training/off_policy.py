"""Answers that another policy drew than the one that learns from them: how far the two are apart, and what each token
counts for.

Legend: n answers, t tokens of the longest one. A token y that mu drew counts for min(pi(y) / mu(y), bound) in the
gradient of pi (truncated importance sampling, Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
Off-Policy RL Training"; Ionides 2008). pi is the policy as the update finds it, so ratios of later steps stay those of
the method.
"""

from typing import NamedTuple

from torch import Tensor

from alignkit.contract.sampling_settings import Engine
from alignkit.errors import StageError
from alignkit.training.losses import masked_mean
from alignkit.training.rollouts import padded_table
from alignkit.training.seen import Seen
from alignkit.training.surrogates import LOG_RATIO_LIMIT

STALE = 10.0
"""How many times further answers may be from the policy that are an update old."""


class Apart(NamedTuple):
    """How far what answered is from the policy that learns."""

    kl: float
    """Of what answered from the policy, a token, in nats (k3, Schulman 2020)."""
    ratio_max: float
    """The largest ratio of two probabilities of a token, either way."""
    ratio: Tensor
    """pi / mu of each token (n, t); 1 outside of the mask."""


def compare(logprobs: Tensor, sampler: Tensor, mask: Tensor) -> Apart:
    """Compare log-probabilities (n, t) of drawn tokens by the policy and by what answered."""
    difference = ((logprobs - sampler) * mask).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = difference.exp()
    kl = masked_mean(ratio - 1 - difference, mask)
    return Apart(float(kl), float(difference.abs().max().exp()), ratio)


def corrected(seen: Seen, lag: int, settings: Engine) -> Seen:
    """Return what is known of answers with how far what drew them, `lag` updates ago, is from the policy, and with what
    each token counts for.

    Raise StageError where that is too far to be the policy.
    """
    apart = compare(seen.logprobs, padded_table(seen.rollout.logprobs, seen.mask), seen.mask)
    check(apart.kl, lag, settings)
    told = {"engine/kl": apart.kl, "engine/ratio_max": apart.ratio_max, "engine/version_lag": float(lag)}
    weights = None
    if settings.correct:
        weights = apart.ratio.clamp(max=settings.correct)
        told["engine/clipped"] = float(masked_mean((apart.ratio > settings.correct).float(), seen.mask))
    return seen._replace(metrics={**seen.metrics, **told}, weights=weights)


def check(kl: float, lag: int, settings: Engine) -> None:
    """Raise StageError where what answered is too far from the policy to be it."""
    limit = settings.most_kl * (STALE if lag else 1)
    if kl <= limit:
        return
    problem = f"what answered is {kl:.3g} nats a token from the policy, and {limit:g} are allowed"
    if lag:
        raise StageError(problem, remedy="lower learning_rate, set engine.ahead = 0, or raise engine.most_kl")
    remedy = "the server has not the weights that it was given: look at its log, its version and its quantisation"
    raise StageError(problem, remedy=f"{remedy}; or raise engine.most_kl")
