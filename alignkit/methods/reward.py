"""Reward: learn a score for answers from which of two is preferred.

Maximises log sigmoid(score(chosen) - score(rejected)), the likelihood of the preferences under Bradley and Terry
(1952), as in Stiennon et al. (2020, arXiv 2009.01325). The score is read at the token that ends the answer. What is
kept with the model is the mean and the spread of its scores, by which PPO normalises them: only then does the weight
of the KL penalty mean the same from one reward model to the next.
"""

from dataclasses import replace
from typing import ClassVar

from pydantic import PositiveInt

from alignkit.contract.advice import Advice
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Preferences, RewardModel
from alignkit.contract.method import Method, method
from alignkit.contract.needs import PackedNeeds, packed_needs
from alignkit.contract.paper import Paper
from alignkit.contract.row_settings import ScoreSettings
from alignkit.contract.stage import Stage


class RewardSettings(ScoreSettings):
    """Settings of `reward`."""

    added: ClassVar[frozenset[str]] = frozenset({"heads"})

    heads: PositiveInt = 1
    """So many scores on one body, of which the mean is the score: where pairs do not say, they differ, and methods can
    look at that (`reward.combine`, `objective/spread`). Each begins at other weights and is taught by a random half of
    the pairs of its own; a pair that falls to none teaches none. 3 to 5 are usual; 1 learns from all pairs."""


def needs(settings: RewardSettings) -> PackedNeeds:
    """Return what the loop will do with pairs."""
    return replace(packed_needs(settings), max_lost=settings.max_lost, scores=True, heads=settings.heads)


PAPERS = (
    Paper(
        "bradley-terry",
        "Rank Analysis of Incomplete Block Designs: I. The Method of Paired Comparisons",
        "Biometrika 39, 1952",
        differs="a model makes the strength of an answer",
    ),
    Paper("summarize-from-feedback", "Learning to summarize from human feedback", "arXiv 2009.01325", {"epochs": 1.0}),
    Paper(
        "instructgpt",
        "Training language models to follow instructions with human feedback",
        "arXiv 2203.02155",
        {"epochs": 1.0, "optimisation": {"schedule": "cosine"}},
        "pairs of one prompt are shuffled apart, not kept in one batch",
    ),
    Paper(
        "reward-ensembles",
        "Reward Model Ensembles Help Mitigate Overoptimization",
        "arXiv 2310.02743",
        {"heads": 5},
        differs="heads on one body, each taught by a half of the pairs; the paper has models that differ by their seed",
    ),
    Paper(
        "centering",
        "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking",
        "arXiv 2312.09244",
        {"centering": 0.01},
        "its pull of scores towards a mean of zero alone",
    ),
)


@method(
    "reward",
    advice=Advice(
        "pairs are to judge new answers, for ppo, grpo or rloo",
        "it may learn length or single words; look at the floors beside its accuracy",
    ),
    needs=needs,
    results=("accuracy", "accuracy/{pairs}", "accuracy of head {number}", "spread of heads"),
    papers=PAPERS,
)
def reward(settings: RewardSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> RewardModel:
    """Learn a score for answers from preferences."""
    from alignkit.training.models import load_for_reward_training
    from alignkit.training.pair_scores import train_scores
    from alignkit.training.scored_pairs import (
        means,
        read_token_pairs,
        save_heads,
        score_pairs,
        show_scores,
        tell_heads,
        tell_scores,
    )

    model, tokenizer = load_for_reward_training(policy, settings.lora, settings.precision, settings.heads)
    rows = read_token_pairs(pairs, model, tokenizer, settings, stage)
    before = score_pairs(model, tokenizer, rows.held_out, settings.precision)
    train_scores(model, rows.train, stage, settings, settings.centering)
    made, by_head = save_heads(model, tokenizer, rows, settings, stage)
    scores = means(by_head)
    tell_scores(stage, before, scores, rows)
    if settings.heads > 1:
        tell_heads(stage, made, by_head)
    show_scores(stage, tokenizer, rows.held_out, scores, settings.samples)
    return made


@hookimpl
def alignkit_methods() -> list[Method]:
    """Offer `reward`."""
    return [reward]
