"""Methods on pairs without a start: `simpo`, `orpo` and `cpo`.

Nothing is compared with the policy that the stage began at, so nothing is read before; what holds the policy is the
likelihood of the chosen answers (`orpo`, `cpo`) or a small learning rate and a target margin (`simpo`).

1. `simpo` (Meng et al. 2024, arXiv 2405.14734) takes beta times the log-probability by token as an answer's reward.
2. `orpo` (Hong et al. 2024, arXiv 2403.07691) teaches the chosen answers and weighs the odds of both beside that.
3. `cpo` (Xu et al. 2024, arXiv 2401.08417) is DPO with an even start, and teaches the chosen answers.

Soft labels (`p_chosen`) weigh the losses of both orders, as in `dpo`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from alignkit import Advice, PairNeeds, Policy, Preferences, RowSettings, Stage, method
from alignkit_dpo import pair_learning, preference_losses as losses
from alignkit_dpo.pair_learning import Judgement, Objective, PairMethod, PairSettings, Side, Sides
from alignkit_dpo.pair_papers import CPO_PAPERS, ORPO_PAPERS, SIMPO_PAPERS

if TYPE_CHECKING:
    from torch import Tensor


def needs(settings: RowSettings) -> PairNeeds:
    """Return what they will do: nothing is read before the first step."""
    return pair_learning.needs(settings, 0.0)


class SimPOSettings(PairSettings):
    """Settings of `simpo`."""

    beta: PositiveFloat = 2.0
    """How sharply a difference of log-probabilities by token decides; 2 to 10."""
    gamma: NonNegativeFloat = 1.0
    """By how much the chosen answer's reward should lead; 0.3 to 1.6, about half of beta or less."""
    alpha: float = 0.0
    """Bends the reward to (1 - p^-alpha) / alpha of the likelihood p by token; 0 is log p, 0.25 a usual other."""
    sft: NonNegativeFloat = 0.0
    """Weight of the likelihood of the chosen answers beside it."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the labels taken to be wrong."""


@method(
    "simpo",
    advice=Advice(
        "as for dpo, where no start is to be read and long answers are not to win by their length",
        "without a start nothing holds the policy; a high learning rate ruins it",
    ),
    needs=needs,
    results=("accuracy", "margin"),
    papers=SIMPO_PAPERS,
)
def simpo(settings: SimPOSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Raise the chosen answers above the rejected ones by their likelihood by token, without a start."""

    def reward(side: Side) -> Tensor:
        return settings.beta * losses.transformed(side.logprobs / side.lengths, settings.alpha)

    def loss(chosen: Side, rejected: Side) -> Tensor:
        margin = reward(chosen) - reward(rejected) - settings.gamma
        return losses.sigmoid(margin, settings.label_smoothing) + taught(chosen, settings.sft)

    return learn(settings, stage, policy, pairs, judging(loss, reward))


class ORPOSettings(PairSettings):
    """Settings of `orpo`."""

    learning_rate: PositiveFloat = 8e-6
    """Peak learning rate; it teaches and aligns at once, so that of `sft` is nearer than that of `dpo`."""
    beta: PositiveFloat = 0.1
    """Weight of the odds ratio beside the likelihood of the chosen answer, lambda in the paper."""


@method(
    "orpo",
    advice=Advice(
        "pairs are all there is, and the chosen answers are to be imitated in the same stage",
        "the preference is learnt slowly beside the imitation",
    ),
    needs=needs,
    results=("accuracy", "margin"),
    papers=ORPO_PAPERS,
)
def orpo(settings: ORPOSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Teach the chosen answers and lower the odds of the rejected ones, in one stage, without a start."""

    def reward(side: Side) -> Tensor:
        return settings.beta * side.logprobs / side.lengths

    def loss(chosen: Side, rejected: Side) -> Tensor:
        by_token = [side.logprobs / side.lengths for side in (chosen, rejected)]
        return taught(chosen, 1.0) + settings.beta * losses.odds_ratio(*by_token)

    return learn(settings, stage, policy, pairs, judging(loss, reward))


class CPOSettings(PairSettings):
    """Settings of `cpo`."""

    beta: PositiveFloat = 0.1
    """How sharply a difference of log-probabilities decides."""
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """`sigmoid`: the paper's. `hinge`: until the margin is 1, which is SLiC-HF. `ipo`: towards 1/(2 beta), by token."""
    sft: NonNegativeFloat = 1.0
    """Weight of the likelihood of the chosen answers, by token."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the labels taken to be wrong, for `sigmoid`."""

    @model_validator(mode="after")
    def _the_loss_knows_of_wrong_labels(self) -> Self:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"loss {self.loss} has no label_smoothing; take loss sigmoid, or leave it out")
        return self


@method(
    "cpo",
    advice=Advice(
        "as for dpo, where chosen answers are good enough to imitate besides, as in translation",
        "without a start nothing holds the policy but the imitation",
    ),
    needs=needs,
    results=("accuracy", "margin"),
    papers=CPO_PAPERS,
)
def cpo(settings: CPOSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Raise the chosen answers above the rejected ones and teach them, without a reward model or a start."""

    def reward(side: Side) -> Tensor:
        return settings.beta * (side.logprobs / side.lengths if settings.loss == "ipo" else side.logprobs)

    def loss(chosen: Side, rejected: Side) -> Tensor:
        margin = reward(chosen) - reward(rejected)
        if settings.loss == "ipo":
            preferred = losses.ipo(margin / settings.beta, settings.beta)
        elif settings.loss == "hinge":
            preferred = losses.hinge(margin)
        else:
            preferred = losses.sigmoid(margin, settings.label_smoothing)
        return preferred + taught(chosen, settings.sft)

    return learn(settings, stage, policy, pairs, judging(loss, reward))


def judging(loss: Callable[[Side, Side], Tensor], reward: Callable[[Side], Tensor]) -> Objective:
    """Return the objective of a loss of preferring the first of two answers (n,) and a reward of each (n,)."""

    def judged(sides: Sides) -> Judgement:
        preferring = pair_learning.of_both_orders(sides, lambda one: loss(one.chosen, one.rejected))
        return Judgement(preferring, reward(sides.chosen), reward(sides.rejected))

    return judged


def learn(settings: RowSettings, stage: Stage, policy: Policy, pairs: Preferences, objective: Objective) -> Policy:
    """Train a policy on pairs as a method without a start does."""
    return pair_learning.learn(PairMethod(settings, objective, compared=False), stage, policy, pairs)


def taught(side: Side, weight: float) -> Tensor | float:
    """Return the weighted negative log-likelihood by token (n,)."""
    return weight * losses.negative_log_likelihood(side.logprobs, side.lengths) if weight else 0.0
