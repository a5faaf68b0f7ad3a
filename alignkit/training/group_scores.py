"""Advantages of answers to the same prompt: each score against those of its group, `answers` neighbours; all (n,)."""

from math import comb
from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["group", "others", "length", "none"]
Scale = Literal["group", "batch", "beta", "none"]

LEAST_VARIANCE, MOST_WEIGHT = 1e-4, 1e6
"""Bounds of what `beta` divides by, where all prompts are equally hard and where one is nearly always answered well."""


def group_advantages(
    scores: Tensor,
    answers: int,
    scale: Scale = "group",
    baseline: Baseline = "group",
    lengths: Tensor | None = None,
) -> Tensor:
    """Compare each score with its group.

    Less the mean of the group, less that of the others in it (`leave_one_out_advantages`), less its mean weighted by
    the answers' lengths (Hao et al. 2025, arXiv 2505.23585), or less nothing. Divided by the standard
    deviation of the group (Shao et al. 2024, arXiv 2402.03300, section 4.1.2), of all scores (Liu et al. 2025, arXiv
    2508.08221), by `beta_density`, or by nothing (Liu et al. 2025, arXiv 2503.20783, section 3.1: the division favours
    prompts that are nearly always or nearly never answered well). The deviation is the sample's, with 1e-4 added, as
    in TRL.
    """
    groups = rows_of_groups(scores, answers)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if baseline == "others":
        centred = leave_one_out_advantages(scores, answers).view_as(groups)
    elif baseline == "length" and lengths is not None:
        weights = rows_of_groups(lengths, answers)
        total = weights.sum(dim=1, keepdim=True).clamp(min=1)
        centred = groups - (weights * groups).sum(dim=1, keepdim=True) / total
    elif baseline == "none":
        centred = groups
    if scale == "group":
        centred = centred / (groups.std(dim=1, keepdim=True) + 1e-4)
    elif scale == "batch":
        centred = centred / (scores.std() + 1e-4)
    elif scale == "beta":
        centred = centred * (1 / beta_density(groups.mean(dim=1, keepdim=True))).clamp(max=MOST_WEIGHT)
    return centred.flatten().detach()


def beta_density(means: Tensor) -> Tensor:
    """Return the density at each group's mean score, from 0 to 1, that its advantages are divided by (g, 1).

    That of Beta(1 + a / 3, 1 + b / 3), where Beta(a, b) has the mean and variance that the groups' means have, and no
    parameter is below 1 (Xiao et al. 2025, arXiv 2506.02864); 1 where there is one group.
    """
    if len(means) < 2:
        return torch.ones_like(means)
    mean, variance = means.mean(), means.var().clamp(min=LEAST_VARIANCE)
    size = mean * (1 - mean) / variance - 1
    a, b = ((1 + part / 3).clamp(min=1.0) for part in (size * mean, size * (1 - mean)))
    constant = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    logarithm: Tensor = torch.special.xlogy(a - 1, means) + torch.special.xlog1py(b - 1, -means) - constant
    return logarithm.exp()


def leave_one_out_advantages(rewards: Tensor, answers: int) -> Tensor:
    """Compare each reward with the mean of the others in its group.

    Ahmadian et al. 2024 (arXiv 2402.14740), equation 8. The baseline does not depend on the answer that it judges, so
    the gradient stays unbiased.
    """
    groups = rows_of_groups(rewards, answers)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (answers - 1)
    return (groups - others).flatten().detach()


def best_of_advantages(scores: Tensor, answers: int, k: int, scaled: bool) -> Tensor:
    """Compare answers by what they give to teams of k answers of their group, of which the best counts.

    The mean score of all teams that an answer is in, less that of all teams, and, `scaled`, over the standard deviation
    of all teams' scores with 1e-4 added: Pass@k training (Chen et al. 2025, arXiv 2508.10751), there for scores of 0
    and 1. Nothing is drawn: of n scores in rising order the m-th is the best of comb(m - 1, k - 1) teams.
    """
    ordered, order = rows_of_groups(scores, answers).sort(dim=1)
    places = range(answers)
    best = scores.new_tensor([comb(place, k - 1) for place in places]) / comb(answers, k)
    mean = (ordered * best).sum(dim=1, keepdim=True)
    alone = scores.new_tensor([comb(place, k - 1) for place in places]) / comb(answers - 1, k - 1)
    beaten = scores.new_tensor([comb(place - 1, k - 2) if place and k > 1 else 0 for place in places])
    above = (ordered * beaten / comb(answers - 1, k - 1)).flip(1).cumsum(1).flip(1)
    above = torch.cat([above[:, 1:], torch.zeros_like(above[:, :1])], dim=1)  # of those that score more
    compared = ordered * alone + above - mean
    if scaled:
        deviation = ((ordered - mean).square() * best).sum(dim=1, keepdim=True).sqrt()
        compared = compared / (deviation + 1e-4)
    return torch.empty_like(compared).scatter_(1, order, compared).flatten().detach()


def equal_groups(scores: Tensor, answers: int) -> Tensor:
    """Return which groups have one score throughout (n / answers,)."""
    groups = rows_of_groups(scores, answers)
    return (groups == groups[:, :1]).all(dim=1)


def share_of_equal_groups(scores: Tensor, answers: int) -> Tensor:
    """Return which share of the groups has one score throughout."""
    return equal_groups(scores, answers).to(scores.dtype).mean()


def rows_of_groups(scores: Tensor, answers: int) -> Tensor:
    """Put neighbours into rows of `answers` (n / answers, answers). Raise ValueError where they do not fill them."""
    if scores.ndim != 1 or answers < 2 or len(scores) % answers:
        raise ValueError(f"scores {tuple(scores.shape)} are no whole number of groups of {answers}, two at least")
    return scores.view(-1, answers)
