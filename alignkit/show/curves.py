"""Curves for a report: a stage's metrics as few points, ready to be drawn."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from alignkit.contract.events import Metrics
from alignkit.show.metrics import LABELS
from alignkit.text import number

WIDTH, HEIGHT = 300, 90
"""Of the drawing, in its own units."""

POINTS = 300
"""A curve has no more."""

Point = tuple[int, float]


@dataclass(frozen=True)
class Curve:
    """One metric over a stage's steps."""

    name: str
    label: str
    lines: tuple[str, ...]
    """Points of an SVG polyline each; a curve is interrupted where a value is not finite."""
    low: str
    high: str
    last: str
    first_step: int
    last_step: int


def curves(metrics: Sequence[Metrics], points: int = POINTS) -> list[Curve]:
    """Draw each metric, the ones that matter first; a metric that was told only once is no curve."""
    series: dict[str, list[Point]] = {}
    for told in metrics:
        for name, value in told.values.items():
            series.setdefault(name, []).append((told.step, value))
    known = [name for name in LABELS if name in series]
    names = [*known, *sorted(set(series) - set(known))]
    return [_curve(name, series[name], points) for name in names if sum(isfinite(y) for _, y in series[name]) > 1]


def _curve(name: str, series: Sequence[Point], points: int) -> Curve:
    finite = [value for _, value in series if isfinite(value)]
    low, high = min(finite), max(finite)
    first, last = series[0][0], series[-1][0]

    def place(point: Point) -> str:
        x = (point[0] - first) / (last - first or 1) * WIDTH
        y = (high - point[1]) / (high - low) * HEIGHT if high > low else HEIGHT / 2
        return f"{x:.1f},{y:.1f}"

    lines = tuple(" ".join(map(place, piece)) for piece in _unbroken(thin(series, points)))
    label = LABELS.get(name, "")
    shown = "" if label == name else label
    return Curve(name, shown, lines, number(low), number(high), number(finite[-1]), first, last)


def thin(series: Sequence[Point], points: int) -> list[Point]:
    """Keep so many points at most: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(series) <= points:
        return list(series)
    inner, stretches = series[1:-1], max(1, (points - 2) // 2)
    kept = [series[0]]
    for i in range(stretches):
        stretch = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        odd = [point for point in stretch if not isfinite(point[1])]
        ends = odd[:1] or sorted(stretch, key=lambda point: point[1])
        kept += sorted({ends[0], ends[-1]})
    return [*kept, series[-1]]


def _unbroken(series: Iterable[Point]) -> Iterator[list[Point]]:
    """Cut a series where its values are not finite."""
    piece: list[Point] = []
    for point in series:
        if isfinite(point[1]):
            piece.append(point)
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece
