"""An audit in words."""

from collections.abc import Iterator

from alignkit.check.audit import LENGTHS, Audit
from alignkit.plan.tables import table

BAR = 30
"""Characters of the longest bar of a histogram."""


def show_audit(found: Audit, width: int | None) -> list[str]:
    """Give the lines that tell what is in a source."""
    form = f"{found.format or 'its own columns'}, {'chats' if found.chats else 'text'}"
    return [
        f"{found.source}: {found.kind}, read as {form}",
        *table([(f"  {name}", value) for name, value in _facts(found)], width),
        *(f"  {line}" for line in _histogram(found)),
        *table([("  !", f"{one.problem}; {one.remedy}") for one in found.remarks()], width),
    ]


def _facts(found: Audit) -> Iterator[tuple[str, str]]:
    yield "rows", f"{found.rows} to learn from, {found.held_out} held out"
    if found.bad:
        yield "left out", f"{found.bad} bad rows, in {found.quarantine}"
    yield "prompts" if found.kind != "Text" else "texts", f"{found.prompts} differ"
    yield "twice", f"{found.duplicates} rows, {found.near} more but for case and white space"
    if found.longer_wins is not None:
        yield "contradictions", f"{found.contradictions} pairs are turned round by another one"
        yield "longer wins", f"{found.longer_wins:.3f} (the floor of any accuracy on these pairs)"
    if found.labels:
        yield "labels", ", ".join(f"{label} {times}" for label, times in sorted(found.labels.items()))
    yield "overlap", f"{found.overlap} held-out rows have a prompt that is learnt from"


def _histogram(found: Audit) -> Iterator[str]:
    most = max(found.lengths)
    names = [f"up to {bound}" for bound in LENGTHS] + [f"to {found.longest}"]
    for name, rows in zip(names, found.lengths, strict=True):
        if rows:
            yield f"{name:>12} characters  {rows:8}  {'█' * max(1, round(BAR * rows / most))}"
