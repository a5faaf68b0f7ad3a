"""`trl-sft`: teach a policy to answer by good answers, as `sft` does, by TRL's `SFTTrainer`.

The tokens are alignkit's, so that both methods learn the same; the trainer neither cuts nor drops any. What it adds
is TRL's: padded batches, its losses (`config.loss_type`) and all its options.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from alignkit import Advice, Demonstrations, DemonstrationSettings, Policy, Stage, TrainerNeeds, method, trainer_needs
from alignkit_trl.passing import PassedOn


class TRLSFTSettings(PassedOn, DemonstrationSettings):
    """Settings of `trl-sft`."""

    trainer: ClassVar[str] = "SFT"


def needs(settings: TRLSFTSettings) -> TrainerNeeds:
    """Return what the trainer will do with demonstrations."""
    return replace(trainer_needs(settings), max_lost=settings.max_lost, learn=settings.learn)


@method(
    "trl-sft",
    advice=Advice(
        "as for sft, where TRL's trainer is asked for",
        "rows are padded, so it is slower than ours, and sources cannot be mixed",
    ),
    needs=needs,
    results=("perplexity",),
)
def trl_sft(settings: TRLSFTSettings, stage: Stage, *, policy: Policy, demos: Demonstrations) -> Policy:
    """Teach a policy to answer by demonstrations, by TRL's trainer."""
    from datasets import Dataset

    from alignkit.kit import (
        load_policy,
        read_demonstrations,
        save_taught,
        show_taught,
        taught_perplexity,
        tell_taught,
        trainer_options,
    )
    from alignkit_trl.passing import order_of_rows, train

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    rows = read_demonstrations(demos, model, tokenizer, settings, stage)
    before = taught_perplexity(model, tokenizer, rows, settings)
    learnt = list(rows.train)
    data = Dataset.from_dict({"input_ids": [row.ids for row in learnt], "labels": [row.labels for row in learnt]})
    data = data.select(order_of_rows(len(learnt), settings.epochs, stage.seed))
    options = trainer_options(model, stage, settings, len(data), max(len(row.ids) for row in learnt))
    options |= {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    train(settings, options, {"model": model, "train_dataset": data, "processing_class": tokenizer}, stage)
    made = save_taught(model, tokenizer, rows, stage)
    tell_taught(stage, before, taught_perplexity(model, tokenizer, rows, settings), rows)
    show_taught(model, tokenizer, rows, stage)
    return made
