"""KTO: learn from answers that are good or bad by themselves; no two of them need answer the same prompt.

Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306) takes the DPO reward of an answer, beta times
the log-probability by which the policy exceeds its start, and pushes it above (good) or below (bad) a zero point: beta
times the KL divergence from the start.

1. The divergence is estimated before each step, on some of the step's prompts with the answers to other prompts, and is
   one number for the whole step. It has no gradient, and is not below zero.
2. Which rows tell it, and which answer stands for whose, is drawn once, so that the start reads each of them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import Any, Literal, Self

from pydantic import PositiveInt, model_validator

from alignkit import Advice, PairNeeds, Paper, Policy, Preferences, Ratings, Stage, method
from alignkit_dpo import answer_learning, preference_losses
from alignkit_dpo.answer_learning import AnswerMethod, AnswerSettings, GoodOrBad
from alignkit_dpo.pair_papers import APO

PAPERS = (
    Paper("kto", "KTO: Model Alignment as Prospect Theoretic Optimization", "arXiv 2402.01306"),
    Paper(
        "apo-zero-unpaired",
        APO,
        "arXiv 2408.06266",
        {"loss": "apo_zero_unpaired"},
        differs="the sides are single answers, not pairs",
    ),
)


class KTOSettings(AnswerSettings):
    """Settings of `kto`."""

    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto`: the paper's. `apo_zero_unpaired`: zero point at the start, for good answers that are better than the
    policy's own (arXiv 2408.06266)."""
    kl_rows: PositiveInt = 8
    """Rows of a step, in the mean, whose answers are swapped to estimate the KL divergence: fewer cost less and say
    less. From `batch` on all."""

    @property
    def swaps(self) -> float:
        """The share of the rows whose answers are swapped."""
        return min(1.0, self.kl_rows / self.batch) if self.loss == "kto" else 0.0

    @model_validator(mode="after")
    def _the_loss_knows_a_divergence(self) -> Self:
        if self.kl_rows != type(self).model_fields["kl_rows"].default and self.loss != "kto":
            raise ValueError(f"loss {self.loss} has its zero point at the start, so kl_rows does nothing; leave it out")
        return self


def needs(settings: KTOSettings) -> PairNeeds:
    """Return what it will do: the start reads each answer and the swapped ones, the policy the swapped ones."""
    return answer_learning.needs(settings, 1 + settings.swaps * (1 + settings.epochs))


@method(
    "kto",
    advice=Advice(
        "answers are judged one by one, or good and bad ones answer different prompts",
        "of true pairs it uses less than dpo does; too few answers of one side make it unstable",
    ),
    needs=needs,
    results=("auc",),
    papers=PAPERS,
    refuses=answer_learning.unfit,
)
def kto(settings: KTOSettings, stage: Stage, *, policy: Policy, answers: Ratings | Preferences) -> Policy:
    """Learn from answers that are good or bad by themselves, without pairs and without a reward model."""
    zero = partial(divergence, settings) if settings.loss == "kto" else None
    made = AnswerMethod(settings, preference_losses.kto, zero, settings.swaps)
    return answer_learning.learn(made, stage, policy, answers)


def divergence(settings: KTOSettings, model: Any, rows: Sequence[GoodOrBad]) -> float:
    """Estimate the KL divergence of a model from its start, in nats, on swapped answers; 0 of rows without any."""
    some = [(row.prompt, row.swapped, row.swapped_start) for row in rows if row.swapped is not None]
    if not some:
        return 0.0
    now = answer_learning.logprobs_of(settings, model, [(prompt, swapped) for prompt, swapped, _ in some])
    return max(0.0, fmean(said - start for said, (*_, start) in zip(now, some, strict=True)))
