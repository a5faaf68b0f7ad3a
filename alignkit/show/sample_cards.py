"""Samples as cards: the prompt once, below it each text with its numbers, and by how much they differ from the first.

A number belongs to the text whose name its own name has in it, as `reward after` does to `after`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignkit.contract.events import Sample
from alignkit.text import number

MOST_TEXT = 1_500
"""Characters of one text."""

KINDS = (("best", "best"), ("worst", "worst"), ("", "others"))
"""The tabs, in their order, and what they are called."""

ASKED = ("prompt", "question", "instruction")
"""Names of what was asked: the first text of a card."""


@dataclass(frozen=True)
class Said:
    """One text of a card."""

    name: str
    text: str
    numbers: Sequence[tuple[str, str]]
    """Its numbers, each with its name."""
    change: str
    """By how much its first number exceeds that of the first text; empty where there is nothing to compare."""
    better: bool


@dataclass(frozen=True)
class Card:
    """One sample."""

    prompt: str
    said: Sequence[Said]
    numbers: Sequence[tuple[str, str]]
    """Numbers that belong to none of its texts."""


def cards_of(samples: Sequence[Sample], most: int) -> list[tuple[str, list[Card]]]:
    """Return so many cards of each kind at most, with what the kind is called; kinds without a sample are left out."""
    by_kind = [(called, [one for one in samples if one.kind == kind][:most]) for kind, called in KINDS]
    return [(called, [_card(one.row) for one in several]) for called, several in by_kind if several]


def _card(row: Mapping[str, str | float]) -> Card:
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    numbers = {name: float(value) for name, value in row.items() if not isinstance(value, str)}
    asked = next((name for name in ASKED if name in texts), None)
    answers = [name for name in texts if name != asked]
    owners = {name: _owner(name, answers) for name in numbers}
    of = {answer: {name: value for name, value in numbers.items() if owners[name] == answer} for answer in answers}
    first = next((value for answer in answers[:1] for value in of[answer].values()), None)
    return Card(
        prompt=shown(texts[asked]) if asked else "",
        said=[_said(name, texts[name], of[name], None if name == answers[0] else first) for name in answers],
        numbers=[(name, number(value)) for name, value in numbers.items() if owners[name] is None],
    )


def _owner(name: str, answers: Sequence[str]) -> str | None:
    """Return the text that a number is of: the one with the longest name that is in the number's."""
    return max((answer for answer in answers if answer in name), key=len, default=None)


def _said(name: str, text: str, numbers: Mapping[str, float], first: float | None) -> Said:
    value = next(iter(numbers.values()), None)
    change = None if first is None or value is None else value - first
    told = [(key.replace(name, "").strip(" _/") or key, number(item)) for key, item in numbers.items()]
    sign = "" if not change else f"{'+' if change > 0 else ''}{number(change)}"
    return Said(name, shown(text), told, sign, bool(change and change > 0))


def shown(text: str) -> str:
    """Leave out white space around a text, cut a long one, and say so."""
    text = text.strip()
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} [... {len(text) - MOST_TEXT} characters more]"
