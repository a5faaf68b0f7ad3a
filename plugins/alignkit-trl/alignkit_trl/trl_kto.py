"""`trl-kto`: learn from answers that are good or bad by themselves, as `kto` does, by TRL's `KTOTrainer`.

1. The trainer takes text and makes its own tokens of it; ours tell beforehand what does not fit, and render chats.
2. Answers are swapped inside groups of `kl_rows` rows, each with a zero point of its own; a last group that is not full
   is filled up, since an answer cannot be swapped with none.
3. What is measured on held-out answers is what `kto` measures, by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from alignkit_dpo.answer_learning import AnswerSettings
from pydantic import Field

from alignkit import Advice, Policy, Preferences, Ratings, RecipeError, Stage, TrainerNeeds, method, trainer_needs
from alignkit_trl.passing import PRECOMPUTED, PassedOn

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
    from alignkit_dpo.answer_learning import balance, is_good, tell, threshold
    from datasets import Dataset

    from alignkit.kit import load_policy, read_answers, seen_by_all, sequence_logprobs, trainer_options
    from alignkit_trl.passing import order_of_rows, train
    from alignkit_trl.trainer_texts import texts_for_trainer

    refuse_uneven_groups(settings, stage)
    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    start = load_policy(policy, precision=settings.precision)[0] if settings.lora else None
    learnt, held_out = read_answers(answers, model, tokenizer, settings, stage)
    good_from = threshold(learnt, settings)
    before = sequence_logprobs(model, held_out, settings)
    order = order_of_rows(len(learnt), settings.epochs, stage.seed)
    rows = [learnt[place] for place in filled_up(order, settings.kl_rows)]
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
    train(settings, options, arguments, stage)
    made = stage.save_policy(model, tokenizer)
    gains = sequence_logprobs(model, held_out, settings) - before
    tell(held_out, gains.tolist(), good_from, stage)
    return made


def refuse_uneven_groups(settings: TRLKTOSettings, stage: Stage) -> None:
    """Raise RecipeError where a step or the processes do not share groups of `kl_rows` evenly."""
    if settings.batch % settings.kl_rows:
        remedy = f"set it to a multiple of {settings.kl_rows}"
        raise RecipeError(f"{settings.batch} answers do not split into groups of kl_rows", "batch", remedy)
    if settings.kl_rows % stage.world:
        remedy = f"set it to a multiple of {stage.world}"
        raise RecipeError(f"{settings.kl_rows} answers cannot be shared by {stage.world} processes", "kl_rows", remedy)


def filled_up(order: list[int], size: int) -> list[int]:
    """Return rows of which the last group is full, too, since an answer cannot be swapped with none."""
    return order + (order * size)[: -len(order) % size]
