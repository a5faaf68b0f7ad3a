"""Charts for a page: lines, points and bars as SVG, with axes, ticks and units, that need no script to be read.

Colours are classes of the page's style (`series-0` and so on), so that they follow light and dark. Each chart knows
where its values lie (`data-` attributes), from which the page's script tells the values under the pointer.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

from markupsafe import Markup, escape

from alignkit.text import number

WIDTH, HEIGHT = 340, 200
"""Of a chart, in its own units: pixels, where there is room."""
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 22, 34
"""What axes and their labels take at each side."""
TICKS = 4
"""About so many on an axis."""

TINY = 1e-300
"""Differences below it are none: their logarithm has no power of ten."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart, or one cloud of points."""

    name: str
    points: Sequence[Point]
    mark: str = "line"
    """`line`, `dots`, `steps`, a line with its steps as dots, or `path`, the same from light to dark."""
    spread: Sequence[float] = ()
    """Half of the interval around each value, where that is drawn."""
    words: Sequence[str] = ()
    """What stands beside each point, where something does."""


@dataclass(frozen=True)
class Axis:
    """What an axis shows."""

    label: str
    whole: bool = False
    """Only whole numbers have a tick."""
    ends: tuple[float, float] | None = None
    """What it must reach at least."""


@dataclass(frozen=True)
class Scale:
    """From values to places."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return round numbers in equal steps of 1, 2 or 5 times a power of ten that reach over both ends."""
    if not high - low > abs(high) * 1e-12 + TINY:
        space = abs(low) / 10 or 1.0
        low, high = low - space, high + space
    step = _round_step((high - low) / TICKS)
    step = max(1.0, step) if whole else step
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, max(last, first + 1) + 1)]


def _round_step(least: float) -> float:
    """Return 1, 2 or 5 times a power of ten: the smallest that is no smaller."""
    power = 10.0 ** floor(log10(least))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= least * 0.999)


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> Markup:
    """Draw lines or points over common axes. Points that are not finite interrupt a line."""
    points = [point for one in series for point in one.points if isfinite(point[0]) and isfinite(point[1])]
    if not points:
        return Markup("")
    spreads = [end for one in series for end in _spread(one)]
    least, most = _reach([point[0] for point in points], x)
    over = ticks(least, most, x.whole)
    if x.whole and most > least:
        over = [tick for tick in over if least <= tick <= most]
    up = ticks(*_reach([*(point[1] for point in points), *spreads], y), y.whole)
    ends = (least, most) if x.whole and most > least else (over[0], over[-1])
    across = Scale(*ends, LEFT, WIDTH - RIGHT)
    upward = Scale(up[0], up[-1], HEIGHT - BOTTOM, TOP)
    marks = [mark for i, one in enumerate(series) for mark in _marks(one, i, across, upward)]
    told = "; ".join(f"{one.name}: {_summary(one.points)}" for one in series)
    data = json.dumps({"x": _ends(across), "y": _ends(upward), "names": [one.name for one in series], "over": x.label})
    return _svg(f"{title}, {y.label} over {x.label}. {told}", [*_frame(across, upward, over, up, x, y), *marks], data)


def bar_chart(title: str, bars: Sequence[tuple[str, float]], x: Axis, y: Axis) -> Markup:
    """Draw a bar for each name; of many names not all are written."""
    if not bars:
        return Markup("")
    up = ticks(*_reach([0.0, *(value for _, value in bars)], y), y.whole)
    upward, wide = Scale(up[0], up[-1], HEIGHT - BOTTOM, TOP), (WIDTH - LEFT - RIGHT) / len(bars)
    drawn = []
    for i, (name, value) in enumerate(bars):
        high, foot, left = upward.place(value), upward.place(0.0), LEFT + i * wide
        top, size = min(high, foot), abs(high - foot)
        drawn.append(
            f'<rect class="bar" x="{left + wide * 0.08:.1f}" y="{top:.1f}" width="{wide * 0.84:.1f}" '
            f'height="{size:.1f}"><title>{escape(name)}: {number(value)}</title></rect>'
        )
        if i % ceil(len(bars) / 6) == 0:
            drawn.append(_text(left + wide / 2, HEIGHT - BOTTOM + 13, name, "middle"))
    told = "; ".join(f"{name}: {number(value)}" for name, value in bars)
    return _svg(f"{title}, {y.label} by {x.label}. {told}", [*_grid(upward, up, x, y), *drawn])


