"""Reward: learn a score for answers from which of two is preferred.

Maximises log sigmoid(score(chosen) - score(rejected)), the likelihood of the preferences under Bradley and Terry
(1952), as in Stiennon et al. (2020, arXiv 2009.01325). The score is read at the token that ends the answer. What is
kept with the model is the mean and the spread of its scores, by which PPO normalises them: only then does the weight
of the KL penalty mean the same from one reward model to the next.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Preferences, RewardModel
from alignkit.contract.method import Method, method
from alignkit.contract.needs import PackedNeeds, packed_needs
from alignkit.contract.row_settings import TrainingSettings
from alignkit.contract.settings import Precision
from alignkit.contract.stage import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit.training.answers import Model
    from alignkit.training.encoding import TokenPair

ENOUGH = 32
"""So many held-out pairs tell the spread of scores well enough; with fewer, training pairs do."""


class RewardSettings(TrainingSettings):
    """Settings of `reward`; its rows are pairs."""

    centering: NonNegativeFloat = 0.0
    """Weight of the pull of scores towards a mean of zero; 0.01 is usual (arXiv 2312.09244)."""
    max_lost: float = Field(default=0.05, ge=0, le=1)
    """Share of the pairs that may be left out for their length; more stops the stage."""
    samples: NonNegativeInt = 4
    """Held-out pairs that are shown with their scores."""


def needs(settings: RewardSettings) -> PackedNeeds:
    """Return what the loop will do with pairs."""
    return replace(packed_needs(settings), max_lost=settings.max_lost, scores=True)


@method("reward", needs=needs, results=("accuracy",))
def reward(settings: RewardSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> RewardModel:
    """Learn a score for answers from preferences."""
    from alignkit.training.configs import positions
    from alignkit.training.encoded import encode_pairs_once
    from alignkit.training.encoding import fitting_length, preferences, report
    from alignkit.training.models import load_for_reward_training
    from alignkit.training.pair_scores import train_scores

    model, tokenizer = load_for_reward_training(policy, settings.lora, settings.precision)
    limit = fitting_length(positions(model), settings.max_length)
    train = encode_pairs_once(stage, pairs, tokenizer, limit, lambda pair: pair.tokens)
    report(stage, "pairs", train.lengths, settings.max_lost)
    held_out, _ = preferences(islice(pairs.held_out(), settings.measured), tokenizer, limit)

    before = accuracy(scored(model, tokenizer, held_out, settings.precision))
    train_scores(model, train, stage, settings, settings.centering)
    scores = scored(model, tokenizer, held_out, settings.precision)
    enough = (
        scores if len(held_out) >= ENOUGH else scored(model, tokenizer, train[: settings.measured], settings.precision)
    )
    made = stage.save_reward(model, tokenizer, *normalisation(enough))
    tell(stage, before, accuracy(scores), train, held_out)
    show(stage, tokenizer, held_out[: settings.samples], scores)
    return made


ScoredPairs = list[tuple[float, float]]
"""The scores of the chosen and the rejected answer of each pair."""


def scored(
    model: "Model", tokenizer: "PreTrainedTokenizerBase", pairs: "Sequence[TokenPair]", precision: Precision
) -> ScoredPairs:
    """Score both sides of each pair."""
    import torch

    from alignkit.training import parallel
    from alignkit.training.arithmetic import computing
    from alignkit.training.classifiers import score_tokens

    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    mine = parallel.deal(range(len(sides)))
    with computing(precision):
        found = score_tokens(model, [sides[place] for place in mine], tokenizer) if mine else []
    scores = parallel.placed(torch.tensor(found, dtype=torch.float64), mine, len(sides)).tolist()
    return list(zip(scores[::2], scores[1::2], strict=True))


def accuracy(scores: ScoredPairs) -> float | None:
    """Return how often the chosen answer scores higher, ties counting half; None without pairs."""
    if not scores:
        return None
    return statistics.fmean(0.5 if chosen == rejected else float(chosen > rejected) for chosen, rejected in scores)


def normalisation(scores: ScoredPairs) -> tuple[float, float]:
    """Return the mean and the spread of all scores; a spread of zero counts as one."""
    flat = [score for pair in scores for score in pair]
    return statistics.fmean(flat), statistics.pstdev(flat) or 1.0


def tell(
    stage: Stage,
    before: float | None,
    after: float | None,
    train: "Sequence[TokenPair]",
    held_out: "Sequence[TokenPair]",
) -> None:
    """Report the accuracy beside that of the better of two judges, who know lengths or words only."""
    from alignkit.training.measures import pair_accuracy_floor, share_of_longer

    if after is None:
        stage.warn("no pairs are held out, so accuracy is not measured", "raise the source's held_out")
        return
    rows = ((pair.row for pair in pairs) for pairs in (train, held_out))
    floor, _ = pair_accuracy_floor(share_of_longer(held_out), *rows, cache=stage.cache)
    stage.result("accuracy", before, after, floor, len(held_out))


def show(stage: Stage, tokenizer: "PreTrainedTokenizerBase", pairs: "Sequence[TokenPair]", scores: ScoredPairs) -> None:
    """Show a few held-out pairs with their scores."""
    from alignkit.training.encoding import prompt_text, shown

    for pair, (chosen, rejected) in zip(pairs, scores, strict=False):
        stage.sample(
            {
                "prompt": prompt_text(tokenizer, pair.row["prompt"], pair.row.get("tools")),
                "chosen": shown(pair.row["chosen"]),
                "rejected": shown(pair.row["rejected"]),
                "chosen_score": round(chosen, 4),
                "rejected_score": round(rejected, 4),
            }
        )


@hookimpl
def alignkit_methods() -> list[Method]:
    """Offer `reward`."""
    return [reward]
