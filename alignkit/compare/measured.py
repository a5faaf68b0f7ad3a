"""What a comparison found: a line for the start and for each variant, and which differences are more than noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit.compare.planning import ComparisonPlan, Contender
from alignkit.errors import StageError
from alignkit.noise import Difference, Scores, SeedSpread, difference, interval, spread_of_seeds, wilson
from alignkit.overoptimisation import Law, fit_laws
from alignkit.show.frontier import Ceiling, read_ceiling

Row = Mapping[str, Any]
"""One policy's row of what `evaluate` made."""


@dataclass(frozen=True)
class Cost:
    """What one stage took: seconds, and the most memory that it held at once, in bytes; the GPU's if it used one."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class WayPoint:
    """A policy on the way to a variant's, averaged over its seeds."""

    step: int
    kl: float
    reward: float


@dataclass(frozen=True)
class Line:
    """One line of the comparison: the start, or a variant averaged over its seeds."""

    name: str
    stages: tuple[str, ...]
    """The stages that made it; for the start its stage or source."""
    reward: float
    """The mean of the deciding rewards, weighted and added up."""
    interval: float
    """Half the width of the 95 % interval around it."""
    by_seed: tuple[float, ...]
    """The same for each seed."""
    rewards: Mapping[str, float]
    """Each reward by its name."""
    kl: float | None
    """From the start; None where the tokenizers differ."""
    length: float
    eos_rate: float
    distinct_1: float
    distinct_2: float
    frontier: bool
    """No other one has at least its reward with at most its KL."""
    win_rate: float | None = None
    """Over the start, a tie being half a win; None for the start itself."""
    win_interval: tuple[float, float] | None = None
    gain: Difference | None = None
    """Over the start."""
    behind: Difference | None = None
    """By how much the best variant's reward is higher; None for the best one and for the start."""
    seconds: float | None = None
    """Of the compared stage, averaged over the seeds."""
    memory: int | None = None
    """The most that one of them held, in bytes."""
    attained: Difference | None = None
    """The share of what is attainable at its KL; None where that is not known."""
    above: tuple[str, ...] = ()
    """Its stages whose policies lie above what is attainable, which cannot be."""
    way: tuple[WayPoint, ...] = ()
    """The policies on the way, by step, where the stage keeps some."""
    peak_reward: float | None = None
    """Of the best policy on the way or at the end, averaged over the seeds."""
    peak_kl: float | None = None
    """Where that lay."""
    laws: Mapping[str, float] = field(default_factory=dict)
    """How reward falls with distance (`alignkit.overoptimisation`): coefficients of both forms along the way, and what
    they explain, as `rl/r2`; for the start those of the best of n of its answers by each reward, as `proxy/r2`."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, and where it lies."""

    recipe: str
    stage: str
    folder: Path
    """Where its plan, its report and `comparison.json` lie."""
    deciding: tuple[str, ...]
    """The rewards that decide."""
    trained: frozenset[str]
    """The rewards that a variant learnt from."""
    prompts: int
    """How many held-out ones were asked."""
    seeds: tuple[int, ...]
    start: Line
    variants: tuple[Line, ...]
    """In the order in which they were asked for."""
    ceiling: Ceiling | None = None
    """What is attainable from the start; None where it was not measured."""

    @property
    def best(self) -> Line:
        """The variant with the highest reward."""
        return max(self.variants, key=lambda line: line.reward)


def read_comparison(
    planned: ComparisonPlan, folder: Path, rows: Sequence[Row], costs: Mapping[str, Cost]
) -> Comparison:
    """Make the comparison of what `evaluate` measured; `rows` are in the order in which its policies were wired."""
    wired = planned.plan.stage(planned.scores).inputs["policies"]
    ways = {name: [row for row in rows if row.get("of") == name] for name in wired}
    rows = [row for row in rows if "of" not in row]
    if len(rows) != len(wired):
        raise StageError(f"it measured {len(rows)} policies, not {len(wired)}", f"stage {planned.scores!r}")
    by_stage = dict(zip(wired, rows, strict=True))
    start, of = by_stage[planned.start], [[by_stage[name] for name in c.stages] for c in planned.contenders]
    scores = [_scores(rows) for rows in of]
    spread = spread_of_seeds(scores)
    best = max(of, key=lambda rows: fmean(row["reward"] for row in rows))
    points = [(0.0, start["reward"]), *((_mean(rows, "kl"), _mean(rows, "reward")) for rows in of)]
    others = max(1, len(of) - 1)
    shares = [_shares(rows) for rows in of]
    spread_of_shares = spread_of_seeds([share for share in shares if share])

    ceiling = read_ceiling(start["ceiling"]) if "ceiling" in start else None
    of_best = _laws_of_best(ceiling) if ceiling else {}

    def line(contender: Contender, several: Sequence[Row], share: Scores) -> Line:
        ours, rate = _scores(several), fmean(row["win_rate"] for row in several)
        behind = None if several is best else difference(_scores(best), ours, spread, comparisons=others)
        return _line(
            contender.variant.label,
            contender.stages,
            several,
            spread,
            points,
            win_rate=rate,
            win_interval=wilson(rate, start["prompts"]),
            gain=difference(ours, _scores([start]), spread, start=True),
            behind=behind,
            seconds=fmean(sum(costs[name].seconds for name in own.values()) for own in contender.own),
            memory=max(costs[name].memory for own in contender.own for name in own.values()),
            attained=_attained(share, spread_of_shares),
            **_on_the_way(several, [ways[name] for name in contender.stages], start["reward"]),
            above=tuple(
                name
                for name, row in zip(contender.stages, several, strict=True)
                if row.get("attained", {}).get("above")
            ),
        )

    return Comparison(
        recipe=planned.plan.recipe.name.removesuffix("-compare"),
        stage=planned.stage,
        folder=folder,
        deciding=planned.deciding,
        trained=planned.trained,
        prompts=start["prompts"],
        seeds=planned.seeds,
        start=_line("start", (planned.start,), [start], SeedSpread(), points, kl=0.0, laws=of_best),
        variants=tuple(map(line, planned.contenders, of, shares)),
        ceiling=ceiling,
    )


