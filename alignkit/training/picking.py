"""Which rows are shown to people: those that came out best, those that came out worst, and others."""

from collections.abc import Sequence

from alignkit.contract.events import SampleKind


def picked_samples(values: Sequence[float], count: int) -> list[tuple[int, SampleKind]]:
    """Return which rows are shown, each once: so many of the best by their values, of the worst, and of the others,
    which are evenly spaced; of few rows all, in their order."""
    rows = range(len(values))
    if len(values) <= count:
        return [(row, "") for row in rows]
    order = sorted(rows, key=lambda row: values[row])
    best = order[::-1][: min(count, len(order) // 2)]
    worst = order[: min(count, len(order) - len(best))]
    others = [row for row in rows if row not in {*best, *worst}]
    step = max(1, len(others) // max(1, count))
    return [
        *((row, "best") for row in best),
        *((row, "worst") for row in worst),
        *((row, "") for row in others[::step][:count]),
    ]
