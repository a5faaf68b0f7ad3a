"""`trl-reward`: learn a score for answers from preferences, as `reward` does, by TRL's `RewardTrainer`.

The tokens are alignkit's, and so are the head's first weights and the mean and spread that are kept with the model.
The trainer takes the mean of each pass's loss, then of the passes of a step: they are cut into equal parts here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from alignkit import Advice, Policy, Preferences, RewardModel, ScoreSettings, Stage, TrainerNeeds, method, trainer_needs
from alignkit_trl.passing import PassedOn


class TRLRewardSettings(PassedOn, ScoreSettings):
    """Settings of `trl-reward`."""

    trainer: ClassVar[str] = "Reward"
    says: ClassVar[Mapping[str, str]] = {"center_rewards_coefficient": "centering"}


def needs(settings: TRLRewardSettings) -> TrainerNeeds:
    """Return what the trainer will do with pairs."""
    return replace(trainer_needs(settings), max_lost=settings.max_lost, scores=True)


@method(
    "trl-reward",
    advice=Advice(
        "as for reward, where TRL's trainer is asked for",
        "rows are padded, so it is slower than ours, and sources cannot be mixed",
    ),
    needs=needs,
    results=("accuracy",),
)
def trl_reward(settings: TRLRewardSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> RewardModel:
    """Learn a score for answers from preferences, by TRL's trainer."""
    from datasets import Dataset

    from alignkit.kit import (
        load_for_reward_training,
        read_token_pairs,
        save_scorer,
        score_pairs,
        show_scores,
        tell_scores,
        trainer_options,
    )
    from alignkit_trl.passing import equal_passes, order_of_rows, train

    model, tokenizer = load_for_reward_training(policy, settings.lora, settings.precision)
    rows = read_token_pairs(pairs, model, tokenizer, settings, stage)
    before = score_pairs(model, tokenizer, rows.held_out, settings.precision)
    learnt = list(rows.train)
    data = Dataset.from_dict({"chosen_ids": [p.chosen for p in learnt], "rejected_ids": [p.rejected for p in learnt]})
    data = data.select(order_of_rows(len(learnt), settings.epochs, stage.seed))
    longest = max(len(side) for pair in learnt for side in (pair.chosen, pair.rejected))
    options = trainer_options(model, stage, settings, len(data), 2 * longest)
    options |= equal_passes(options, len(data), stage.world)
    options |= {"max_length": None, "center_rewards_coefficient": settings.centering or None}
    train(settings, options, {"model": model, "train_dataset": data, "processing_class": tokenizer}, stage)
    made, scores = save_scorer(model, tokenizer, rows, settings, stage)
    tell_scores(stage, before, scores, rows)
    show_scores(stage, tokenizer, rows.held_out, scores, settings.samples)
    return made
