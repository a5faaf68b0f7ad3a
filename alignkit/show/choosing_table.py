"""Which method, in words: a table for the terminal, and one for the docs."""

from collections.abc import Iterable, Sequence
from typing import Any

from alignkit.contract.kinds import Artifact
from alignkit.plan.choosing import Choice
from alignkit.show.literature import linked
from alignkit.text import table

HEAD = ("method", "learns from", "holds", "time", "take it when", "what goes wrong")

MOST = 3
"""Papers that stand in the table of a page."""


def list_choices(found: Iterable[Choice], width: int | None) -> list[str]:
    """Return the lines of `alignkit methods --for`."""
    return table([_row(one) for one in found], width, HEAD)


def for_kind(found: Iterable[Choice], kind: type[Artifact]) -> list[Choice]:
    """Return the methods that learn from rows of a kind."""
    return [one for one in found if kind in one.rows]


def choice_as_dict(choice: Choice) -> dict[str, Any]:
    """Return a choice as plain JSON values."""
    names = ("learns_from", "holds", "time", "when", "risk")
    return {**dict(zip(("method", *names), _row(choice), strict=True)), "papers": list(choice.papers)}


def choices_in_markdown(found: Iterable[Choice]) -> str:
    """Return the table of all methods for a page."""
    lines = [f"| {' | '.join((*HEAD, 'papers'))} |", "|---" * (len(HEAD) + 1) + "|"]
    for one in found:
        name, *rest = _row(one)
        sources = list(dict.fromkeys(one.papers))
        more = [f"[{len(sources) - MOST} more](papers.md)"] if len(sources) > MOST else []
        papers = ", ".join([*(linked(one, one.removeprefix("arXiv ")) for one in sources[:MOST]), *more])
        lines.append(f"| {' | '.join((f'`{name}`', *rest, papers))} |")
    return "\n".join(lines)


def _row(choice: Choice) -> Sequence[str]:
    advice = choice.method.advice
    said = (advice.when, advice.risk) if advice else ("", "")
    return choice.method.name, choice.takes, choice.holds, choice.time, *said
