"""Losses and estimators as pure functions of tensors.

Legend: n answers, t tokens of the longest one; masks are True on the tokens of an answer (its end-of-sequence
token included) and say everything about padding: what stands outside of a mask never counts, whatever it is.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from alignkit.training.group_scores import (
    best_of_advantages as best_of_advantages,
    equal_groups as equal_groups,
    group_advantages as group_advantages,
    leave_one_out_advantages as leave_one_out_advantages,
    rows_of_groups,
    share_of_equal_groups as share_of_equal_groups,
)
from alignkit.training.surrogates import (
    LOG_RATIO_LIMIT as LOG_RATIO_LIMIT,
    Surrogate as Surrogate,
    clipped_losses,
    ratios,
    token_losses,
)

KLEstimator = Literal["k1", "k2", "k3"]
Average = Literal["answer", "token", "fixed"]


class Advantages(NamedTuple):
    advantages: Tensor
    returns: Tensor


class PolicyLoss(NamedTuple):
    loss: Tensor
    clip_fraction: Tensor
    approximate_kl: Tensor
    ratio: Tensor


class GRPOLoss(NamedTuple):
    loss: Tensor
    pull: Tensor
    clip_fraction: Tensor
    approximate_kl: Tensor
    ratio: Tensor


class Count(NamedTuple):
    """What a whole optimiser step holds; with it, the losses of its micro-batches add up to exactly the step's."""

    tokens: int
    answers: int
    longest: int
    """The most tokens that an answer may have."""


class ValueLoss(NamedTuple):
    loss: Tensor
    clip_fraction: Tensor


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Average the values under the mask, both (n, t); 0 where nothing is under it.

    `count` replaces the mask's own sum as the divisor: with the token count of a whole optimiser step, the means of
    its micro-batches add up to exactly the mean over the step.
    """
    _same_shape(values, mask)
    divisor = mask.sum() if count is None else torch.as_tensor(count, device=values.device)
    return values.masked_fill(~mask, 0.0).sum() / divisor.clamp(min=1)


def estimate_kl(logprobs: Tensor, reference: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Estimate, token by token, the KL divergence from the policy to the reference, from sampled tokens (n, t).

    With d = log pi - log pi_ref: k1 = d, unbiased, may be negative, and the one whose expectation as a penalty in the
    reward has the right gradient; k2 = d^2 / 2; k3 = exp(-d) - 1 + d, unbiased and never negative
    (Schulman 2020, "Approximating KL divergence").
    """
    _same_shape(logprobs, reference)
    difference = logprobs - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return torch.exp(-difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) - 1 + difference


