"""Evaluate: let several policies answer the same held-out prompts, and measure the answers.

Every policy draws with the same random numbers, so that two policies differ by what they learnt and not by luck. For
each: the mean of every reward, KL from the first policy, length, share of answers that end by themselves, distinct-n
(Li et al. 2016, arXiv 1510.03055), and how often its answer beats the first policy's, with a 95 % interval
(Wilson 1927; a tie is half a win).

`ceiling.samples` tells besides how good an answer can get at all: many answers of the start to each prompt give the
best reward that there is at each KL from it, and what choosing the best of n gives (`alignkit.ceiling`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from alignkit.contract.asking_settings import AskingSettings
from alignkit.contract.events import Certainty
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Prompts, Reward, Scores
from alignkit.contract.method import Method, method
from alignkit.contract.needs import EvaluationNeeds, evaluation_needs
from alignkit.contract.paper import Paper
from alignkit.contract.reward_function import Answer
from alignkit.contract.settings import InputNames, Settings
from alignkit.contract.stage import Stage
from alignkit.noise import mean_interval_of_any, wilson

if TYPE_CHECKING:
    from alignkit.training.attainable import PoolRewards
    from alignkit.training.policy_answers import PolicyAnswers
    from alignkit.training.scoring import Weighted

RESULTS = (
    "reward {policies}",
    "win rate {policies} over {policies}",
    "kl {policies}",
    "length {policies}",
    "eos_rate {policies}",
    "attained {policies} from {policies}",
    "above ceiling {policies}",
    "peak reward {policies}",
    "peak kl {policies}",
)
PICTURED = ("reward", "length", "kl")
"""What of each policy's answers is kept for pictures."""
POOL = "pool.json"
"""What the start answered so far for the ceiling, in a checkpoint."""
LEAST_SAMPLES = 16
"""Fewer answers to a prompt tell the ceiling up to less than 0.8 nats."""


class CeilingSettings(Settings):
    """What is attainable at most, told by the start's own answers (Gibbs; Gao et al. 2023, arXiv 2210.10760)."""

    samples: NonNegativeInt = 0
    """Answers of the start to each prompt, 16 or more; the ceiling is known up to a KL of about log(samples) - 2: 64
    reach 2.2 nats, 256 reach 3.5. 0: no ceiling is measured."""
    prompts: PositiveInt | None = None
    """So many of the prompts that are asked at most, evenly spaced; what a policy's own answers say is still of all.
    Unset: all."""
    start: Annotated[str, InputNames("policies")] = ""
    """The policy, by name, that the others are held against; those before it are not held. Empty: the first."""

    @model_validator(mode="after")
    def _enough_and_no_more(self) -> Self:
        if 0 < self.samples < LEAST_SAMPLES:
            raise ValueError(f"samples = {self.samples} tell no ceiling; take {LEAST_SAMPLES} or more, 64 are usual")
        if not self.samples and (self.prompts or self.start):
            raise ValueError("prompts and start do nothing without samples; give samples, 64 are usual")
        return self


class EvaluateSettings(AskingSettings):
    """Settings of `evaluate`."""

    added: ClassVar[frozenset[str]] = frozenset({"ceiling", "snapshots"})

    samples: NonNegativeInt = 8
    """How many prompts are shown with every policy's answer, each of those with the greatest gain, with the least, and
    of others."""
    deciding: Annotated[tuple[str, ...], InputNames("rewards")] = ()
    """The rewards, by name, that are added up to `reward` and decide who wins; the others are only measured. Empty:
    all."""
    snapshots: bool = True
    """Measure the policies on the way, too, of all but the first, where stages have kept some."""
    ceiling: CeilingSettings = CeilingSettings()
    """The best that can be had at each KL, and from the best of n."""


def needs(settings: EvaluateSettings) -> EvaluationNeeds:
    """Return what answering the prompts takes."""
    return replace(
        evaluation_needs(settings),
        pool=settings.ceiling.samples * min(settings.ceiling.prompts or settings.prompts, settings.prompts),
        on_the_way=settings.snapshots,
    )


PAPERS = (
    Paper(
        "distinct-n",
        "A Diversity-Promoting Objective Function for Neural Conversation Models",
        "arXiv 1510.03055",
        differs="its measure alone",
    ),
    Paper(
        "overoptimization",
        "Scaling Laws for Reward Model Overoptimization",
        "arXiv 2210.10760",
        differs="reward against KL; its law is fitted by `compare`, to policies that were kept on the way",
    ),
)


