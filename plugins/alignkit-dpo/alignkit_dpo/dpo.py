"""DPO: raise the chosen answers above the rejected ones, without a reward model.

Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) maximises log sigmoid(margin), where an answer's
reward is beta times the log-probability by which the policy exceeds its start, and the margin the chosen answer's
reward less the rejected one's. The start is never a second model in training: before the first step the policy itself
is the start, and what it says of the pairs is kept on disk for this stage and all that begin at the same policy. Where
`reference` names another policy, that one stands for the start.

1. `loss` names another function of the same margin or of both rewards, or several with their weights.
2. Soft labels: where a row has `p_chosen`, the loss is the mean of those of both orders, weighted by it.
3. `ipo` counts log-probabilities by token, as its authors advise, so that long answers do not weigh more.
4. Dropout is off: a pair's margin at the start is exactly zero, which is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from alignkit import Advice, PairNeeds, Policy, Preferences, Stage, method
from alignkit_dpo import pair_learning, preference_losses as losses
from alignkit_dpo.pair_learning import SHIFT, START, Judgement, PairMethod, PairSettings, Side, Sides
from alignkit_dpo.pair_papers import DPO_PAPERS

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.kit import Pair

Loss = Literal[
    "sigmoid",
    "ipo",
    "hinge",
    "robust",
    "exo",
    "discopop",
    "squared-hinge",
    "exponential",
    "aot",
    "nca",
    "bco",
    "sppo",
    "apo-zero",
    "apo-down",
    "sft",
]
SMOOTHED = ("sigmoid", "robust", "exo", "aot")
"""Losses that have `label_smoothing`."""
OF_MARGIN = (*SMOOTHED, "ipo", "hinge", "discopop", "squared-hinge", "exponential")
"""Losses of the difference of two gains."""
SCALED = tuple(name for name in OF_MARGIN if name != "ipo")
"""Those of beta times it."""


class DPOSettings(PairSettings):
    """Settings of `dpo`."""

    beta: PositiveFloat = 0.1
    """The pull back to the start: the smaller, the further the policy may go."""
    loss: Loss | dict[Loss, PositiveFloat] = "sigmoid"
    """`sigmoid`: the paper's. `ipo`: towards a margin of 1/(2 beta), so that certain pairs do not pull for ever.
    `hinge`: until the margin is 1. `robust`: unbiased where a known share of the labels is wrong. `apo-zero`: for
    chosen answers better than the policy's own, `apo-down`: worse. `sft`: the likelihood of the chosen answers.
    Several have weights: `loss = { sigmoid = 1.0, sft = 0.2 }`. The page of the method has all, with their papers."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the labels taken to be wrong, for `sigmoid` (conservative DPO), `robust`, `aot`, and `exo`, which needs
    it."""
    by_token: bool = False
    """Divide an answer's gain by its tokens, so that long answers do not weigh more; beta is then larger (5)."""
    tail: float = Field(default=1.0, ge=0, le=1)
    """What a token counts behind the length of the pair's shorter answer; less than 1 takes length out of the pull."""
    length_penalty: NonNegativeFloat = 0.0
    """Added to the margin for each token by which the chosen answer is longer: what length explains is not learnt."""
    weighted: bool = False
    """Weigh a pair by how likely the policy itself is to say its answers."""
    keep_chosen: NonNegativeFloat = 0.0
    """Weight of the chosen answer's loss of likelihood against the start, which is taken from the margin."""
    divergence: Literal["reverse-kl", "forward-kl", "js", "alpha"] = "reverse-kl"
    """How the distance from the start is measured; `alpha` lies between the reverse KL (0) and the forward KL (1)."""
    alpha: float = Field(default=0.5, gt=0, lt=1)
    """Of the divergence `alpha`."""
    discopop_tau: PositiveFloat = 0.05
    """Width of the change from the logistic to the exponential part, for `discopop`."""

    @property
    def mixture(self) -> Mapping[Loss, float]:
        """The losses with their weights."""
        return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

    @model_validator(mode="after")
    def _the_losses_know_of_what_is_set(self) -> Self:
        if not self.mixture:
            raise ValueError("loss has no losses; name one, or several with their weights")
        for name, known in KNOWN_TO.items():
            if getattr(self, name) != type(self).model_fields[name].default and not set(known) & set(self.mixture):
                words = " or ".join(known)
                named = " and ".join(self.mixture)
                raise ValueError(f"loss {named} has no {name}; take loss {words}, or leave it out")
        if "exo" in self.mixture and not self.label_smoothing:
            raise ValueError("loss exo needs label_smoothing; its paper takes 1e-3")
        if self.alpha != type(self).model_fields["alpha"].default and self.divergence != "alpha":
            raise ValueError(f'divergence {self.divergence} has no alpha; take divergence "alpha", or leave it out')
        return self


KNOWN_TO: Mapping[str, Sequence[str]] = {
    "beta": (*OF_MARGIN, *losses.BY_REWARDS, "sppo"),
    "label_smoothing": SMOOTHED,
    "by_token": SCALED,
    "length_penalty": SCALED,
    "keep_chosen": SCALED,
    "divergence": OF_MARGIN,
    "discopop_tau": ("discopop",),
    "tail": (*OF_MARGIN, *losses.BY_REWARDS, "sppo"),
}
"""Settings, and the losses in which they do something."""


