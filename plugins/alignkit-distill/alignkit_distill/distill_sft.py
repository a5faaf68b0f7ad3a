"""Distil from given answers: at each token of demonstrations a policy learns what a teacher would have said there.

Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531), word by word (Kim & Rush 2016, arXiv 1606.07947, section
3.1): a token of a demonstration tells which one is right, the teacher how likely all others were. It needs no sampling,
and so no answers of the policy; what follows its own mistakes it never sees, which `distill` is for.

1. With a temperature the divergence is multiplied by its square, so that the gradient keeps its size, as in the paper;
   the given tokens are learnt at the temperature 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, PositiveInt

from alignkit import (
    Advice,
    Demonstrations,
    DemonstrationSettings,
    PackedNeeds,
    Paper,
    Policy,
    Stage,
    method,
    packed_needs,
)
from alignkit_distill.beside_teacher import BesideTeacher, Read
from alignkit_distill.teachers import Hint, TokenComparison, check_room, open_teacher

if TYPE_CHECKING:
    from torch import Tensor


class DistillSFTSettings(DemonstrationSettings):
    """Settings of `distill-sft`."""

    beta: float = Field(default=0.0, ge=0, le=1)
    """0: KL(teacher || policy), which spreads over all that the teacher may say; 1: KL(policy || teacher), which keeps
    to what it surely says; between them both."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both; above 1 what the teacher holds unlikely is told apart as well, and so learnt."""
    hard: float = Field(default=0.0, ge=0, lt=1)
    """Share of the loss that the given tokens have, as in `sft`, beside the teacher."""
    top_k: PositiveInt | None = None
    """Tell apart so many tokens alone, those that the teacher holds likeliest. Unset: all."""


PAPERS = (
    Paper(
        "hinton-kd",
        "Distilling the Knowledge in a Neural Network",
        "arXiv 1503.02531",
        {"temperature": 2.0, "hard": 0.33},
        differs="the numbers are those of its model of speech, whose given labels count half as much as the teacher",
    ),
    Paper(
        "word-kd",
        "Sequence-Level Knowledge Distillation",
        "arXiv 1606.07947",
        {"hard": 0.5},
        differs="what its section 3.1 compares with, word by word; `seqkd` is its own method",
    ),
)


def needs(settings: DistillSFTSettings) -> PackedNeeds:
    """Return what the loop will do with demonstrations."""
    read = replace(packed_needs(settings), max_lost=settings.max_lost, learn=settings.learn, same_tokens=True)
    return replace(read, shown=settings.samples)


@method(
    "distill-sft",
    advice=Advice(
        "as for sft, where a better policy with the same tokens is at hand: it tells of each token what else is right",
        "what follows the policy's own mistakes is never seen; distill shows it that",
    ),
    needs=needs,
    results=("perplexity", "teacher_kl", "agreement"),
    papers=PAPERS,
)
def distill_sft(
    settings: DistillSFTSettings, stage: Stage, *, policy: Policy, teacher: Policy, demos: Demonstrations
) -> Policy:
    """Learn at each token of demonstrations what a teacher would have said there."""
    from alignkit.kit import (
        Teaching,
        learnt_tokens,
        load_policy,
        read_demonstrations,
        save_taught,
        show_taught,
        taught_perplexity,
        teach,
        tell_taught,
    )

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    rows = read_demonstrations(demos, model, tokenizer, settings, stage)
    taught_by = open_teacher(teacher, tokenizer, Hint(), settings.top_k, settings.precision)
    check_room(taught_by, max(len(row.ids) for row in [*rows.train, *rows.held_out]))
    lesson = Lesson(BesideTeacher(model, taught_by, settings.temperature, settings.precision), settings)
    before = taught_perplexity(model, tokenizer, rows, settings), lesson.measured(rows.held_out)
    how = Teaching(lesson.loss, lesson.passes, weigh=learnt_tokens, tokens=lambda row: len(row.ids), dropout=True)
    teach(model, rows.train, how, settings, stage)
    made = save_taught(model, tokenizer, rows, stage)
    tell_taught(stage, before[0], taught_perplexity(model, tokenizer, rows, settings), rows)
    tell(stage, before[1], lesson.measured(rows.held_out))
    show_taught(model, tokenizer, rows, stage)
    return made


@dataclass(frozen=True)
class Lesson:
    """What is learnt from demonstrations."""

    beside: BesideTeacher
    settings: DistillSFTSettings

    def loss(self, rows: Sequence[Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute the sums over the learnt tokens of each row of its loss, and of figures (n,)."""
        import torch

        from alignkit_distill.divergences import generalised_jsd

        hard, temperature = self.settings.hard, self.settings.temperature

        def compute(sides: TokenComparison) -> Tensor:
            soft = temperature**2 * generalised_jsd(sides.policy, sides.teacher, self.settings.beta)
            whole = sides.policy_token if temperature == 1 else sides.token_at(temperature)
            return torch.stack([(1 - hard) * soft - hard * whole, sides.kl, sides.agree], dim=-1)

        read, learnt = as_read(rows)
        table = self.beside.each_token(read, compute)  # (n, t, 3)
        loss, kl, agree = (table * marked(learnt, table)).sum(dim=1).unbind(dim=-1)
        return loss, {"teacher_kl": kl.detach(), "agreement": agree.detach()}

    def passes(self, rows: Sequence[Any]) -> list[list[int]]:
        """Group rows into what goes through the policy at once."""
        from alignkit.kit import in_passes

        read, _ = as_read(rows)
        return in_passes(self.beside.policy, read.prompts, read.answers)

    def measured(self, rows: Sequence[Any]) -> dict[str, list[float]] | None:
        """Return how far the policy is from its teacher on held-out demonstrations; None where there are none."""
        if not rows:
            return None
        read, learnt = as_read(rows)
        table = self.beside.every_answer(read)  # (n, t, 4)
        marks = marked(learnt, table)
        kl, agree, *_ = ((table * marks).sum(dim=1) / marks.sum(dim=1)).unbind(dim=-1)
        return {"teacher_kl": kl.tolist(), "agreement": agree.tolist()}


def as_read(rows: Sequence[Any]) -> tuple[Read, list[list[bool]]]:
    """Return demonstrations as answers that both read, and which of their tokens are learnt."""
    from alignkit.kit import parted_labels

    cut = [parted_labels(row) for row in rows]
    prompts = [row.prompt for row in cut]
    return Read(prompts, prompts, [row.answer for row in cut]), [row.learnt for row in cut]


def marked(learnt: Sequence[Sequence[bool]], like: Tensor) -> Tensor:
    """Return which tokens are learnt, 1 or 0, as a table (n, t, 1)."""
    width = like.shape[1]
    return like.new_tensor([[*row, *[False] * (width - len(row))] for row in learnt])[..., None]


def tell(stage: Stage, before: Mapping[str, list[float]] | None, after: Mapping[str, list[float]] | None) -> None:
    """Report how far the policy was and is from its teacher on held-out demonstrations."""
    if before is None or after is None:
        return
    stage.measure("teacher_kl", before["teacher_kl"], after["teacher_kl"], better="lower")
    stage.measure("agreement", before["agreement"], after["agreement"])
