"""Figures by round: what the rounds of a repeat came to, side by side."""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import Any, NamedTuple

from alignkit.contract.events import Result
from alignkit.show.charts import Axis, Series, line_chart
from alignkit.show.pictures import Picture
from alignkit.store.runs import KeptRound, KeptRun, KeptStage
from alignkit.text import number

PICTURES = 6
"""Figures that are drawn; the table has all."""


class RoundFigure(NamedTuple):
    """One figure in all rounds."""

    stage: str
    """Which stage of the recipe tells it."""
    name: str
    """Its name, with the names of stages as the recipe has them."""
    rounds: Mapping[int, Result]


def figures_by_round(run: KeptRun) -> list[RoundFigure]:
    """Return the figures that more than one round has: first of stages that measure several rounds, on equal rows."""
    rounds = {stage.name: stage.round for stage in run.stages if stage.round}
    found: dict[tuple[str, str], dict[int, Result]] = {}
    for stage in sorted(run.stages, key=lambda one: one.round is not None):
        for result in stage.results if rounds else ():
            if placed := _placed(stage, result, rounds):
                key, of = placed
                found.setdefault(key, {})[of] = result
    return [RoundFigure(*key, several) for key, several in found.items() if len(several) > 1]


def _placed(stage: KeptStage, result: Result, rounds: Mapping[str, KeptRound]) -> tuple[tuple[str, str], int] | None:
    """Return which figure of which round a result is; None where it is of no round, or of several."""
    told = _any_of(rounds).findall(result.name)
    numbers = {stage.round.number} if stage.round else {rounds[name].number for name in told}
    if len(numbers) != 1:
        return None
    label = renamed(result.name, {name: one.stage for name, one in rounds.items()})
    return (stage.round.stage if stage.round else stage.name, label), numbers.pop()


def renamed(figure: str, names: Mapping[str, str]) -> str:
    """Return the name of a figure with other names of the stages in it."""
    return _any_of(names).sub(lambda word: names[word[0]], figure) if names else figure


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Return what finds these names as words of their own."""
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})(?![\w-])")


def table_by_round(figures: Sequence[RoundFigure]) -> list[tuple[str, ...]]:
    """Return a table of figures by round, with its head; empty where there are none."""
    numbers = range(1, max((max(one.rounds) for one in figures), default=0) + 1)
    rows = [
        (one.stage, one.name, *(number(one.rounds[place].after) if place in one.rounds else "" for place in numbers))
        for one in figures
    ]
    return [("stage", "figure", *(f"round {place}" for place in numbers)), *rows] if rows else []


def pictures_by_round(figures: Sequence[RoundFigure]) -> list[Picture]:
    """Draw the first figures over the rounds, with the intervals that they have."""
    return [_picture(one) for one in figures[:PICTURES]]


def _picture(figure: RoundFigure) -> Picture:
    told = sorted(figure.rounds.items())
    points = [(float(place), nan if result.after is None else result.after) for place, result in told]
    intervals = [result.interval for _, result in told]
    spread = [(high - low) / 2 for low, high in (one for one in intervals if one)]
    drawn = Series(figure.name, points, spread=spread if len(spread) == len(points) else ())
    title = f"{figure.stage}: {figure.name}"
    return Picture(title, line_chart(title, [drawn], Axis("round", whole=True), Axis(figure.name)))


def as_plain(figures: Sequence[RoundFigure]) -> list[dict[str, Any]]:
    """Return figures by round as plain JSON values."""
    return [
        {
            "stage": one.stage,
            "name": one.name,
            "rounds": {place: result.after for place, result in sorted(one.rounds.items())},
        }
        for one in figures
    ]