def _line(
    name: str,
    stages: tuple[str, ...],
    rows: Sequence[Row],
    spread: SeedSpread,
    points: Sequence[tuple[float | None, float | None]],
    **more: Any,
) -> Line:
    """Average one policy's rows over its seeds."""
    kl = more.pop("kl", _mean(rows, "kl"))
    reward = fmean(row["reward"] for row in rows)
    names = [key for key in rows[0] if key.startswith("reward/")]
    return Line(
        name=name,
        stages=stages,
        reward=reward,
        interval=interval(_scores(rows), spread),
        by_seed=tuple(row["reward"] for row in rows),
        rewards={key.removeprefix("reward/"): fmean(row[key] for row in rows) for key in names},
        kl=kl,
        length=fmean(row["length"] for row in rows),
        eos_rate=fmean(row["eos_rate"] for row in rows),
        distinct_1=fmean(row["distinct_1"] for row in rows),
        distinct_2=fmean(row["distinct_2"] for row in rows),
        frontier=on_frontier((kl, reward), points),
        **more,
    )


def _on_the_way(last: Sequence[Row], ways: Sequence[Sequence[Row]], start: float) -> dict[str, Any]:
    """Return what a variant's line tells of the policies on the way, by seed, to its last ones."""
    if not all(ways):
        return {}
    best = [max([*way, row], key=lambda one: one["reward"]) for way, row in zip(ways, last, strict=True)]
    peaks = {"peak_reward": fmean(row["reward"] for row in best), "peak_kl": _mean(best, "kl")}
    if any(row["kl"] is None for way in ways for row in way):
        return peaks
    steps = [[row["step"] for row in way] for way in ways]
    if all(one == steps[0] for one in steps):
        points = [WayPoint(at[0]["step"], *_place(at)) for at in zip(*ways, strict=True)]
    else:  # spaced by KL, each seed by its own
        points = sorted((WayPoint(row["step"], *_place([row])) for way in ways for row in way), key=lambda one: one.kl)
    ends = [(point.kl, point.reward) for point in points] + [_place(last)]
    laws = fit_laws([kl for kl, _ in ends], [reward - start for _, reward in ends])
    facts = _flat(laws._asdict()) if laws else {}
    return {**peaks, "way": tuple(points), "laws": facts}


def _laws_of_best(ceiling: Ceiling) -> dict[str, float]:
    """Fit the law of the best of n, with each reward that chooses, to what the reward that decides comes to."""
    laws: dict[str, Law] = {}
    for name in ceiling.choosing:
        chosen = [one for one in ceiling.best_of if one.by == name]
        if found := fit_laws([one.most_kl for one in chosen], [one.reward - ceiling.reward for one in chosen]):
            laws[name] = found.best_of_n
    return _flat(laws)


def _flat(laws: Mapping[str, Law]) -> dict[str, float]:
    return {f"{name}/{key}": value for name, law in laws.items() for key, value in law._asdict().items()}


def _place(rows: Sequence[Row]) -> tuple[float, float]:
    return fmean(row["kl"] for row in rows), fmean(row["reward"] for row in rows)


def _scores(rows: Sequence[Row]) -> Scores:
    return [row["each"]["reward"] for row in rows]


def _shares(rows: Sequence[Row]) -> Scores:
    """Return the shares of what is attainable, by seed and by prompt; none where a seed has none."""
    found = [row.get("attained", {}).get("by_prompt") for row in rows]
    return found if all(found) else []


def _attained(shares: Scores, spread: SeedSpread) -> Difference | None:
    return Difference(fmean(map(fmean, shares)), interval(shares, spread)) if shares else None


def _mean(rows: Sequence[Row], key: str) -> float | None:
    """Average a measure over seeds; None where one of them could not be taken."""
    values = [row[key] for row in rows]
    return None if None in values else fmean(values)


def on_frontier(point: tuple[float | None, float], others: Sequence[tuple[float | None, float | None]]) -> bool:
    """Return whether no other point has at least this reward with at most this KL, and one of them better."""
    kl, reward = point
    if kl is None:
        return False
    return not any(
        other_kl is not None
        and other_reward is not None
        and other_kl <= kl
        and other_reward >= reward
        and (other_kl, other_reward) != point
        for other_kl, other_reward in others
    )
