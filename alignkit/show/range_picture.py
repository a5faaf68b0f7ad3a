"""One figure beside where it was expected, small enough for a cell of a table."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT, EDGE = 128, 16, 6


def drawn_range(facts: Mapping[str, Any]) -> Markup:
    """Draw a figure and its interval over the range in which it was expected, of what a run keeps of it."""
    least, most, value = facts["at_least"], facts["at_most"], facts["measured"]
    told = [one for one in (least, most, value, *(facts["interval"] or ())) if one is not None]
    low, high = min(told), max(told)
    space = (high - low) * 0.15 or abs(high) * 0.15 or 1.0
    low, high = low - space, high + space

    def place(given: float) -> float:
        return float(round(EDGE + (given - low) / (high - low) * (WIDTH - 2 * EDGE), 1))

    middle = HEIGHT / 2
    left = EDGE if least is None else place(least)
    right = WIDTH - EDGE if most is None else place(most)
    parts = [
        f'<line class="scale" x1="{EDGE}" y1="{middle}" x2="{WIDTH - EDGE}" y2="{middle}"/>',
        f'<rect class="wanted" x="{left}" y="2" width="{round(max(1.0, right - left), 1)}" height="{HEIGHT - 4}"/>',
    ]
    if facts["interval"]:
        ends = [place(end) for end in facts["interval"]]
        parts.append(f'<line class="spread" x1="{ends[0]}" y1="{middle}" x2="{ends[1]}" y2="{middle}"/>')
    if value is not None:
        parts.append(f'<circle cx="{place(value)}" cy="{middle}" r="4"/>')
    title = f"{facts['named']}: expected {facts['bounds']}"
    head = Markup('<svg class="range" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
    return head + Markup("".join(parts)) + Markup("</svg>")  # noqa: S704  # numbers alone
