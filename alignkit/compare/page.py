"""A comparison as the head of a report: what may be concluded, the frontier, the table, and curves side by side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import nan

from markupsafe import Markup

from alignkit.compare.measured import Comparison
from alignkit.compare.tables import best_of_cells, cells_of, decided_by, mistaken, remarks_on, verdict
from alignkit.contract.events import Metrics
from alignkit.show.charts import Axis, Point, Series, line_chart, thinned
from alignkit.show.frontier import PolicyPoint, frontier_picture
from alignkit.show.pictures import FIRST, Picture, ordered, series_of
from alignkit.show.report import pages

NOTHING: Mapping[str, Sequence[Metrics]] = {}

POINTS = 120
"""Of a curve of one seed of one variant, at most."""


def page_of(found: Comparison, metrics: Mapping[str, Sequence[Metrics]] = NOTHING) -> Markup:
    """Write the part of a report's page that a comparison adds; `metrics` are those of its stages, by name."""
    head, start, *rows = cells_of(found)
    verdicts = ["", *(verdict(found, line) for line in found.variants)]
    lines = [line for line in (found.start, *found.variants) if line.kl is not None]
    page = pages("compare").get_template("page.html")
    return Markup(  # noqa: S704  # what the template escaped
        page.render(
            found=found,
            head=(*head, "verdict"),
            rows=[(*row, told) for row, told in zip([start, *rows], verdicts, strict=True)],
            remarks=[told for told in remarks_on(found) if told not in mistaken(found)],
            mistaken=mistaken(found),
            measure=decided_by(found),
            frontier=frontier_of(found) if len(lines) > 1 else None,
            best_of=best_of_cells(found.ceiling) if found.ceiling else (),
            on_frontier=[line.name for line in lines if line.frontier],
            curves=curves_of_variants(found, metrics),
            first=FIRST,
        )
    )


def frontier_of(found: Comparison) -> Picture:
    """Draw the start and each variant whose KL is known, under what is attainable where that was measured."""
    lines = [line for line in (found.start, *found.variants) if line.kl is not None]
    points = [
        PolicyPoint(line.name, line.kl or 0.0, line.reward, line.interval, tuple((p.kl, p.reward) for p in line.way))
        for line in lines
    ]
    return frontier_picture(points, decided_by(found), found.ceiling)


def curves_of_variants(found: Comparison, metrics: Mapping[str, Sequence[Metrics]]) -> list[Picture]:
    """Draw each metric that several stages have told, a colour for each variant, a line for each seed."""
    told = {line.name: [series_of(metrics.get(name, ())) for name in line.stages] for line in found.variants}
    times = Counter(name for several in told.values() for series in several for name in series)
    common = [name for name, count in times.items() if count > 1]
    return [_curve(title, label, name, told) for name, title, label in ordered(common)]


def _curve(title: str, label: str, name: str, told: Mapping[str, Sequence[Mapping[str, Sequence[Point]]]]) -> Picture:
    series = [Series(variant, _seeds([one.get(name, []) for one in several])) for variant, several in told.items()]
    chart = line_chart(title, series, Axis("step", whole=True), Axis(""))
    return Picture(label, chart, beside=title if title != label else "", legend=list(told))


def _seeds(several: Sequence[Sequence[Point]]) -> list[Point]:
    """Put the lines of all seeds after each other, with a gap between two."""
    return [point for points in several for point in [*thinned(points, POINTS), (nan, nan)]]
