"""BCO: learn from answers that are good or bad as a classifier does whose logit is the policy's own reward.

Binary classifier optimisation (Jung et al. 2024, arXiv 2404.04656) takes the DPO reward of an answer and minimises the
cross-entropy of telling good answers from bad ones by it, less a shift that lies between both.

1. The shift is half-way between the mean rewards of good and of bad answers, some of which are read before each step,
   and the mean over all steps so far, as in TRL; the paper's is a moving average. One of the step alone would follow a
   policy that makes all answers rarer, and hold nothing.
2. Its weights that match the prompts of both sides are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import Any

from pydantic import Field

from alignkit import Advice, PairNeeds, Paper, Policy, Preferences, Ratings, Stage, method
from alignkit_dpo import answer_learning, preference_losses
from alignkit_dpo.answer_learning import AnswerMethod, AnswerSettings, GoodOrBad

PAPERS = (
    Paper(
        "bco",
        "Binary Classifier Optimization for Large Language Model Alignment",
        "arXiv 2404.04656",
        {"beta": 0.01},
        differs="the shift is the mean over all steps so far, and prompts of both sides are not matched",
    ),
)


class BCOSettings(AnswerSettings):
    """Settings of `bco`."""

    shift_rows: int = Field(default=8, ge=2)
    """Rows of a step, half of them good and half bad, that are read before it to find the shift: fewer cost less and
    say less."""


def needs(settings: BCOSettings) -> PairNeeds:
    """Return what it will do: the start reads each answer once, the policy some of each step before it."""
    return answer_learning.needs(settings, 1 + settings.epochs * min(1.0, settings.shift_rows / settings.batch))


@method(
    "bco",
    advice=Advice(
        "as for kto, where good and bad answers come in like numbers",
        "what tells good from bad may be the kind of prompt, and not the answer",
    ),
    needs=needs,
    results=("auc",),
    papers=PAPERS,
    refuses=answer_learning.unfit,
)
def bco(settings: BCOSettings, stage: Stage, *, policy: Policy, answers: Ratings | Preferences) -> Policy:
    """Learn to tell answers that are good by themselves from bad ones, without pairs and without a reward model."""
    made = AnswerMethod(
        settings, preference_losses.shifted, partial(half_way, settings), anchored="objective/shift", averaged=True
    )
    return answer_learning.learn(made, stage, policy, answers)


def half_way(settings: BCOSettings, model: Any, rows: Sequence[GoodOrBad]) -> float:
    """Return the mean of the mean gains of good and of bad answers, in nats; where one side lacks, the other's."""
    most = settings.shift_rows // 2
    sides = [[row for row in rows if row.good is good][:most] for good in (True, False)]
    some = [row for side in sides for row in side]
    now = iter(answer_learning.logprobs_of(settings, model, [(row.prompt, row.answer) for row in some]))
    return fmean(fmean(next(now) - row.start for row in side) for side in sides if side)