def needs(settings: DPOSettings) -> PairNeeds:
    """Return what it will do: the start reads each pair once, and `aot` the pairs of each step before it."""
    return pair_learning.needs(settings, 1.0 + settings.epochs * ("aot" in settings.mixture))


@method(
    "dpo",
    advice=Advice(
        "there are pairs, and nothing is to be sampled: the shortest way from pairs to a policy",
        "likelihoods of both answers fall, and nothing is learnt beyond what the pairs show; several epochs overfit",
    ),
    needs=needs,
    results=("accuracy", "margin"),
    papers=DPO_PAPERS,
)
def dpo(
    settings: DPOSettings, stage: Stage, *, policy: Policy, pairs: Preferences, reference: Policy | None = None
) -> Policy:
    """Raise the chosen answers above the rejected ones, without a reward model."""
    return pair_learning.learn(made_of(settings), stage, policy, pairs, reference)


def made_of(settings: DPOSettings) -> PairMethod:
    """Return how `dpo` learns with these settings."""
    made = PairMethod(settings, partial(judged, settings=settings), tail=settings.tail)

    def sorted_pairs(model: Any, part: Sequence[Pair]) -> Sequence[Pair]:
        return with_shifts(part, made.sums(model, part))

    return replace(made, before_step=sorted_pairs) if "aot" in settings.mixture else made


def judged(sides: Sides, settings: DPOSettings) -> Judgement:
    """Compute the losses of n pairs and the rewards of their answers."""
    chosen, rejected = sides.chosen, sides.rejected
    loss = pair_learning.of_both_orders(sides, lambda one: preferring(one, settings))
    if settings.weighted:
        loss = loss * likelihood(chosen) * likelihood(rejected)
    return Judgement(loss, settings.beta * chosen.gains, settings.beta * rejected.gains)


def likelihood(side: Side) -> Tensor:
    """Return exp(log pi(y) / |y|) (n,), without gradient: the weight of WPO, arXiv 2406.11827."""
    return (side.logprobs.detach() / side.lengths).exp()


def preferring(sides: Sides, settings: DPOSettings) -> Tensor:
    """Compute the loss of preferring the chosen of two answers (n,): the weighted sum of all that `loss` names."""
    parts = [weight * loss_of(name, sides, settings) for name, weight in settings.mixture.items()]
    return sum(parts[1:], parts[0])


def loss_of(name: Loss, sides: Sides, settings: DPOSettings) -> Tensor:
    """Compute one loss of preferring the chosen of two answers (n,)."""
    chosen, rejected = sides.chosen, sides.rejected
    if name in OF_MARGIN:
        return loss_of_margin(name, sides, settings)
    if name == "sft":
        return losses.negative_log_likelihood(chosen.logprobs, chosen.lengths)
    if name == "sppo":
        return losses.sppo(chosen.gains, rejected.gains, settings.beta)
    return losses.BY_REWARDS[name](settings.beta * chosen.gains, settings.beta * rejected.gains)


def loss_of_margin(name: Loss, sides: Sides, settings: DPOSettings) -> Tensor:
    """Compute one loss of the difference of two gains (n,)."""
    lead = lead_of(sides, settings, by_token=settings.by_token or name == "ipo")
    if name == "ipo":
        return losses.ipo(lead, settings.beta)
    longer = sides.chosen.lengths - sides.rejected.lengths
    margin = settings.beta * (lead + sides.shift if name == "aot" else lead) + settings.length_penalty * longer
    if name == "robust":
        return losses.robust(margin, settings.label_smoothing)
    if name == "exo":
        return losses.exo(margin, settings.label_smoothing)
    if name == "discopop":
        return losses.discopop(margin, settings.discopop_tau)
    return (
        losses.BY_MARGIN[name](margin) if name in losses.BY_MARGIN else losses.sigmoid(margin, settings.label_smoothing)
    )


def lead_of(sides: Sides, settings: DPOSettings, *, by_token: bool) -> Tensor:
    """Compute by how much the chosen answer has gained more than the rejected one (n,)."""
    chosen, rejected = (
        losses.divergent(side.gains, settings.divergence, settings.alpha) / (side.lengths if by_token else 1)
        for side in (sides.chosen, sides.rejected)
    )
    lead = chosen - rejected
    if settings.keep_chosen:
        lead = lead - settings.keep_chosen * losses.shortfall(sides.chosen.gains)
    return lead


def with_shifts(pairs: Sequence[Pair], now: Sequence[Sequence[float]]) -> Sequence[Pair]:
    """Return the pairs of a step such that each is compared with the start's quantile of its own rank.

    AOT (arXiv 2406.05882) sorts the log-ratios of policy and start over the step, each by itself, and pairs them by
    rank; so a pair's margin moves by what the start says of it less what the start says of the pair at its rank.
    """
    from alignkit.kit import with_values

    starts = [chosen - rejected for chosen, rejected in (pair.row[START] for pair in pairs)]
    ratios = [chosen - rejected for chosen, rejected in now]
    order = sorted(range(len(pairs)), key=ratios.__getitem__)
    moved = dict(zip(order, sorted(starts), strict=True))
    return with_values(pairs, SHIFT, [start - moved[place] for place, start in enumerate(starts)])