def histogram(values: Sequence[float], bins: int = 20) -> list[tuple[str, float]]:
    """Count values in bins of equal, round width; each bin is named by its middle."""
    finite = [value for value in values if isfinite(value)]
    if not finite:
        return []
    low, high = min(finite), max(finite)
    step = _round_step((high - low) / bins or 1.0)
    first = floor(low / step)
    counts = [0] * (floor(high / step) - first + 1)
    for value in finite:
        counts[floor(value / step) - first] += 1
    return [(number((first + place + 0.5) * step), float(count)) for place, count in enumerate(counts)]


def _spread(series: Series) -> Iterator[float]:
    for (_, value), half in zip(series.points, series.spread, strict=False):
        yield from (value - half, value + half)


def _reach(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    return min([*values, *(axis.ends or ())]), max([*values, *(axis.ends or ())])


def _ends(scale: Scale) -> list[float]:
    return [scale.low, scale.high, scale.start, scale.end]


def _summary(points: Sequence[Point]) -> str:
    finite = [y for _, y in points if isfinite(y)]
    if not finite:
        return "no value"
    return f"from {number(finite[0])} to {number(finite[-1])}, between {number(min(finite))} and {number(max(finite))}"


COLOURS = 8
"""Of series; the ninth has the first one's."""


def _marks(series: Series, order: int, across: Scale, upward: Scale) -> Iterator[str]:
    colour = order % COLOURS
    for (x, y), half in zip(series.points, series.spread, strict=False):
        place, top, foot = across.place(x), upward.place(y + half), upward.place(y - half)
        yield f'<line class="spread spread-{colour}" x1="{place:.1f}" x2="{place:.1f}" y1="{top:.1f}" y2="{foot:.1f}"/>'
    placed = [[(across.place(x), upward.place(y)) for x, y in piece] for piece in unbroken(series.points)]
    if series.mark != "dots":
        for piece in placed:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
            yield f'<polyline class="series-{colour}" data-series="{order}" points="{points}"/>'
    if series.mark != "line":
        flat = [point for piece in placed for point in piece]
        for i, (x, y) in enumerate(flat):
            strength = 0.25 + 0.75 * (i + 1) / len(flat) if series.mark == "path" else 1.0
            strength = 0.55 if series.mark == "dots" and len(flat) > 1 else strength
            radius = 2.6 if len(flat) > 1 else 4.5
            yield f'<circle class="dot-{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}" opacity="{strength:.2f}"/>'
        for (x, y), word in zip((flat[0], flat[-1]), ("start", "end"), strict=True) if series.mark == "path" else ():
            yield _text(min(max(x, LEFT + 14), WIDTH - RIGHT - 14), y - 6 if y > TOP + 16 else y + 14, word, "middle")
        for (x, y), word in zip(flat, series.words, strict=False):
            yield _text(x + 3, y + 11, word, "start")


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Keep so many points at most: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    inner, stretches = points[1:-1], max(1, (most - 2) // 2)
    kept = [points[0]]
    for i in range(stretches):
        stretch = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        odd = [point for point in stretch if not isfinite(point[1])]
        ends = odd[:1] or sorted(stretch, key=lambda point: point[1])
        kept += sorted({ends[0], ends[-1]})
    return [*kept, points[-1]]


def unbroken(points: Iterable[Point]) -> Iterator[list[Point]]:
    """Cut a series where its values are not finite."""
    piece: list[Point] = []
    for point in points:
        if isfinite(point[0]) and isfinite(point[1]):
            piece.append(point)
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _frame(across: Scale, upward: Scale, over: Sequence[float], up: Sequence[float], x: Axis, y: Axis) -> Iterator[str]:
    yield from _grid(upward, up, x, y)
    for tick in over:
        yield _text(across.place(tick), HEIGHT - BOTTOM + 13, _tick(tick), "middle")


def _grid(upward: Scale, up: Sequence[float], x: Axis, y: Axis) -> Iterator[str]:
    for tick in up:
        place = upward.place(tick)
        zero = ' class="zero"' if tick == 0 else ""
        yield f'<line{zero} x1="{LEFT}" y1="{place:.1f}" x2="{WIDTH - RIGHT}" y2="{place:.1f}"/>'
        yield _text(LEFT - 5, place + 3.5, _tick(tick), "end")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x.label, "middle", "axis")
    yield _text(3, 9, y.label, "start", "axis")


def _tick(value: float) -> str:
    """Write a round number: 0.0005, 12k, 3M."""
    return number(value) if abs(value) >= 1e4 else f"{value + 0.0:g}"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    of = f' class="{kind}"' if kind else ""
    return f'<text{of} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(told: str, parts: Iterable[str], data: str = "") -> Markup:
    held = f' data-chart="{escape(data)}"' if data else ""
    return Markup(  # noqa: S704  # every text in it is escaped
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}"{held}>'
        f"{''.join(parts)}</svg>"
    )


