"""Scores of sampled answers: several weighted rewards, each kept apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignkit.contract.one_each import one_number_each
from alignkit.contract.reward_function import Answer, Score
from alignkit.errors import NotFiniteError
from alignkit.training import parallel
from alignkit.training.encoding import Prompt
from alignkit.training.rollouts import Rollout


@dataclass(frozen=True)
class Weighted:
    """A reward that has been opened, and its share."""

    name: str
    score: Score
    weight: float = 1.0


class Scored(NamedTuple):
    """Scores of n answers."""

    total: Tensor
    """Weighted and added up (n,)."""
    parts: dict[str, Tensor]
    """Each reward by itself, without its weight (n,)."""


def score_rollout(
    rollout: Rollout,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    rewards: Sequence[Weighted],
) -> Scored:
    """Score every answer with every reward; `prompts` are what the rollout's rows point at.

    Raises PluginError where a reward gives too many or too few scores, NotFiniteError where one is not a number.
    """
    return score_answers(as_answers(rollout, prompts, tokenizer), rewards)


def score_answers(answers: Sequence[Answer], rewards: Sequence[Weighted]) -> Scored:
    """Score answers as `score_rollout` does, and with the same refusals."""
    mine = parallel.deal(range(len(answers)))
    # A process without an answer of its own scores the first: what is cut up among processes needs all of them.
    share = [answers[row] for row in mine] or answers[:1]
    parts = {}
    for reward in rewards:
        scores = _scores(reward, share)[: len(mine)]
        parts[reward.name] = _checked(reward, parallel.placed(scores, mine, len(answers)))
    total = torch.stack([parts[reward.name] * reward.weight for reward in rewards]).sum(dim=0)
    return Scored(total, parts)


def as_answers(rollout: Rollout, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[Answer]:
    """Decode what was sampled, without special tokens."""
    texts = tokenizer.batch_decode(rollout.answers, skip_special_tokens=True)
    return [
        Answer(prompts[row].text, text, finished, prompts[row].row, len(tokens))
        for row, text, finished, tokens in zip(rollout.rows, texts, rollout.finished, rollout.answers, strict=True)
    ]


def _scores(reward: Weighted, answers: Sequence[Answer]) -> Tensor:
    given = reward.score(answers) if answers else []
    return torch.tensor(one_number_each(given, len(answers), "the reward", _named(reward)), dtype=torch.float32)


def _checked(reward: Weighted, scores: Tensor) -> Tensor:
    odd = int((~scores.isfinite()).sum())
    if odd:
        raise NotFiniteError(
            f"{odd} of {len(scores)} scores are not finite numbers",
            _named(reward),
            "mend the reward; an answer that cannot be scored needs a low score, not a NaN",
        )
    return scores


def _named(reward: Weighted) -> str:
    return f"reward {reward.name!r}"
