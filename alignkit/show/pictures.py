"""Which charts a stage's figures make: its curves, and what was measured of its held-out rows."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean
from types import MappingProxyType

from markupsafe import Markup

from alignkit.contract.events import Metrics
from alignkit.show.charts import Axis, Point, Series, bar_chart, histogram, line_chart, thinned
from alignkit.show.metrics import LABELS, SECONDARY
from alignkit.text import number

FIRST = 6
"""Curves that are shown at once; the others are folded."""

MATTER = (
    "objective/scores",
    "objective/kl",
    "length",
    "eos_rate",
    "objective/entropy",
    "val/explained_var",
    "loss",
    "accuracy",
    "rewards/accuracies",
    "margin",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)
"""The metrics that tell whether a run goes well, the most telling first; after them come others that have a label."""

TOGETHER = ("logps", "rewards", "start_logps")
"""Of these metrics the one of the chosen answers and the one of the rejected ones stand in one chart."""

CONFIDENCE_BINS, LENGTH_BINS = 10, 5


@dataclass(frozen=True)
class Picture:
    """A chart with its title and what is to be seen in it."""

    title: str
    chart: Markup
    told: str = ""
    """What it says, in a sentence."""
    beside: str = ""
    """What stands beside the title, such as the last value."""
    legend: Sequence[str] = ()
    """The names of its series, in their order."""


def curves_of(
    metrics: Sequence[Metrics], most: int, bounds: Mapping[str, float] = MappingProxyType({})
) -> list[Picture]:
    """Draw each metric over the steps, of so many points at most, the ones that matter first.

    A metric that was told only once is no curve; the two sides of a pair stand in one chart, and so do a metric and the
    bound that it has.
    """
    series = series_of(metrics)
    charts: dict[str, list[str]] = {}
    for name, _, _ in ordered(series):
        charts.setdefault(_chart_of(name), []).append(name)
    return [
        _curve(title, {name: thinned(series[name], most) for name in several}, bounds.get(title))
        for title, several in charts.items()
    ]


def ordered(names: Collection[str]) -> list[tuple[str, str, str]]:
    """Return metrics in the order in which they are shown, those that matter first: name, and title and label of its
    chart, which are the same where people have no other word for it."""
    costs = sorted(name.removeprefix("cost/") for name in names if name.startswith("cost/"))
    bounded = [f"{head}/{cost}" for cost in costs for head in ("cost", "lambda")]
    known = [name for name in dict.fromkeys([*MATTER[:2], *bounded, *MATTER, *LABELS]) if name in names]
    last = [name for name in SECONDARY if name in names]
    return [(name, name, LABELS.get(name, name)) for name in [*known, *sorted({*names} - {*known} - {*last}), *last]]


def series_of(metrics: Sequence[Metrics]) -> dict[str, list[Point]]:
    """Return each metric that was told more than once as points of step and value."""
    series: dict[str, list[Point]] = {}
    for told in metrics:
        for name, value in told.values.items():
            series.setdefault(name, []).append((told.step, value))
    return {name: points for name, points in series.items() if len(points) > 1}


def _chart_of(name: str) -> str:
    head, _, side = name.partition("/")
    return head if head in TOGETHER and side in ("chosen", "rejected") else name


def _curve(title: str, lines: Mapping[str, Sequence[Point]], bound: float | None = None) -> Picture:
    label = LABELS.get(title, title)
    series = [Series(name.rpartition("/")[2] if len(lines) > 1 else label, points) for name, points in lines.items()]
    if bound is not None:
        (points,) = lines.values()
        series.append(Series("bound", [(points[0][0], bound), (points[-1][0], bound)]))
    chart = line_chart(title, series, Axis("step", whole=True), Axis(""))
    last = ", ".join(number(points[-1][1]) for points in lines.values())
    beside = f"{title if label != title else ''} {last}".strip()
    return Picture(label, chart, beside=beside, legend=[one.name for one in series])


def pictures_of(metrics: Sequence[Metrics], rows: Mapping[str, Sequence[float]]) -> list[Picture]:
    """Draw what a stage's figures and held-out rows say besides curves, as far as it has told them."""
    drawn = [*_path(series_of(metrics)), *_margins(rows), *_lengths(rows)]
    return [picture for picture in drawn if picture.chart]