def weighted(logprobs: Tensor, weights: Tensor | None) -> Tensor:
    """Return the same log-probabilities (n, t), through which gradients are multiplied by weights; None: they are not.

    So each token counts for its weight in any loss that is made of them, whatever that is.
    """
    if weights is None:
        return logprobs
    fixed = logprobs.detach()
    return fixed + weights.detach() * (logprobs - fixed)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return each token its share of the reward (n, t): -kl_coef * kl everywhere, the score (n,) on the last token.

    The last token is the last one under the mask, finished or cut alike (Ziegler et al. 2019, arXiv 1909.08593,
    equation 2). A row without tokens gets nothing.
    """
    _same_shape(kl, mask)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores {tuple(scores.shape)} must be one for each row of the mask {tuple(mask.shape)}")
    place = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, place, -1).amax(dim=1, keepdim=True)  # (n, 1)
    at_last = mask & (place == last)
    return (-kl_coef * kl).masked_fill(~mask, 0.0) + scores[:, None] * at_last


def penalise_unfinished(
    scores: Tensor, finished: Tensor, penalty: float, how: Literal["replace", "subtract"]
) -> Tensor:
    """Put minus `penalty` in place of the score of every unfinished answer, or take it off that score; all (n,)."""
    _same_shape(scores, finished)
    worse = torch.full_like(scores, -penalty) if how == "replace" else scores - penalty
    return torch.where(finished, scores, worse)


def overlong(lengths: Tensor, longest: int, share: float) -> Tensor:
    """Return how far each length (n,) is into the last `share` of what answers may have: 0 before it, 1 at its end.

    Its negative is DAPO's soft penalty (Yu et al. 2025, arXiv 2503.14476, equation 13).
    """
    cache = share * longest
    return ((lengths - (longest - cache)) / cache).clamp(0.0, 1.0)


def lagrangian_scores(scores: Tensor, excess: Tensor, multipliers: Tensor) -> Tensor:
    """Return what is maximised in place of scores (n,) where costs are bounded: (r - sum_i l_i e_i) / (1 + sum_i l_i).

    excess (k, n): by how much each of k costs passes its bound in each answer; multipliers (k,): l >= 0. All advantages
    here are linear in scores, so this is the surrogate (A_r - sum_i l_i A_ci) / (1 + sum_i l_i) of Safe RLHF (Dai et
    al. 2023, arXiv 2310.12773, section 3.3 and appendix B); the divisor keeps its size where multipliers grow.
    """
    if excess.shape != (len(multipliers), len(scores)):
        raise ValueError(f"{len(multipliers)} multipliers and {len(scores)} scores do not fit {tuple(excess.shape)}")
    return (scores - multipliers @ excess) / (1 + multipliers.sum())


def dual_ascent(multiplier: float, excess: float, rate: float, cap: float = math.inf) -> float:
    """Return a multiplier after one step of projected gradient ascent on the dual: l <- min(cap, max(0, l + rate e)).

    excess e: by how much the mean cost passes its bound (Ray et al. 2019, "Benchmarking Safe Exploration", section 5).
    """
    return min(cap, max(0.0, multiplier + rate * excess))


def estimate_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> Advantages:
    """Estimate advantages (n, t) by GAE, and the returns that the critic learns; zero outside of the mask.

    A_t = d_t + gamma * lam * A_{t+1} with d_t = r_t + gamma * V_{t+1} - V_t (Schulman et al. 2016, arXiv 1506.02438,
    equation 16); nothing is worth anything after an answer's last token, also of one that was cut. Tokens outside of
    the mask between others, such as what a tool said, are passed over. Returns are A + V, before anybody whitens A.
    Neither carries a gradient.
    """
    _same_shape(rewards, values)
    _same_shape(rewards, mask)
    rewards, values = rewards.detach(), values.detach().masked_fill(~mask, 0.0)
    running = next_value = rewards.new_zeros(len(rewards))
    columns: list[Tensor] = []
    for t in reversed(range(rewards.shape[1])):
        surprise = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], surprise + gamma * lam * running, running)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        columns.append(running)
    advantages = torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(rewards)
    advantages = advantages.masked_fill(~mask, 0.0)
    return Advantages(advantages, advantages + values)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale the values under the mask to variance 1 and, unless told not to, mean 0; zero outside of it.

    The variance is the population's, as in lm-human-preferences.
    """
    _same_shape(values, mask)
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean).masked_fill(~mask, 0.0)


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    count: Tensor | float | None = None,
) -> PolicyLoss:
    """Compute PPO's clipped objective as a loss, averaged over the tokens under the mask; inputs (n, t).

    max(-A r, -A clip(r, 1 - clip, 1 + clip)) with r = pi / pi_old (Schulman et al. 2017, arXiv 1707.06347, equation
    7). Only `logprobs` gets a gradient. `ratio` is (n, t), the rest are scalars; `count` as in `masked_mean`.
    """
    _same_shape(logprobs, advantages)
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    losses, clipped = clipped_losses(ratio, advantages, Surrogate(low=clip, high=clip))
    return PolicyLoss(
        masked_mean(losses, mask, count),
        masked_mean(clipped, mask, count),
        masked_mean(log_ratio.detach().square() / 2, mask, count),
        ratio.detach(),
    )


def rewards_to_go(rewards: Tensor) -> Tensor:
    """Return for each token what it and those behind it are rewarded with (n, t), undiscounted."""
    return rewards.flip(1).cumsum(1).flip(1)


def most_uncertain(entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """Return which tokens under the mask are among this share of highest entropy; all (n, t).

    Wang et al. 2025 (arXiv 2506.01939): the fifth of the tokens where the policy is least sure carries what
    is learnt. Tokens of equal entropy are in it together.
    """
    _same_shape(entropy, mask)
    among = entropy[mask]
    kept = math.ceil(share * len(among))
    if not kept:
        return mask
    return mask & (entropy >= among.kthvalue(len(among) - kept + 1).values)


def best_of_groups(scores: Tensor, answers: int, keep: int = 1) -> Tensor:
    """Return the rows of the `keep` highest scores of each group of `answers` neighbours, best first; scores (n,)."""
    groups = rows_of_groups(scores, answers)
    starts = torch.arange(len(groups), device=scores.device)[:, None] * answers
    return (groups.argsort(dim=1, descending=True, stable=True)[:, :keep] + starts).flatten()


def average(values: Tensor, mask: Tensor, how: Average, count: Count) -> Tensor:
    """Make one number of what tokens under the mask have, both (n, t).

    `answer`: the mean of each answer, then over answers (Shao et al. 2024, equation 3), where a token of a long answer
    counts less; `token`: over all tokens (Yu et al. 2025, arXiv 2503.14476, equation 8); `fixed`: as though all
    answers had the most tokens allowed (Liu et al. 2025, arXiv 2503.20783), where a token counts the same whatever
    else is in the step.
    """
    if how == "token":
        return masked_mean(values, mask, count.tokens)
    if how == "fixed":
        return masked_mean(values, mask, count.answers * count.longest)
    _same_shape(values, mask)
    sums = values.masked_fill(~mask, 0.0).sum(dim=1)
    return (sums / mask.sum(dim=1).clamp(min=1)).sum() / count.answers


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    count: Count,
    *,
    surrogate: Surrogate = Surrogate(),  # noqa: B008  # it is frozen
    reference: Tensor | None = None,
    kl_coef: float = 0.0,
    estimator: KLEstimator = "k3",
    corrected: bool = True,
    how: Average = "token",
) -> GRPOLoss:
    """Compute the loss of GRPO and its variants; tables are (n, t), advantages (n, t), or (n,) for all tokens alike.

    The surrogate's loss of each token, by default PPO's, plus kl_coef * k (Shao et al. 2024, arXiv 2402.03300,
    equations 3 and 4, where k is k3). k3 as it stands has the gradient of KL(reference || policy). `corrected` weighs
    the estimate by r = pi / pi_old so that it has that of each token's KL(policy || reference): r k1, sg(r) k2 and
    r k3, the last as in DeepSeek-AI 2025 (arXiv 2512.02556). Only `logprobs` gets a gradient. `pull` is the second
    term; `ratio` is (n, t), the rest are scalars.
    """
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    ours = logprobs.masked_fill(~mask, 0.0)
    wide = advantages[:, None] if advantages.ndim == 1 else advantages
    losses, ratio, clipped = token_losses(ours, log_ratio, wide, mask, surrogate)
    pull = torch.zeros_like(losses)
    if reference is not None and kl_coef:
        pull = kl_coef * estimate_kl(ours, reference.detach().masked_fill(~mask, 0.0), estimator)
        weight = ratio if surrogate.ratio == "token" else ratios(log_ratio, mask, "token")
        pull = pull * ((weight.detach() if estimator == "k2" else weight) if corrected else 1.0)
    return GRPOLoss(
        average(losses + pull, mask, how, count),
        average(pull.detach(), mask, how, count),
        masked_mean(clipped, mask, count.tokens),
        masked_mean(log_ratio.detach().square() / 2, mask, count.tokens),
        ratio.detach(),
    )


