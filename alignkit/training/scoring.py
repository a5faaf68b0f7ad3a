"""Scores of sampled answers: several weighted rewards, and costs, each kept apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignkit.contract.constraint import Constraint
from alignkit.contract.one_each import one_number_each
from alignkit.contract.reward_function import Answer, HeadedScore, Score
from alignkit.errors import NotFiniteError
from alignkit.training import parallel
from alignkit.training.encoding import Prompt
from alignkit.training.reward_ensemble import Ensemble, joined
from alignkit.training.rollouts import Rollout


@dataclass(frozen=True)
class Weighted:
    """A reward that has been opened, and its share."""

    name: str
    score: Score
    weight: float = 1.0
    learned: bool = False
    """It is a reward model: where its weight is above 0, its heads are members of the ensemble."""

    @property
    def heads(self) -> int:
        return self.score.count if isinstance(self.score, HeadedScore) else 1


@dataclass(frozen=True)
class Bounded:
    """A reward that has been opened, and the bound on its mean."""

    name: str
    score: Score
    constraint: Constraint


class Scored(NamedTuple):
    """Scores of n answers."""

    total: Tensor
    """Weighted and added up (n,); zero where nothing scores."""
    parts: dict[str, Tensor]
    """Each reward by itself, without its weight (n,)."""
    costs: Mapping[str, Tensor] = MappingProxyType({})
    """Each reward whose mean has a bound (n,); the total does not contain them."""
    ensemble: Ensemble | None = None
    """What each member of an ensemble of learned rewards says, where there are two at least; the total has their mean
    in it."""
    held_out: Sequence[str] = ()
    """The learned rewards whose weight is 0: nothing is learnt from them, so they can tell whether what is learnt from
    still means the same."""

    def with_rows(self, rows: Sequence[int], others: "Scored") -> "Scored":
        """Return it with others in place of these rows, in their order."""
        place = torch.tensor(rows, device=self.total.device)
        parts = {name: part.index_copy(0, place, others.parts[name]) for name, part in self.parts.items()}
        costs = {name: cost.index_copy(0, place, others.costs[name]) for name, cost in self.costs.items()}
        total, ensemble = self.total.index_copy(0, place, others.total), self.ensemble
        ensemble = ensemble.with_rows(place, others.ensemble) if ensemble and others.ensemble else ensemble
        return self._replace(total=total, parts=parts, costs=costs, ensemble=ensemble)

    def every(self, step: int, start: int = 0) -> "Scored":
        """Return the scores of every `step`-th answer, from the one at `start` on."""
        rows = torch.arange(start, len(self.total), step, device=self.total.device)
        parts, costs = ({name: part[rows] for name, part in some.items()} for some in (self.parts, self.costs))
        ensemble = self.ensemble.take(rows) if self.ensemble else None
        return self._replace(total=self.total[rows], parts=parts, costs=costs, ensemble=ensemble)


def score_rollout(
    rollout: Rollout,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    rewards: Sequence[Weighted],
    costs: Sequence[Bounded] = (),
) -> Scored:
    """Score every answer with every reward and cost; `prompts` are what the rollout's rows point at.

    Raises PluginError where a reward gives too many or too few scores, NotFiniteError where one is not a number.
    """
    return score_answers(as_answers(rollout, prompts, tokenizer), rewards, costs)


def score_answers(answers: Sequence[Answer], rewards: Sequence[Weighted], costs: Sequence[Bounded] = ()) -> Scored:
    """Score answers as `score_rollout` does, and with the same refusals."""
    mine = parallel.deal(range(len(answers)))
    # A process without an answer of its own scores the first: what is cut up among processes needs all of them.
    share = [answers[row] for row in mine] or answers[:1]
    by_head: dict[str, Tensor] = {}  # (n, heads)
    scorers: list[Weighted | Bounded] = [*rewards, *costs]
    for name, scorer in {one.name: one for one in scorers}.items():
        scores = _scores(scorer, share)[: len(mine)]
        by_head[name] = _checked(scorer, parallel.placed(scores, mine, len(answers)))
    found = {name: scores.mean(dim=1) for name, scores in by_head.items()}
    weighted = [found[reward.name] * reward.weight for reward in rewards]
    total = torch.stack(weighted).sum(dim=0) if weighted else torch.zeros(len(answers))
    parts, spent = ({one.name: found[one.name] for one in several} for several in (rewards, costs))
    held_out = tuple(reward.name for reward in rewards if reward.learned and not reward.weight)
    return Scored(total, parts, spent, _ensemble(rewards, by_head), held_out)


def members(rewards: Sequence[Weighted]) -> list[Weighted]:
    """Return the rewards whose heads are an ensemble together."""
    return [reward for reward in rewards if reward.learned and reward.weight > 0]


def _ensemble(rewards: Sequence[Weighted], by_head: Mapping[str, Tensor]) -> Ensemble | None:
    several = members(rewards)
    names = [
        [f"{one.name}/{head}" for head in range(1, one.heads + 1)] if one.heads > 1 else [one.name] for one in several
    ]
    return joined(names, [by_head[one.name] for one in several], [one.weight for one in several])


def as_answers(rollout: Rollout, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[Answer]:
    """Decode what was sampled, without special tokens."""
    texts = tokenizer.batch_decode(rollout.answers, skip_special_tokens=True)
    return [
        Answer(prompts[row].text, text, finished, prompts[row].row, len(tokens))
        for row, text, finished, tokens in zip(rollout.rows, texts, rollout.finished, rollout.answers, strict=True)
    ]


def _scores(reward: Weighted | Bounded, answers: Sequence[Answer]) -> Tensor:
    """Return the scores of each head (n, heads)."""
    if isinstance(reward.score, HeadedScore):
        table = reward.score.heads(answers) if answers else []
        return torch.tensor(table, dtype=torch.float32).view(len(answers), reward.score.count)
    given = reward.score(answers) if answers else []
    found = one_number_each(given, len(answers), "the reward", _named(reward))
    return torch.tensor(found, dtype=torch.float32)[:, None]


def _checked(reward: Weighted | Bounded, scores: Tensor) -> Tensor:
    odd = int((~scores.isfinite().all(dim=1)).sum())
    if odd:
        raise NotFiniteError(
            f"{odd} of {len(scores)} scores are not finite numbers",
            _named(reward),
            "mend the reward; an answer that cannot be scored needs a low score, not a NaN",
        )
    return scores


def _named(reward: Weighted | Bounded) -> str:
    return f"reward {reward.name!r}"