def _path(series: Mapping[str, Sequence[Point]]) -> Iterator[Picture]:
    """The run's path in the plane of KL and reward."""
    kl, reward = dict(series.get("objective/kl", ())), dict(series.get("objective/scores", ()))
    points = thinned([(kl[step], reward[step]) for step in kl if step in reward], 60)
    if len(points) > 1:
        told = "from the first update, pale, to the last; up is more reward, right is further from the start"
        axes = Axis("KL from the start, nats an answer", ends=(0.0, 0.0)), Axis("reward")
        yield Picture("Path in KL and reward", line_chart("Path", [Series("reward", points, "path")], *axes), told)


def _margins(rows: Mapping[str, Sequence[float]]) -> Iterator[Picture]:
    margins = rows.get("margin")
    if not margins:
        return
    right = fmean(map(_right, margins))
    bars = histogram(margins)
    told = f"{right:.0%} of {len(margins)} pairs lie above 0, where the chosen answer scores higher"
    yield Picture("Margins", bar_chart("Margins", bars, Axis("chosen less rejected"), Axis("pairs", whole=True)), told)
    yield _calibration(margins)
    if longer := rows.get("longer"):
        yield _by_length(margins, longer)


def _right(margin: float) -> float:
    """Return whether a pair is told rightly by its margin: 1 or 0, and 1/2 for a tie."""
    return 0.5 if margin == 0 else float(margin > 0)


def _calibration(margins: Sequence[float]) -> Picture:
    """How often it is right, by how sure it is: sigmoid of the margin's size, as Bradley and Terry have it."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for margin in margins:
        sure = 1 / (1 + exp(-min(abs(margin), 700.0)))
        place = min(CONFIDENCE_BINS - 1, int((sure - 0.5) * 2 * CONFIDENCE_BINS))
        bins.setdefault(place, []).append((sure, _right(margin)))
    points = [tuple(map(fmean, zip(*bins[place], strict=True))) for place in sorted(bins)]
    off = sum(len(bins[place]) * abs(x - y) for place, (x, y) in zip(sorted(bins), points, strict=True)) / len(margins)
    measured = Series("it is right", [(x, y) for x, y in points], "path" if len(points) > 1 else "dots")
    chart = line_chart(
        "Calibration",
        [Series("were it calibrated", [(0.5, 0.5), (1.0, 1.0)]), measured],
        Axis("how sure it is", ends=(0.5, 1.0)),
        Axis("share that is right", ends=(0.5, 1.0)),
    )
    told = f"on average {off:.2f} off the line; below it, it is surer than it may be ({len(margins)} pairs, 10 bins)"
    return Picture("Calibration", chart, told, legend=["were it calibrated", "it is right"])


def _by_length(margins: Sequence[float], longer: Sequence[float]) -> Picture:
    """Accuracy by how much longer the chosen answer is."""
    order = sorted(zip(longer, margins, strict=True))
    size = max(1, -(-len(order) // LENGTH_BINS))
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    bars = [
        (f"{number(part[0][0])} to {number(part[-1][0])}", fmean(_right(margin) for _, margin in part))
        for part in parts
    ]
    axes = Axis("tokens by which the chosen answer is longer"), Axis("accuracy", ends=(0.0, 1.0))
    told = "low on the left and high on the right: it goes by length"
    return Picture("Accuracy by difference of length", bar_chart("Accuracy", bars, *axes), told)


def _lengths(rows: Mapping[str, Sequence[float]]) -> Iterator[Picture]:
    """Reward against length, for each policy whose answers were measured."""
    policies = [name.removeprefix("reward") for name in rows if name.startswith("reward")]
    names = [(policy.strip() or "after", policy) for policy in policies if f"length{policy}" in rows]
    order = sorted(names, key=lambda name: name[1] != " before")
    clouds = [
        Series(name, thinned(list(zip(rows[f"length{policy}"], rows[f"reward{policy}"], strict=True)), 250), "dots")
        for name, policy in order
    ]
    if clouds:
        axes = Axis("length of the answer, tokens", ends=(0.0, 0.0)), Axis("reward")
        told = "a point is a held-out answer; a slope means that length pays"
        chart = line_chart("Reward against length", clouds, *axes)
        yield Picture("Reward against length", chart, told, legend=[cloud.name for cloud in clouds])
