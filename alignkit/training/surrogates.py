"""Surrogates: losses of tokens that an earlier policy sampled, made of the ratios of their probabilities.

Legend as in `losses`: n answers, t tokens of the longest one; tables are (n, t), masks True on the tokens of an answer.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Ratio = Literal["token", "sequence", "sequence-token"]
Form = Literal["clip", "weights", "tapered", "gate", "geometric"]

LOG_RATIO_LIMIT = 20.0
"""exp(20) is far outside of every clip range and still finite, so that one odd token cannot make a NaN."""
GATE_GOOD, GATE_BAD = 1.0, 1.05
"""How fast the soft gate closes, for answers that are better and worse than their group (SAPO)."""


@dataclass(frozen=True)
class Surrogate:
    """How ratios and advantages become losses of tokens."""

    form: Form = "clip"
    ratio: Ratio = "token"
    low: float = 0.2
    """How far a ratio may fall below 1; 1 and more: as far as it likes."""
    high: float = 0.2
    """How far a ratio may rise above 1."""
    dual: float | None = None
    """The most that a ratio may count for where the advantage is negative; None: as much as it likes."""


class TokenLosses(NamedTuple):
    """What a surrogate makes of each token; all (n, t)."""

    losses: Tensor
    ratio: Tensor
    clipped: Tensor
    """1 where the clip has stopped the gradient, or has bounded the weight; else 0."""


def token_losses(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, mask: Tensor, surrogate: Surrogate
) -> TokenLosses:
    """Compute the loss of each token; advantages are (n, 1) or (n, t), the other tables 0 outside of the mask.

    With r the ratio, A the advantage and sg what carries no gradient:

    - `clip`: max(-A r, -A clip(r, 1 - low, 1 + high)) (Schulman et al. 2017, arXiv 1707.06347, equation 7), for A < 0
      no more than -A dual (Ye et al. 2020, arXiv 1912.09729);
    - `weights`: -sg(clip(r, 1 - low, 1 + high)) A log pi (MiniMax 2025, arXiv 2506.13585, equations 4 and 5);
    - `tapered`: -sg(w) A log pi, where w is 1 for A > 0, else min(r, 1) (Le Roux et al. 2025, arXiv 2503.14286);
    - `gate`: -A sigmoid(tau (r - 1)) 4 / tau (Gao et al. 2025, arXiv 2511.20347);
    - `geometric`: -A times the geometric mean of the ratios of an answer, each clipped as in `clip` (Zhao et al. 2025,
      arXiv 2507.20673).
    """
    advantages = advantages.detach()
    ratio = ratios(log_ratio, mask, surrogate.ratio)
    low, high = 1 - surrogate.low, 1 + surrogate.high
    if surrogate.form == "clip":
        losses, clipped = clipped_losses(ratio, advantages, surrogate)
    elif surrogate.form == "gate":
        speed = torch.where(advantages > 0, advantages.new_tensor(GATE_GOOD), advantages.new_tensor(GATE_BAD))
        losses, clipped = -advantages * torch.sigmoid(speed * (ratio - 1)) * 4 / speed, torch.zeros_like(log_ratio)
    elif surrogate.form == "geometric":
        bounded = log_ratio.clamp(math.log(low), math.log(high))
        kept = torch.where(advantages > 0, torch.minimum(log_ratio, bounded), torch.maximum(log_ratio, bounded))
        losses, clipped = -advantages * ratios(kept, mask, "sequence"), (kept != log_ratio).detach().to(ratio.dtype)
    else:
        weight = ratio.clamp(low, high)
        if surrogate.form == "tapered":
            weight = torch.where(advantages > 0, torch.ones_like(ratio), ratio.clamp(max=1.0))
        losses, clipped = -weight.detach() * advantages * logprobs, (weight != ratio).detach().to(ratio.dtype)
    return TokenLosses(losses, ratio, clipped)


def ratios(log_ratio: Tensor, mask: Tensor, level: Ratio) -> Tensor:
    """Return the ratio that stands for each token (n, t), of logarithms that are 0 outside of the mask.

    `token`: pi / pi_old. `sequence`: the geometric mean of an answer's ratios, exp(mean log pi / pi_old) (Zheng et al.
    2025, arXiv 2507.18071, equation 7). `sequence-token`: equal to that, with the gradient of the token's own log pi
    (equation 14), for advantages that differ from token to token.
    """
    if level != "token":
        mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        own = log_ratio - log_ratio.detach()
        log_ratio = mean.expand_as(log_ratio) if level == "sequence" else mean.detach() + own
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_losses(ratio: Tensor, advantages: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """Compute PPO's loss of each ratio; second comes 1 where the clip has stopped its gradient."""
    free = -advantages.detach() * ratio
    bounded = -advantages.detach() * ratio.clamp(1 - surrogate.low, 1 + surrogate.high)
    losses, stopped = torch.maximum(free, bounded), bounded > free
    if surrogate.dual is not None:
        most = -advantages.detach() * surrogate.dual
        beyond = (advantages < 0) & (losses > most)
        losses, stopped = torch.where(beyond, most, losses), stopped | beyond
    return losses, stopped.detach().to(ratio.dtype)