@dataclass(frozen=True)
class Node:
    """A box of a graph."""

    name: str
    lines: tuple[str, ...]
    state: str
    """The class of its colour."""
    takes: tuple[str, ...]
    """The boxes that it starts from."""


ACROSS, NODE_WIDTH, NODE_HEIGHT, GAP_X, GAP_Y = 3, 150, 62, 14, 26
"""Boxes side by side at most, and their measures, so that a phone can show them."""


def graph(nodes: Sequence[Node]) -> Markup:
    """Draw boxes below those that they start from, and what leads from one to another."""
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.name] = 1 + max((depth[name] for name in node.takes if name in depth), default=-1)
    rows = [[node for node in nodes if depth[node.name] == level] for level in sorted({*depth.values()})]
    lines = [row[i : i + ACROSS] for row in rows for i in range(0, len(row), ACROSS)]
    wide = max(map(len, lines), default=0) * (NODE_WIDTH + GAP_X) + GAP_X
    places: dict[str, Point] = {}
    for level, line in enumerate(lines):
        left, top = (wide - len(line) * (NODE_WIDTH + GAP_X) + GAP_X) / 2, level * (NODE_HEIGHT + GAP_Y) + 2
        places |= {node.name: (left + i * (NODE_WIDTH + GAP_X), top) for i, node in enumerate(line)}
    parts = [_edge(places[name], places[node.name]) for node in nodes for name in node.takes if name in places]
    parts += [_box(node, *places[node.name]) for node in nodes]
    high = len(lines) * (NODE_HEIGHT + GAP_Y) - GAP_Y + 4
    told = "; ".join(
        f"{node.name}, {', '.join(node.lines)}, from {', '.join(node.takes) or 'sources'}" for node in nodes
    )
    return Markup(  # noqa: S704  # every text in it is escaped
        f'<svg class="graph" viewBox="0 0 {wide} {high}" style="max-width: {wide}px" role="img" '
        f'aria-label="{escape(told)}">{"".join(parts)}</svg>'
    )


def _edge(start: Point, end: Point) -> str:
    """Lead from the foot of one box to the head of another."""
    x, y, to_x, to_y = start[0] + NODE_WIDTH / 2, start[1] + NODE_HEIGHT, end[0] + NODE_WIDTH / 2, end[1]
    bend = (to_y - y) / 2
    return f'<path d="M{x:.0f},{y:.0f} C{x:.0f},{y + bend:.0f} {to_x:.0f},{to_y - bend:.0f} {to_x:.0f},{to_y:.0f}"/>'


def _box(node: Node, x: float, y: float) -> str:
    texts = [
        f'<text x="{x + 10:.0f}" y="{y + 36 + 16 * i:.0f}">{escape(line)}</text>' for i, line in enumerate(node.lines)
    ]
    return (
        f'<a href="#{escape(node.name)}"><rect class="{escape(node.state)}" x="{x:.0f}" y="{y:.0f}" '
        f'width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + 10:.0f}" y="{y + 19:.0f}">{escape(node.name)}</text>{"".join(texts)}</a>'
    )