@method("evaluate", needs=needs, results=RESULTS, papers=PAPERS)
def evaluate(
    settings: EvaluateSettings,
    stage: Stage,
    *,
    policies: tuple[Policy, ...],
    rewards: tuple[Reward, ...],
    prompts: Prompts,
) -> Scores:
    """Measure policies side by side on held-out prompts: rewards, KL, length, diversity, win rate."""
    from alignkit.training import parallel
    from alignkit.training.attainable import score_pool
    from alignkit.training.policy_answers import answered, asked, divergence, reader
    from alignkit.training.scoring import Weighted

    parallel.check(stage)
    deciding = settings.deciding or [reward.name for reward in rewards]
    lines = list(on_the_way(policies) if settings.snapshots else map(PolicyLine, policies))
    policies = tuple(line.policy for line in lines)
    start = [policy.name for policy in policies].index(settings.ceiling.start) if settings.ceiling.start else 0
    readers = [reader(settings, policy) for policy in policies]
    rows = asked(settings, stage, readers, prompts)
    results = answered(settings, stage, policies, readers, rows)
    divergences = divergence(settings, policies[0], results)
    opened = [
        Weighted(
            reward.name,
            stage.open_reward(reward),
            reward.weight if reward.name in deciding else 0.0,
        )
        for reward in rewards
    ]
    scored = [score(result, opened) for result in results]
    table = [
        {**line.facts, **measure(result, kl, scores, scored[0])}
        for line, result, kl, scores in zip(lines, results, divergences, scored, strict=True)
    ]
    made = stage.save_rows(Scores, table)
    try:  # a failure here is told, and costs no other figure
        if settings.ceiling.samples:
            pool = score_pool(
                start_answers(settings, stage, policies[start], results, start), opened, settings.ceiling.samples
            )
            far = divergence(settings, policies[start], results[start:]) if start else divergences
            table = held_to_ceiling(pool, table, start, far)
            made = stage.save_rows(Scores, table)
    finally:
        report(stage, [row for row in table if "of" not in row])
        report_ways(stage, table)
        show(stage, [one for one in zip(table, results, scored, strict=True) if "of" not in one[0]], settings.samples)
    return made


@dataclass(frozen=True)
class PolicyLine:
    """A policy that is measured; `of` and `step` say on the way to which one it was kept, and when."""

    policy: Policy
    of: str = ""
    step: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What its row of the table says of itself."""
        return {"policy": self.policy.name, **({"of": self.of, "step": self.step} if self.of else {})}


def on_the_way(policies: Sequence[Policy]) -> Iterator[PolicyLine]:
    """Yield the policies, each but the first behind those that were kept on the way to it."""
    for number, policy in enumerate(policies):
        for one, kept in zip(policy.snapshots, policy.on_the_way(), strict=True) if number else ():
            yield PolicyLine(kept, policy.name, one.step)
        yield PolicyLine(policy)


@dataclass(frozen=True)
class ScoredAnswers:
    """How answers were scored: the weighted sum of the deciding rewards, and each reward by its name."""

    total: list[float]
    each: dict[str, list[float]]


def score(result: PolicyAnswers, rewards: Sequence[Weighted]) -> ScoredAnswers:
    """Score one policy's answers with every reward."""
    from alignkit.training.scoring import score_answers

    found = score_answers(result.answers, rewards)
    return ScoredAnswers(found.total.tolist(), {name: part.tolist() for name, part in found.parts.items()})


def start_answers(
    settings: EvaluateSettings, stage: Stage, policy: Policy, results: Sequence[PolicyAnswers], start: int
) -> list[Answer]:
    """Let the start answer each prompt many times; what an earlier attempt drew is not drawn again."""
    from alignkit.ceiling import evenly
    from alignkit.training.answer_pool import PoolPart, PoolRequest, draw_pool
    from alignkit.training.encoding import Prompt
    from alignkit.training.policy_answers import write_answers

    own = results[start]
    prompts = [Prompt(ids, one.prompt, one.row) for ids, one in zip(own.prompts, own.answers, strict=True)]
    some = min(settings.ceiling.prompts or len(prompts), len(prompts))
    request = PoolRequest(
        policy,
        [prompts[place] for place in evenly(len(prompts), some)],
        answers=settings.ceiling.samples,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        precision=settings.precision,
        seed=stage.seed,
    )

    def keep(parts: Sequence[PoolPart]) -> None:
        def write(folder: Path) -> None:
            write_answers([result.drawn for result in results], folder)
            (folder / POOL).write_text(json.dumps(parts), "utf-8")

        stage.commit(len(results) + len(parts), write)
        if stage.stopping:
            stage.leave()

    kept = stage.latest()
    file = kept and kept / POOL
    drawn = [PoolPart(*part) for part in json.loads(file.read_text("utf-8"))] if file and file.is_file() else []
    return draw_pool(request, drawn, keep)


def held_to_ceiling(
    pool: PoolRewards, table: Sequence[dict[str, Any]], start: int, far: Sequence[Sequence[float] | None]
) -> list[dict[str, Any]]:
    """Add what is attainable to the start's row, and to each one after it what it has attained; `far` are the KLs from
    the start of the policies from it on."""
    from alignkit.training.attainable import attained_as_row, ceiling_as_row

    held = [
        row if kl is None else {**row, "attained": attained_as_row(pool, row["each"]["reward"], kl)}
        for row, kl in zip(table[start + 1 :], far[1:], strict=True)
    ]
    return [*table[:start], {**table[start], "ceiling": ceiling_as_row(pool)}, *held]


