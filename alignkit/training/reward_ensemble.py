"""Ensembles of learned rewards: how far their members differ, and what that takes off a score.

The members are the heads of all reward models that a stage learns from, each less its own mean and over the spread of
its model's scores. As in Coste et al. 2023 (arXiv 2310.02743) what is learnt from may be their mean, their least score
(worst-case optimisation), or their mean less what their doubt says. There the doubt is the variance over five models
that differ by their seed; here it is the standard deviation, so that it counts in the unit of the scores, and members
may share a body, each taught by its own half of the pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.contract.sampling_settings import Combine


class Ensemble(NamedTuple):
    """What m members say of n answers, and what each counts in the total."""

    names: Sequence[str]
    scores: Tensor
    """(n, m)"""
    weights: Tensor
    """(m,), above zero: the weight of its model, over the number of its heads."""

    def spread(self) -> Tensor:
        """Return the standard deviation over the members of each answer's scores (n,)."""
        return spread_of(self.scores, self.weights)

    def agreement(self) -> Tensor:
        """Return the share of what tells the answers apart on which the members agree ()."""
        return agreement_of(self.scores, self.weights)

    def doubt(self, combine: Combine, factor: float) -> Tensor:
        """Return what is taken off the weighted sum of the members for their doubt (n,); nothing where `mean`."""
        return doubts(self.scores, self.weights, combine, factor)

    def take(self, rows: Tensor) -> "Ensemble":
        """Return what is said of these answers."""
        return self._replace(scores=self.scores[rows])

    def with_rows(self, place: Tensor, others: "Ensemble") -> "Ensemble":
        """Return it with what is said of others at these places."""
        return self._replace(scores=self.scores.index_copy(0, place, others.scores))


def doubts(scores: Tensor, weights: Tensor, combine: Combine, factor: float) -> Tensor:
    """Return by how much what is learnt from lies below the weighted sum of members' scores (n, m); weights (m,).

    `worst`: by their mean less the least of them, `conservative`: by `factor` standard deviations, each times the sum
    of the weights. So what is learnt from is that sum times the least, or times mean - factor * std.
    """
    if combine == "mean":
        return scores.new_zeros(len(scores))
    if combine == "worst":
        return scores @ weights - weights.sum() * scores.amin(dim=1)
    return factor * weights.sum() * spread_of(scores, weights)


def spread_of(scores: Tensor, weights: Tensor) -> Tensor:
    """Return the standard deviation of members' scores (n, m) around their mean (n,), both weighted by (m,)."""
    if scores.ndim != 2 or weights.shape != scores.shape[1:]:
        raise ValueError(f"weights {tuple(weights.shape)} must be one for each column of scores {tuple(scores.shape)}")
    shares = weights / weights.sum()
    mean = (scores * shares).sum(dim=1, keepdim=True)
    return ((scores - mean).square() * shares).sum(dim=1).sqrt()


def agreement_of(scores: Tensor, weights: Tensor) -> Tensor:
    """Return the share of the variance of members' scores (n, m) between answers that their mean has (); weights (m,).

    Each member counts less its own mean over the answers: what one adds to all of them moves no advantage. 1: all
    members tell the answers apart alike, or nothing tells them apart.
    """
    shares = weights / weights.sum()
    apart = scores - scores.mean(dim=0)
    common = ((apart @ shares).square()).mean()
    whole = (apart.square() @ shares).mean()
    return torch.where(whole > 0, common / whole.clamp(min=1e-12), 1.0)


def joined(names: Sequence[Sequence[str]], scores: Sequence[Tensor], weights: Sequence[float]) -> Ensemble | None:
    """Return the ensemble of models, of each the names of its heads, their scores (n, h) and its weight.

    None where they are fewer than two members together.
    """
    members = [name for some in names for name in some]
    if len(members) < 2:
        return None
    each = [weight / len(some) for some, weight in zip(names, weights, strict=True) for _ in some]
    return Ensemble(members, torch.cat(list(scores), dim=1), torch.tensor(each))
