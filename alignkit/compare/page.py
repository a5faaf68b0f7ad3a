"""A comparison as the head of a report: what may be concluded, the table, and reward against KL as a drawing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from alignkit.compare.measured import Comparison, Line
from alignkit.compare.tables import cells_of, decided_by, remarks_on, verdict
from alignkit.text import number

WIDTH, HEIGHT = 600, 260
"""Of the drawing, in its own units."""


@dataclass(frozen=True)
class Mark:
    """A policy in the drawing."""

    name: str
    x: float
    y: float
    frontier: bool
    left: bool
    """Its name stands on its left, since there is no room on the right."""


def page_of(found: Comparison) -> Markup:
    """Write the part of a report's page that a comparison adds."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"number": number}
    head, start, *rows = cells_of(found)
    verdicts = ["", *(verdict(found, line) for line in found.variants)]
    lines = [line for line in (found.start, *found.variants) if line.kl is not None]
    marks = place(lines)
    return Markup(  # noqa: S704  # what the template escaped
        pages.get_template("page.html").render(
            found=found,
            head=(*head, "verdict"),
            rows=[(*row, told) for row, told in zip([start, *rows], verdicts, strict=True)],
            remarks=remarks_on(found),
            measure=decided_by(found),
            lines=lines,
            marks=marks,
            frontier=" ".join(f"{m.x:.1f},{m.y:.1f}" for m in sorted(marks, key=lambda m: m.x) if m.frontier),
            kls=[number(end) for end in ends([line.kl or 0.0 for line in lines])],
            rewards=[number(end) for end in ends([line.reward for line in lines])],
            width=WIDTH,
            height=HEIGHT,
        )
    )


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest."""
    return min(values), max(values)


def place(lines: Sequence[Line]) -> list[Mark]:
    """Place each policy by its KL and its reward."""
    (low_kl, high_kl), (low, high) = ends([line.kl or 0.0 for line in lines]), ends([line.reward for line in lines])
    marks = []
    for line in lines:
        x = ((line.kl or 0.0) - low_kl) / (high_kl - low_kl or 1) * WIDTH
        y = (high - line.reward) / (high - low or 1) * HEIGHT
        marks.append(Mark(line.name, x, y, line.frontier, x > WIDTH * 0.6))
    return marks
