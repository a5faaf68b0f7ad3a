"""A recipe with one letter wrong is refused, and the message says what was meant."""

import random
import re
from pathlib import Path

import pytest

from alignkit.errors import AlignkitError
from alignkit.plan.planner import make_plan

RECIPE = (Path(__file__).parents[2] / "recipes" / "rlhf.toml").read_text("utf-8")
MUTATIONS = 100
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def places() -> list[tuple[int, int]]:
    """Give where words of ours stand: keys and names of methods, no comments and no names that the recipe gives."""
    found = []
    for line in re.finditer(r"^[^#\n]+", RECIPE, re.MULTILINE):
        text = line.group()
        keys = text.partition("=")[0] if "=" in text and not text.startswith("[") else ""
        spans = [match.span() for match in re.finditer(r"[a-z_]{4,}", keys)]
        value = re.match(r'\s*method\s*=\s*"([a-z]{3,})"', text)
        spans += [value.span(1)] if value else []
        inner = re.match(r"\w+\s*=\s*\{\s*([a-z]+)", text)
        spans = [inner.span(1)] if inner else spans
        found += [(line.start() + start, line.start() + end) for start, end in spans]
    return found


def slip(word: str, chance: random.Random) -> str:
    """Make one slip of the keyboard: a letter left out, doubled, swapped or another one."""
    place = chance.randrange(1, len(word) - 1)
    kind = chance.choice(["out", "double", "swap", "other"])
    if kind == "out":
        return word[:place] + word[place + 1 :]
    if kind == "double":
        return word[:place] + word[place] + word[place:]
    if kind == "swap":
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return word[:place] + chance.choice(LETTERS) + word[place + 1 :]


def mutations() -> list[tuple[str, str, str]]:
    """Give recipes with one slip each: what was meant, what stands there, and the text."""
    chance, spots, made = random.Random(17), places(), []
    while len(made) < MUTATIONS:
        start, end = chance.choice(spots)
        meant = RECIPE[start:end]
        word = slip(meant, chance)
        if word != meant:
            made.append((meant, word, RECIPE[:start] + word + RECIPE[end:]))
    return made


def test_one_slip_is_refused_with_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNKIT_PLUGINS", raising=False)
    taken, unsaid = [], []
    for number, (meant, word, text) in enumerate(mutations()):
        path = tmp_path / f"{number}.toml"
        path.write_text(text, "utf-8")
        try:
            make_plan(path, runs=tmp_path / "runs")
            taken.append((meant, word))
        except AlignkitError as error:
            if f"did you mean {meant!r}" not in str(error):
                unsaid.append((meant, word, str(error)))

    assert taken == []
    assert len(unsaid) <= MUTATIONS // 20, unsaid
