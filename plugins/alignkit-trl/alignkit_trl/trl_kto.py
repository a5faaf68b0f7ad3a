"""`trl-kto`: learn from answers that are good or bad by themselves, as `kto` does, by TRL's `KTOTrainer`.

1. The trainer takes text and makes its own tokens of it; ours tell beforehand what does not fit, and render chats.
2. Answers are swapped inside groups of `kl_rows` rows, each with a zero point of its own; a last group that is not full
   is filled up, since an answer cannot be swapped with none.
3. What is measured on held-out answers is what `kto` measures, by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from alignkit_dpo.answer_learning import AnswerSettings
from pydantic import Field

from alignkit import Advice, Policy, Preferences, Ratings, RecipeError, Stage, TrainerNeeds, method, trainer_needs
from alignkit_trl.passing import PRECOMPUTED, PassedOn

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from alignkit.kit import JudgedAnswer

READS = 6
"""How often an answer is read besides: with a swapped one, by policy and start, and by the start once before."""


class TRLKTOSettings(PassedOn, AnswerSettings):
    """Settings of `trl-kto`."""

    trainer: ClassVar[str] = "KTO"
    says: ClassVar[Mapping[str, str]] = {name: name for name in ("beta", "desirable_weight", "undesirable_weight")} | {
        "loss_type": "loss"
    }
    fixed: ClassVar[Mapping[str, str]] = PRECOMPUTED

    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto`: the paper's. `apo_zero_unpaired`: zero point at the start, for good answers that are better than the
    policy's own (arXiv 2408.06266)."""
    kl_rows: int = Field(default=8, ge=2)
    """Rows between which answers are swapped to estimate the KL divergence; they go through the model at once."""


def needs(settings: TRLKTOSettings) -> TrainerNeeds:
    """Return what TRL's trainer will do: each answer and a swapped one, both read by the start before."""
    return replace(
        trainer_needs(settings), max_lost=settings.max_lost, rows_at_once=settings.kl_rows, reads=READS, apart=True
    )


@method(
    "trl-kto",
    advice=Advice(
        "as for kto, where TRL's trainer is asked for",
        "rows are padded, so it is slower than ours, and sources cannot be mixed",
    ),
    needs=needs,
    results=("auc",),
)
def trl_kto(settings: TRLKTOSettings, stage: Stage, *, policy: Policy, answers: Ratings | Preferences) -> Policy:
    """Learn from answers that are good or bad by themselves, by TRL's trainer with all its options."""
    from alignkit_trl.passing import train

    ready = prepare(settings, stage, policy, answers)
    train(settings, ready.options, ready.arguments, stage)
    return finish(ready, settings, stage)


class Ready(NamedTuple):
    """What the trainer is made of, and what is measured once it is done."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    options: dict[str, Any]
    """Of TRL's config class."""
    arguments: dict[str, Any]
    """Of the trainer itself."""
    held_out: Sequence[JudgedAnswer]
    before: Tensor
    """Log-probabilities of the held-out answers (n,)."""
    good_from: float
    """The rating that a good answer reaches."""


def prepare(settings: TRLKTOSettings, stage: Stage, policy: Policy, answers: Ratings | Preferences) -> Ready:
    """Open what the stage names, and lay answers out for the trainer. Raises RecipeError where groups do not fit."""
    from alignkit_dpo.answer_learning import balance, is_good, threshold
    from datasets import Dataset

    from alignkit.kit import load_policy, read_answers, seen_by_all, sequence_logprobs, trainer_options
    from alignkit_trl.trainer_texts import texts_for_trainer

    if settings.batch % settings.kl_rows:
        remedy = f"set it to a multiple of {settings.kl_rows}"
        raise RecipeError(f"{settings.batch} answers do not split into groups of kl_rows", "batch", remedy)
    if settings.kl_rows % stage.world:
        remedy = f"set it to a multiple of {stage.world}"
        raise RecipeError(f"{settings.kl_rows} answers cannot be shared by {stage.world} processes", "kl_rows", remedy)
    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    start = load_policy(policy, precision=settings.precision)[0] if settings.lora else None
    train, held_out = read_answers(answers, model, tokenizer, settings, stage)
    good_from = threshold(train, settings)
    before = sequence_logprobs(model, held_out, settings)
    rows = [train[place] for place in order_of_rows(len(train), settings, stage.seed)]
    reader, columns = texts_for_trainer(rows, tokenizer)
    labels = [is_good(row, good_from) for row in rows]
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    options = trainer_options(model, stage, settings, len(rows), longest) | {
        "per_device_train_batch_size": settings.kl_rows // stage.world,
        "gradient_accumulation_steps": settings.batch // settings.kl_rows,
        "precompute_ref_log_probs": True,
        "max_length": None,
        "beta": settings.beta,
        "loss_type": settings.loss,
        "desirable_weight": settings.desirable_weight,
        "undesirable_weight": settings.undesirable_weight or settings.desirable_weight * balance(labels),
    }
    data = seen_by_all(Dataset.from_dict({**columns, "label": labels}), stage)
    arguments = {"model": model, "ref_model": start, "train_dataset": data, "processing_class": reader}
    return Ready(model, tokenizer, options, arguments, held_out, before, good_from)


def finish(ready: Ready, settings: TRLKTOSettings, stage: Stage) -> Policy:
    """Save the policy, and tell what its held-out answers have gained."""
    from alignkit_dpo.answer_learning import tell

    from alignkit.kit import sequence_logprobs

    made = stage.save_policy(ready.model, ready.tokenizer)
    gains = sequence_logprobs(ready.model, ready.held_out, settings) - ready.before
    tell(ready.held_out, gains.tolist(), ready.good_from, stage)
    return made


def order_of_rows(rows: int, settings: TRLKTOSettings, seed: int) -> list[int]:
    """Shuffle each epoch anew; the last group is filled up, since an answer cannot be swapped with none."""
    epochs = [Random(f"{seed} {epoch}").sample(range(rows), rows) for epoch in range(math.ceil(settings.epochs))]  # noqa: S311
    order = [row for epoch in epochs for row in epoch][: max(1, round(settings.epochs * rows))]
    lacking = -len(order) % settings.kl_rows
    return order + (order * settings.kl_rows)[:lacking]
