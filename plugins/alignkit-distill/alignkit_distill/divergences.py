"""How far a policy's next token is from a teacher's: losses of distillation as functions of tensors.

Everywhere q is the policy and p the teacher. Tables are log-probabilities (m, v) of v tokens at m places; the results
are one number a place (m,), in nats. The teacher gets no gradient.
"""

import math

import torch
from torch import Tensor

LOWEST = -1e30
"""Takes the place of a log-probability of minus infinity, whose share of a divergence is 0 and not NaN."""


def kl(one: Tensor, other: Tensor) -> Tensor:
    """Compute KL(one || other) = sum of one * (log one - log other)."""
    _same_shape(one, other)
    return (one.exp() * (one.clamp(min=LOWEST) - other.clamp(min=LOWEST))).sum(dim=-1)


def generalised_jsd(policy: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Compute the generalised Jensen-Shannon divergence of Agarwal et al. 2023 (arXiv 2306.13649, equation 1).

    beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q; at its ends, where that is 0, what it tends
    to once it is divided by beta (1 - beta): KL(p || q) for beta 0, KL(q || p) for beta 1.
    """
    teacher = teacher.detach()
    if beta == 0:
        return kl(teacher, policy)
    if beta == 1:
        return kl(policy, teacher)
    mixed = mixture(teacher, policy, beta)
    return beta * kl(teacher, mixed) + (1 - beta) * kl(policy, mixed)


def skewed_kl(policy: Tensor, teacher: Tensor, beta: float, skew: float) -> Tensor:
    """Compute the skew divergences of Ko et al. 2024 (arXiv 2402.03898, section 3.1), whose gradients are bounded.

    For beta 0 KL(p || skew p + (1 - skew) q), for beta 1 KL(q || skew q + (1 - skew) p).
    """
    teacher = teacher.detach()
    if beta == 0:
        return kl(teacher, mixture(teacher, policy, skew))
    return kl(policy, mixture(policy, teacher, skew))


def total_variation(policy: Tensor, teacher: Tensor) -> Tensor:
    """Compute half the sum of |p - q| (Wen et al. 2023, arXiv 2307.15190, section 2.2), which is 1 at most."""
    _same_shape(policy, teacher)
    return (policy.exp() - teacher.detach().exp()).abs().sum(dim=-1) / 2


def on_the_way(policy: Tensor, teacher: Tensor, share: float) -> Tensor:
    """Return log softmax((1 - share) log q + share log p), a teacher between the policy and its teacher (m, v).

    Shing et al. 2025 (arXiv 2501.16937, equation 3): it gets no gradient either.
    """
    _same_shape(policy, teacher)
    between = (1 - share) * policy.detach().clamp(min=LOWEST) + share * teacher.detach().clamp(min=LOWEST)
    return between.log_softmax(dim=-1)


def mixture(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Return log(share * one + (1 - share) * other), of log-probabilities."""
    _same_shape(one, other)
    return torch.logaddexp(one + math.log(share), other + math.log1p(-share))


def with_rest(table: Tensor, tokens: Tensor) -> Tensor:
    """Return of log-probabilities of all tokens (m, v) those of k (m, k), and of all others together last (m, k + 1).

    A divergence of these is never greater than that of the whole distributions, of which they are a coarser view.
    """
    rest = table.scatter(-1, tokens, -math.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([table.gather(-1, tokens), rest], dim=-1)


def add_rest(some: Tensor) -> Tensor:
    """Put the log-probability of all other tokens behind those of k tokens, where no others are known (m, k + 1)."""
    rest = (1 - some.exp().sum(dim=-1, keepdim=True)).clamp(min=torch.finfo(some.dtype).eps).log()
    return torch.cat([some, rest], dim=-1)


def discounted(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Sum the rewards of a token and of those behind it, each gamma times as much as the one before; all (n, t).

    Tokens outside of the mask are passed over, and have 0.
    """
    _same_shape(rewards, mask)
    running = rewards.new_zeros(len(rewards))
    columns: list[Tensor] = []
    for place in reversed(range(rewards.shape[1])):
        running = torch.where(mask[:, place], rewards[:, place] + gamma * running, running)
        columns.append(running)
    return torch.stack(columns[::-1], dim=1).masked_fill(~mask, 0.0)


def _same_shape(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(f"shapes {tuple(one.shape)} and {tuple(other.shape)} must be equal")
