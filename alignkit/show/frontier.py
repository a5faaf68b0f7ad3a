"""The frontier: reward against KL, with the most that there is to be had, the best of n, and every policy."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from alignkit.contract.kinds import Scores
from alignkit.errors import StageError
from alignkit.show.charts import Axis, Series, line_chart
from alignkit.show.pictures import Picture
from alignkit.store.runs import KeptStage


@dataclass(frozen=True)
class BestOf:
    """What choosing the best of n of the start's answers gives."""

    by: str
    """The reward that chooses."""
    n: int
    reward: float
    """The deciding one."""
    interval: float
    """Half the width of the 95 % interval around it."""
    most_kl: float
    """From the start, at most."""


@dataclass(frozen=True)
class Ceiling:
    """What is attainable from a start, as `evaluate` keeps it in the start's row."""

    measure: str
    """What the deciding reward is called, or `sum`."""
    samples: int
    """Answers of the start to each prompt."""
    prompts: int
    reward: float
    """Of the start, over all these answers."""
    reliable_kl: float
    """Up to where they tell it."""
    curve: tuple[tuple[float, float], ...]
    """KL and the best reward there."""
    best_of: tuple[BestOf, ...]

    @property
    def choosing(self) -> list[str]:
        """The rewards by which the best of n is chosen."""
        return list(dict.fromkeys(one.by for one in self.best_of))


def read_ceiling(kept: Mapping[str, Any]) -> Ceiling:
    """Read a ceiling back, from JSON, too."""
    curve = tuple((kl, reward) for kl, reward in kept["curve"])
    return Ceiling(**{**kept, "curve": curve, "best_of": tuple(BestOf(**one) for one in kept["best_of"])})


@dataclass(frozen=True)
class PolicyPoint:
    """Where a policy stands."""

    name: str
    kl: float
    reward: float
    interval: float
    way: tuple[tuple[float, float], ...] = ()
    """KL and reward of policies on the way to it, where some were kept."""


def frontier_picture(policies: Sequence[PolicyPoint], measure: str, ceiling: Ceiling | None) -> Picture:
    """Draw each policy by its KL and its reward, with the interval around that, under what is attainable."""
    series = [*(_ceiling(ceiling) if ceiling else ()), *map(_policy, policies)]
    title = f"{measure} against KL"
    chart = line_chart(title, series, Axis("KL from the start, nats an answer", ends=(0.0, 0.0)), Axis(measure))
    told = "up is better, right is further from the start; bars are 95 % intervals"
    if ceiling:
        told += f"; attainable: the most that any policy can have at that KL, told by {ceiling.samples} answers of the "
        told += (
            f"start to each of {ceiling.prompts} prompts up to a KL of {ceiling.reliable_kl:.1f}; numbers are n, at "
        )
        told += "the most KL that the best of n has"
    return Picture(title, chart, told, legend=[one.name for one in series])


def _policy(point: PolicyPoint) -> Series:
    last = (point.kl, point.reward)
    if point.way:
        return Series(point.name, [*point.way, last], "steps", spread=[*(0.0 for _ in point.way), point.interval])
    return Series(point.name, [last], "dots", spread=[point.interval])


def _ceiling(ceiling: Ceiling) -> Iterator[Series]:
    yield Series("attainable", ceiling.curve)
    furthest = ceiling.reliable_kl
    for by in ceiling.choosing:
        shown = [one for one in ceiling.best_of if one.by == by and one.most_kl <= furthest]
        points = [(one.most_kl, one.reward) for one in shown]
        yield Series(f"best of n by {by}", points, "steps", words=[str(one.n) for one in shown])


def frontier_of_stage(stage: KeptStage) -> Iterator[Picture]:
    """Draw what a stage of a kept run has measured, where it has measured a ceiling."""
    rows = _rows(stage)
    start = next((row for row in rows if "ceiling" in row), None)
    if start is None:
        return
    ceiling = read_ceiling(start["ceiling"])
    held = [(row, row["attained"]["kl"]) for row in rows if "attained" in row]
    ways: dict[str, list[tuple[float, float]]] = {}
    for row, kl in held:
        ways.setdefault(row.get("of", ""), []).append((kl, row["reward"]))
    points = [
        PolicyPoint(row["policy"], kl, row["reward"], row["reward_interval"], tuple(ways.get(row["policy"], ())))
        for row, kl in [(start, 0.0), *held]
        if "of" not in row
    ]
    yield frontier_picture(points, ceiling.measure, ceiling)


def _rows(stage: KeptStage) -> Sequence[Mapping[str, Any]]:
    if stage.facts and stage.facts["artifact"]["kind"] == Scores.__name__:
        with suppress(StageError):  # what is damaged is said where it is read
            made = stage.artifact(tuple)
            return made.rows() if isinstance(made, Scores) else ()
    return ()