def measure(
    result: PolicyAnswers, kl: Sequence[float] | None, ours: ScoredAnswers, firsts: ScoredAnswers
) -> dict[str, Any]:
    """Return what is measured of one policy; a measure that cannot be taken is None.

    `each` keeps what was measured of every answer, in the order of the prompts, to compare policies prompt by prompt.
    """
    rate, low, high = win_rate(ours.total, firsts.total)
    lengths, around = [len(tokens) for tokens in result.drawn.tokens], mean_interval_of_any(ours.total) or (0.0, 0.0)
    ended = [float(answer.finished) for answer in result.answers]
    return {
        "prompts": len(lengths),
        "reward": fmean(ours.total),
        "reward_interval": (around[1] - around[0]) / 2,
        **{f"reward/{name}": fmean(values) for name, values in ours.each.items()},
        "kl": fmean(kl) if kl is not None else None,
        "length": fmean(lengths),
        "eos_rate": fmean(ended),
        "distinct_1": distinct(result.drawn.tokens, 1),
        "distinct_2": distinct(result.drawn.tokens, 2),
        "win_rate": rate,
        "win_rate_low": low,
        "win_rate_high": high,
        "each": {
            "reward": ours.total,
            **{f"reward/{name}": values for name, values in ours.each.items()},
            **({} if kl is None else {"kl": list(kl)}),
            "length": lengths,
            "eos_rate": ended,
        },
    }


def report(stage: Stage, table: Sequence[dict[str, Any]]) -> None:
    """Report each policy's reward, how often it beats the first one, and what else of its answers has changed."""
    first, *others = table
    for row in table:
        before = None if row is first else first["each"]["reward"]
        stage.measure(f"reward {row['policy']}", before, row["each"]["reward"])
    for row in others:
        around = Certainty(interval=(row["win_rate_low"], row["win_rate_high"]), better="higher")
        name = f"win rate {row['policy']} over {first['policy']}"
        stage.result(name, None, row["win_rate"], 0.5, row["prompts"], **around)
    for row in others:
        for what in ("kl", "length", "eos_rate"):
            if what in row["each"]:
                stage.measure(f"{what} {row['policy']}", first["each"].get(what), row["each"][what], better="")
    start = next((row["policy"] for row in table if "ceiling" in row), "")
    for row in table:
        if "attained" in row:
            report_attained(stage, row["policy"], start, row["attained"])
    stage.rows(
        {f"{what} {row['policy']}": row["each"][what] for row in table for what in PICTURED if what in row["each"]}
    )


def report_ways(stage: Stage, table: Sequence[dict[str, Any]]) -> None:
    """Report of each policy with others on the way to it which of them has the highest reward, and at which KL."""
    for last in table:
        ways = [row for row in table if row.get("of") == last["policy"]]
        if ways:
            best = max([*ways, last], key=lambda row: row["reward"])
            stage.measure(f"peak reward {last['policy']}", table[0]["each"]["reward"], best["each"]["reward"])
            if "kl" in best["each"]:
                stage.measure(f"peak kl {last['policy']}", None, best["each"]["kl"], better="")


def report_attained(stage: Stage, policy: str, start: str, attained: Mapping[str, Any]) -> None:
    """Report the share of what is attainable from the start; warn of a policy that is better than any can be."""
    rows = attained["prompts"]
    if attained["share"] is not None:
        name, around = f"attained {policy} from {start}", attained["interval"]
        stage.result(name, None, attained["share"], rows=rows, interval=around, better="higher")
    if attained["above"]:
        excess, half = attained["excess"], 2 * attained["excess_error"]
        ends = (excess - half, excess + half)
        stage.result(f"above ceiling {policy}", None, excess, rows=rows, interval=ends, better="lower")
        stage.warn(
            f"the reward of {policy} is {excess:.3f} ± {half:.3f} above the most that any policy can have at its KL",
            "its reward or its KL is measured wrongly: look whether its tokens, its template and the ends of its "
            "answers are those of the start",
        )


def show(stage: Stage, measured: Sequence[tuple[dict[str, Any], PolicyAnswers, ScoredAnswers]], count: int) -> None:
    """Show prompts with every policy's answer side by side: those where the last one gained most and least over the
    first, and others."""
    from alignkit.training.picking import picked_samples

    (_, asked, before), (*_, after) = measured[0], measured[-1]
    gains = [last - first for first, last in zip(before.total, after.total, strict=True)]
    for i, kind in picked_samples(gains, count):
        row: dict[str, str | float] = {"prompt": asked.answers[i].prompt}
        for line, result, scores in measured:
            row[line["policy"]] = result.answers[i].text
            row[f"{line['policy']} reward"] = scores.total[i]
        stage.sample(row, kind)


def distinct(answers: Sequence[Sequence[int]], n: int) -> float:
    """Return the share of different n-grams among all n-grams of the answers; 0 where there are none."""
    grams = [tuple(answer[i : i + n]) for answer in answers for i in range(len(answer) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return how often ours is the higher one, and the Wilson interval around it; a tie is half a win."""
    wins = sum((a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True))
    rate = wins / len(ours)
    return (rate, *wilson(rate, len(ours)))


@hookimpl
def alignkit_methods() -> list[Method]:
    return [evaluate]
