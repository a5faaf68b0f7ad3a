"""Pass@k: how often at least one of k answers to a prompt is right (Chen et al. 2021, arXiv 2107.03374).

Each policy answers each held-out prompt n times, and c of the answers are right: their rewards, weighted and added up,
reach `right`. Of all ways to take k of the n answers the share with a right one among them is the unbiased estimate

    pass@k = 1 - C(n - c, k) / C(n, k)                                                            (equation 1)

and the figure is its mean over the prompts. pass@1 is the share of right answers; where pass@k for a large k stays as
training raises pass@1, a policy has become surer of what it could do already.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import comb
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, PositiveInt, model_validator

from alignkit.contract.asking_settings import AskingSettings
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Prompts, Reward, Scores
from alignkit.contract.method import Method, method
from alignkit.contract.needs import EvaluationNeeds, evaluation_needs
from alignkit.contract.paper import Paper
from alignkit.contract.stage import Stage

if TYPE_CHECKING:
    from alignkit.training.answer_pool import PoolPart, PoolRequest
    from alignkit.training.scoring import Weighted

POOLS = "pools.json"
"""What the policies answered so far, in a checkpoint."""


class PassAtKSettings(AskingSettings):
    """Settings of `pass-at-k`."""

    k: tuple[PositiveInt, ...] = Field(default=(1, 8), min_length=1)
    """Of how many answers at least one must be right; a figure for each."""
    answers: PositiveInt = 16
    """To each prompt, n: at least as many as the largest k; twice as many make its figure surer."""
    right: float = 1.0
    """The least that the rewards of an answer must add up to for it to be right."""

    @model_validator(mode="after")
    def _enough_answers(self) -> Self:
        if max(self.k) > self.answers:
            raise ValueError(f"k = {max(self.k)} cannot be told from {self.answers} answers; raise answers")
        return self


def needs(settings: PassAtKSettings) -> EvaluationNeeds:
    """Return what answering the prompts takes."""
    return replace(evaluation_needs(settings), answers=settings.answers)


PAPER = Paper(
    "pass-at-k",
    "Evaluating Large Language Models Trained on Code",
    "arXiv 2107.03374",
    differs="its measure alone; what is right is told by rewards",
)


@method("pass-at-k", needs=needs, results=["pass@{k} {policies}"], papers=[PAPER])
def pass_at_k(
    settings: PassAtKSettings,
    stage: Stage,
    *,
    policies: tuple[Policy, ...],
    rewards: tuple[Reward, ...],
    prompts: Prompts,
) -> Scores:
    """Measure how often one of k answers is right, for policies side by side, on held-out prompts."""
    from alignkit.training import parallel
    from alignkit.training.scoring import Weighted

    parallel.check(stage)
    requests = asked(settings, stage, policies, prompts)
    opened = [Weighted(reward.name, stage.open_reward(reward), reward.weight) for reward in rewards]
    table = [
        measure(policy.name, counted, settings)
        for policy, counted in zip(policies, answered(stage, requests, opened, settings.right), strict=True)
    ]
    report(stage, table, settings.k)
    return stage.save_rows(Scores, table)


def asked(settings: PassAtKSettings, stage: Stage, policies: Sequence[Policy], prompts: Prompts) -> "list[PoolRequest]":
    """Take the first held-out prompts that all policies have room for, and say how each shall answer them."""
    from alignkit.training import encoding, policy_answers
    from alignkit.training.answer_pool import PoolRequest

    readers = [policy_answers.reader(settings, policy) for policy in policies]
    rows = policy_answers.asked(settings, stage, readers, prompts)
    requests = []
    for policy, known in zip(policies, readers, strict=True):
        own, _ = encoding.prompts(rows, known.tokenizer, known.limit - settings.max_new_tokens)
        requests.append(
            PoolRequest(
                policy=policy,
                prompts=own,
                answers=settings.answers,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                precision=settings.precision,
                seed=stage.seed,
            )
        )
    return requests


@dataclass(frozen=True)
class Pools:
    """What was drawn from the policies so far, in their order."""

    of_each: "tuple[tuple[PoolPart, ...], ...]" = ()

    def of(self, number: int) -> "tuple[PoolPart, ...]":
        return self.of_each[number] if number < len(self.of_each) else ()

    def having(self, number: int, parts: "Sequence[PoolPart]") -> "Pools":
        """Return them with what one policy has answered by now."""
        return replace(self, of_each=(*self.of_each[:number], tuple(parts)))

    @property
    def parts(self) -> int:
        return sum(map(len, self.of_each))


def answered(
    stage: Stage, requests: "Sequence[PoolRequest]", rewards: "Sequence[Weighted]", right: float
) -> list[list[int]]:
    """Return for each policy how many of its answers to each prompt are right; what was drawn before is not redrawn."""
    from alignkit.training.answer_pool import draw_pool
    from alignkit.training.scoring import score_answers

    pools, counts = _read(stage.latest()), list[list[int]]()
    for number, request in enumerate(requests):

        def keep(parts: "Sequence[PoolPart]", number: int = number) -> None:
            nonlocal pools
            pools = pools.having(number, parts)
            stage.commit(pools.parts, partial(_write, pools))

        answers = draw_pool(request, pools.of(number), keep)
        good = [score >= right for score in score_answers(answers, rewards).total.tolist()]
        starts = range(0, len(good), request.answers)
        counts.append([sum(good[start : start + request.answers]) for start in starts])
    return counts


def _write(pools: Pools, folder: Path) -> None:
    (folder / POOLS).write_text(json.dumps(pools.of_each), "utf-8")


def _read(folder: Path | None) -> Pools:
    from alignkit.training.answer_pool import PoolPart

    told = json.loads((folder / POOLS).read_text("utf-8")) if folder else []
    return Pools(tuple(tuple(PoolPart(*part) for part in parts) for parts in told))


def chance_of_one(right: int, answers: int, k: int) -> float:
    """Return the share of all ways to take k of the answers that have a right one among them."""
    return 1.0 - comb(answers - right, k) / comb(answers, k)


def measure(policy: str, right: Sequence[int], settings: PassAtKSettings) -> dict[str, Any]:
    """Return one policy's line of the table; `each` keeps the estimates of every prompt, in their order."""
    each = {f"pass@{k}": [chance_of_one(count, settings.answers, k) for count in right] for k in settings.k}
    head = {"policy": policy, "prompts": len(right), "answers": settings.answers}
    return {**head, **{name: fmean(values) for name, values in each.items()}, "each": {**each, "right": list(right)}}


def report(stage: Stage, table: Sequence[Mapping[str, Any]], several: Sequence[int]) -> None:
    """Report each policy's figures, with what the first one's are."""
    first = table[0]
    for k in several:
        for row in table:
            before = None if row is first else first["each"][f"pass@{k}"]
            stage.measure(f"pass@{k} {row['policy']}", before, row["each"][f"pass@{k}"])


@hookimpl
def alignkit_methods() -> list[Method]:
    return [pass_at_k]
