"""Losses of preferences: functions of tensors, one equation each.

g is an answer's gain, log pi(y) - log pi_ref(y); m a margin, the chosen answer's gain less the rejected one's; both in
nats. A reward is beta g, and `margin` without a word beside it is beta m: what a policy's implicit rewards differ by.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


def sigmoid(margin: Tensor, wrong: float = 0.0) -> Tensor:
    """Return -(1 - e) log s(margin) - e log s(-margin) (n,): DPO, eq. 7 of arXiv 2305.18290; e > 0 is conservative DPO.

    `wrong` is e, the share of the labels taken to be wrong; s the logistic function.
    """
    from torch.nn.functional import logsigmoid

    return -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)


def robust(margin: Tensor, wrong: float) -> Tensor:
    """Return the loss of DPO (n,), unbiased under a share of wrong labels: robust DPO, arXiv 2403.00409."""
    from torch.nn.functional import logsigmoid

    return (wrong * logsigmoid(-margin) - (1 - wrong) * logsigmoid(margin)) / (1 - 2 * wrong)


def hinge(margin: Tensor) -> Tensor:
    """Return max(0, 1 - margin) (n,): RSO, arXiv 2309.06657; without a start it is SLiC-HF's, 2305.10425."""
    return (1 - margin).relu()


def squared_hinge(margin: Tensor) -> Tensor:
    """Return max(0, 1 - margin)^2 (n,): the truncated quadratic loss of GPO, arXiv 2402.05749."""
    return (1 - margin).relu().square()


def exponential(margin: Tensor) -> Tensor:
    """Return exp(-margin) (n,): the exponential loss of GPO, arXiv 2402.05749."""
    return (-margin).exp()


def ipo(lead: Tensor, beta: float) -> Tensor:
    """Return (m - 1 / (2 beta))^2 (n,): eq. 17 of arXiv 2310.12036. `lead` is m, in nats."""
    return (lead - 1 / (2 * beta)).square()


def exo(margin: Tensor, wrong: float) -> Tensor:
    """Return KL(q || p) (n,), q = s(margin) and its rest, p = 1 - e and e: eq. 16 of arXiv 2402.00856."""
    from torch.nn.functional import logsigmoid

    chosen, rejected = logsigmoid(margin), logsigmoid(-margin)
    return chosen.exp() * (chosen - math.log1p(-wrong)) + rejected.exp() * (rejected - math.log(wrong))


def discopop(margin: Tensor, tau: float) -> Tensor:
    """Return (1 - w) log(1 + exp(-margin)) + w exp(-margin) (n,), w = s(margin / tau): eq. 5 of arXiv 2406.08414."""
    from torch.nn.functional import logsigmoid

    exponential_part = (logsigmoid(margin / tau) - margin).exp()  # a product would overflow
    return (-margin / tau).sigmoid() * sigmoid(margin) + exponential_part


def nca(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return -log s(r+) - (log s(-r+) + log s(-r-)) / 2 (n,) of rewards (n,): NCA of pairs, arXiv 2402.05369."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2


def bco(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return -log s(r+) - log s(-r-) (n,) of rewards (n,): BCO without its shift, arXiv 2404.04656."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(chosen) - logsigmoid(-rejected)


def sppo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Return (g+ - 1/(2 beta))^2 + (g- + 1/(2 beta))^2 (n,) of gains (n,): SPPO, eq. 4.7 of arXiv 2405.00675."""
    return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()


def apo_zero(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return 1 - s(r+) + s(r-) (n,) of rewards (n,): raise one, lower the other; eq. 7 of arXiv 2408.06266."""
    return 1 - chosen.sigmoid() + rejected.sigmoid()


def apo_down(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return s(r+) + 1 - s(r+ - r-) (n,) of rewards (n,): lower both, one more; eq. 8 of arXiv 2408.06266."""
    return chosen.sigmoid() + 1 - (chosen - rejected).sigmoid()


def shortfall(gains: Tensor) -> Tensor:
    """Return max(0, -g) (n,): what a chosen answer has lost; a part of DPOP, arXiv 2402.13228."""
    return (-gains).relu()


def divergent(gains: Tensor, divergence: str, alpha: float = 0.5) -> Tensor:
    """Return f'(pi / pi_ref) of gains (n,), up to a constant: table 1 of f-DPO, arXiv 2309.16240.

    `alpha` is of the alpha-divergence, which is the forward KL at 1 and the reverse KL, plain DPO, at 0.
    """
    from torch.nn.functional import logsigmoid

    if divergence == "forward-kl":
        return 1 - (-gains).exp()
    if divergence == "js":
        return math.log(2) + logsigmoid(gains)
    if divergence == "alpha":
        return (1 - (-alpha * gains).exp()) / alpha
    return gains


def negative_log_likelihood(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Return -log pi(y) / |y| (n,): what a chosen answer costs by token."""
    return -logprobs / lengths


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return -log s(log odds+ - log odds-) (n,) of log-probabilities by token (n,): eq. 7 of ORPO, arXiv 2403.07691.

    The odds of an answer are p / (1 - p), p its likelihood by token.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(logprobs: Tensor) -> Tensor:
    """Return log p - log(1 - p) (n,) of log p < 0 (n,)."""
    return logprobs - (-logprobs.expm1()).log()


def transformed(logprobs: Tensor, alpha: float) -> Tensor:
    """Return (1 - p^-alpha) / alpha (n,) of log p (n,), and log p where alpha is 0: AlphaPO, arXiv 2501.03884."""
    return (1 - (-alpha * logprobs).exp()) / alpha if alpha else logprobs


def kto(rewards: Tensor, good: Tensor, zero: float | Tensor) -> Tensor:
    """Return 1 - s(r - z) of good answers and 1 - s(z - r) of bad ones (n,): KTO, arXiv 2402.01306, without weights.

    `good` (n,) is 1 or 0, `zero` is z, beta times the KL divergence from the start, without gradient; 0: APO-zero.
    """
    return 1 - ((2 * good - 1) * (rewards - zero)).sigmoid()


def shifted(rewards: Tensor, good: Tensor, shift: float | Tensor) -> Tensor:
    """Return -log s(r - d) of good answers and -log s(d - r) of bad ones (n,): BCO, arXiv 2404.04656.

    `shift` is d, without gradient, half-way between the mean rewards of both sides.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid((2 * good - 1) * (rewards - shift))


def infonca(rewards: Tensor, wanted: Tensor) -> Tensor:
    """Return -sum_i w_i log softmax(r)_i of the rewards of k answers to a prompt (k,): InfoNCA, arXiv 2402.05369.

    `wanted` (k,) is the softmax of their ratings, and adds up to 1. Of two answers, one of them certain, it is DPO.
    """
    return -(wanted * rewards.log_softmax(dim=0)).sum()


def rated_nca(rewards: Tensor, wanted: Tensor) -> Tensor:
    """Return -sum_i (w_i log s(r_i) + log s(-r_i) / k) of the rewards of k answers (k,): NCA, arXiv 2402.05369.

    `wanted` (k,) is the softmax of their ratings, and adds up to 1. Of two answers, one of them certain, it is `nca`.
    """
    from torch.nn.functional import logsigmoid

    return -(wanted * logsigmoid(rewards)).sum() - logsigmoid(-rewards).mean()


BY_MARGIN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "hinge": hinge,
    "squared-hinge": squared_hinge,
    "exponential": exponential,
}
"""Losses of a margin that have no number of their own."""
BY_REWARDS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nca": nca,
    "bco": bco,
    "apo-zero": apo_zero,
    "apo-down": apo_down,
}
"""Losses of the rewards of both answers."""