def rloo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, count: Count, clip: float = 0.2
) -> PolicyLoss:
    """Compute RLOO's objective as a loss, averaged over answers; tables are (n, t), advantages (n,).

    max(-A r, -A clip(r, 1 - clip, 1 + clip)), where r is the ratio of a whole answer's probability: an answer is one
    action (Ahmadian et al. 2024, arXiv 2402.14740, section 3). Where r is 1, its gradient is the paper's,
    -A * grad log pi(answer); the clip keeps later steps on the same answers in bounds. Only `logprobs` gets a
    gradient. `ratio` is (n,), `clip_fraction` one of answers, `approximate_kl` one of a token.
    """
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    ratio = log_ratio.sum(dim=1).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    losses, clipped = clipped_losses(ratio, advantages, Surrogate(low=clip, high=clip))
    return PolicyLoss(
        losses.sum() / count.answers,
        clipped.sum() / count.answers,
        masked_mean(log_ratio.detach().square() / 2, mask, count.tokens),
        ratio.detach(),
    )


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float | None = 0.2,
    count: Tensor | float | None = None,
) -> ValueLoss:
    """Compute half the squared error of the values, averaged over the tokens under the mask; inputs (n, t).

    max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2, so that one update cannot move V further than
    `clip`; None leaves it free. Only `values` gets a gradient. `count` as in `masked_mean`.
    """
    _same_shape(values, old_values)
    _same_shape(values, returns)
    old_values, returns = old_values.detach(), returns.detach()
    free = (values - returns).square()
    if clip is None:
        return ValueLoss(masked_mean(free, mask, count) / 2, torch.zeros_like(free.detach().sum()))
    bounded = (torch.clamp(values, old_values - clip, old_values + clip) - returns).square()
    return ValueLoss(
        masked_mean(torch.maximum(free, bounded), mask, count) / 2,
        masked_mean((bounded > free).detach().to(values.dtype), mask, count),
    )


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, centre: float = 0.0) -> Tensor:
    """Compute the loss of each pair of scores, -log sigmoid(chosen - rejected); all (n,).

    The likelihood of the preference under Bradley and Terry (1952). `centre` weighs the square of a pair's sum, a pull
    of scores towards a mean of zero (Eisenstein et al. 2023, arXiv 2312.09244, section 3).
    """
    _same_shape(chosen, rejected)
    return -torch.nn.functional.logsigmoid(chosen - rejected) + centre * (chosen + rejected).square()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Return which share of the returns' variance under the mask the values explain: 1 is all, 0 or less nothing."""
    _same_shape(values, returns)
    error = returns - values
    unexplained = masked_mean((error - masked_mean(error, mask)).square(), mask)
    variance = masked_mean((returns - masked_mean(returns, mask)).square(), mask)
    return 1 - unexplained / variance.clamp(min=1e-8)


def adapt_kl_coef(kl_coef: float, kl: float, target: float, horizon: float, episodes: int) -> float:
    """Move the KL coefficient towards what keeps the mean sequence KL at its target.

    A proportional controller whose error is clipped to 20 % (Ziegler et al. 2019, section 2.2); `horizon` is the
    number of episodes after which a constant error has changed the coefficient about e^0.2-fold.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)


def _log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    _same_shape(logprobs, old_logprobs)
    _same_shape(logprobs, mask)
    return (logprobs - old_logprobs.detach()).masked_fill(~mask, 0.0)


def _same_shape(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(f"shapes {tuple(one.shape)} and {tuple(other.shape)} must be equal")
