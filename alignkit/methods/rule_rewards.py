"""Rewards that are rules: length, patterns, sections, JSON, and answers that can be checked.

Each is `reward = "function:NAME"` in a source of a recipe, with its settings under `settings`; several are weighted and
added up. A column that holds the right answer is one that the source of the prompts keeps: `keep = ["answer"]`.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from functools import cache, partial
from hashlib import sha256
from importlib.util import find_spec
from random import Random
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.reward_function import Answer, RewardFunction, reward
from alignkit.contract.settings import Settings
from alignkit.errors import DataError

Unit = Literal["tokens", "words", "characters"]


def size(answer: Answer, unit: Unit) -> int:
    """Return how long an answer is. Raise DataError for tokens where nobody has counted them."""
    if unit == "tokens":
        if answer.tokens is None:
            raise DataError("the tokens of these answers are not known", remedy='count "words" or "characters"')
        return answer.tokens
    return len(answer.text.split()) if unit == "words" else len(answer.text)


class LengthSettings(Settings):
    """Settings of the reward `length`."""

    target: PositiveInt
    """The length that costs nothing."""
    unit: Unit = "words"
    """What is counted."""
    penalised: Literal["longer", "shorter", "both"] = "both"
    """Which answers pay."""


@reward("length", version="1")
def length(answers: Sequence[Answer], settings: LengthSettings) -> list[float]:
    """Penalise answers by their distance from a length: 0 at the target, -1 at none of it or twice as much."""
    return [distance(size(answer, settings.unit), settings) for answer in answers]


def distance(found: int, settings: LengthSettings) -> float:
    """Return the penalty of a length, from -1 to 0."""
    share = (found - settings.target) / settings.target
    pays = {"longer": share > 0, "shorter": share < 0, "both": share != 0}[settings.penalised]
    return -min(1.0, abs(share)) if pays else 0.0


class OverlongSettings(Settings):
    """Settings of the reward `overlong`."""

    longest: PositiveInt
    """The length from which on an answer pays 1; usually `generation.max_new_tokens`."""
    cache: PositiveInt
    """How much below that the penalty begins."""
    unit: Unit = "tokens"
    """What is counted."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.cache > self.longest:
            raise ValueError("cache must be at most longest")
        return self


@reward("overlong", version="1")
def overlong(answers: Sequence[Answer], settings: OverlongSettings) -> list[float]:
    """Penalise answers near their length limit, from 0 down to -1 (DAPO, arXiv 2503.14476, equation 13)."""
    start = settings.longest - settings.cache
    over = ((size(answer, settings.unit) - start) / settings.cache for answer in answers)
    return [-min(1.0, max(0.0, share)) for share in over]


class RegexSettings(Settings):
    """Settings of the reward `regex`."""

    pattern: str = Field(min_length=1, max_length=1000)
    """What is looked for, as Python writes regular expressions."""
    whole: bool = False
    """The whole answer must match, not a part of it."""
    match: float = 1.0
    """The score of an answer that matches."""
    otherwise: float = 0.0
    """The score of all others."""

    @field_validator("pattern")
    @classmethod
    def _can_be_used(cls, pattern: str) -> str:
        if why := why_no_pattern(pattern):
            raise ValueError(why)
        return pattern


SECONDS = 2.0
"""What a pattern may take for one answer; usual ones take microseconds."""
MOST_REPEATS, DEEPEST = 10_000, 10
"""Counted repeats, multiplied, and groups in groups: more need more memory than there is."""


def why_no_pattern(pattern: str) -> str:
    """Return why a pattern cannot be used: it is none, or it takes too long; nothing where it can."""
    import regex

    depths = [pattern[:end].count("(") - pattern[:end].count(")") for end in range(len(pattern) + 1)]
    repeats = math.prod(int(count[:9]) or 1 for count in re.findall(r"(\d+)\}", pattern))
    if max(depths) > DEEPEST or repeats > MOST_REPEATS:
        return f"must have at most {DEEPEST} groups in one another, and repeat nothing more than {MOST_REPEATS} times"
    try:
        regex.compile(pattern)
        for letter in sorted({*re.findall(r"\w", pattern), "a", " ", "\n"}):
            regex.search(pattern, f"{letter * 2000}\0", timeout=SECONDS / 10)
    except TimeoutError:
        return "must not take long on any answer: write it without repeats of repeats, such as (a+)+"
    except (regex.error, RecursionError, OverflowError) as error:
        return f"must be a regular expression ({error})"
    return ""


@reward("regex", version="1")
def pattern(answers: Sequence[Answer], settings: RegexSettings) -> list[float]:
    """Score answers by whether a regular expression matches."""
    import regex

    find = partial(regex.fullmatch if settings.whole else regex.search, settings.pattern, timeout=SECONDS)
    try:
        return [settings.match if find(answer.text) else settings.otherwise for answer in answers]
    except TimeoutError as error:
        problem = f"the pattern {settings.pattern!r} takes more than {SECONDS:g} s for one answer"
        raise DataError(problem, remedy="write it without repeats of repeats, such as (a+)+") from error


class FormatSettings(Settings):
    """Settings of the reward `format`."""

    sections: tuple[str, ...] = Field(default=("think", "answer"), min_length=1)
    """The sections in their order, each written `<think>...</think>`."""


@reward("format", version="1")
def form(answers: Sequence[Answer], settings: FormatSettings) -> list[float]:
    """Give 1 to answers that are the sections wanted, each once, in their order, and nothing else; 0 to others."""
    return [float(has_sections(answer.text, settings.sections)) for answer in answers]


def has_sections(text: str, sections: Iterable[str]) -> bool:
    """Return whether a text is sections of these names and nothing else; a tag stands nowhere else in it."""
    rest = text
    for name in sections:
        before, opened, rest = rest.partition(f"<{name}>")
        _, closed, rest = rest.partition(f"</{name}>")
        if before.strip() or not (opened and closed):
            return False
        if text.count(f"<{name}>") != 1 or text.count(f"</{name}>") != 1:
            return False
    return not rest.strip()


class JSONSettings(Settings):
    """Settings of the reward `json`."""

    keys: tuple[str, ...] = ()
    """Keys that the answer must have, which is then an object."""
    fenced: bool = True
    """A block between ``` is read, too, where it is all of the answer."""


FENCE = re.compile(r"```(?:json)?[ ]*\n(.*)\n```", re.DOTALL)


@reward("json", version="1")
def parsed(answers: Sequence[Answer], settings: JSONSettings) -> list[float]:
    """Give 1 to answers that are JSON, with the keys that are wanted; 0 to others."""
    return [float(is_json(answer.text, settings)) for answer in answers]


def is_json(text: str, settings: JSONSettings) -> bool:
    """Return whether a text is JSON, as its standard has it: NaN and Infinity are none."""
    fenced = FENCE.fullmatch(text.strip()) if settings.fenced else None
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return False
    return not settings.keys or (isinstance(value, dict) and all(key in value for key in settings.keys))


def _refused(constant: str) -> None:
    raise ValueError(constant)


class ExactMatchSettings(Settings):
    """Settings of the reward `exact-match`."""

    column: str
    """The column with the right answer; the source of the prompts must `keep` it."""
    after: str = ""
    """Only what follows the last of this text counts, in the answer as in the column, such as `####`."""
    ignore_case: bool = True
    """Capitals and small letters are the same."""


@reward("exact-match", version="1")
def exact_match(answers: Sequence[Answer], settings: ExactMatchSettings) -> list[float]:
    """Give 1 to answers that say what their prompt's row says, but for white space; 0 to others."""
    return [
        float(_plain(answer.text, settings) == _plain(right_answer(answer, settings.column), settings))
        for answer in answers
    ]


def _plain(text: str, settings: ExactMatchSettings) -> str:
    said = text.rpartition(settings.after)[2] if settings.after else text
    return " ".join((said.casefold() if settings.ignore_case else said).split())


def right_answer(answer: Answer, column: str) -> str:
    """Return what a prompt's row says is right. Raise DataError where it says nothing, or no text and no number."""
    value: Any = answer.row.get(column)
    if column not in answer.row:
        remedy = f'write keep = ["{column}"] in their source'
        raise DataError(f"the prompts have no column {column!r}", remedy=remedy)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        problem = f"the column {column!r} holds {'nothing' if value is None else f'a {type(value).__name__}'}"
        raise DataError(problem, getattr(answer.row, "place", ""), "write the right answer as text or as a number")
    return str(value)


class MathAnswerSettings(Settings):
    r"""Settings of the reward `math-answer`."""

    column: str
    """The column with the right answer, plain or as LaTeX; the source of the prompts must `keep` it."""

    @model_validator(mode="after")
    def _can_be_checked(self) -> Self:
        if find_spec("math_verify") is None:
            raise ValueError("math-answer needs the package math-verify: pip install 'alignkit[math]'")
        return self


LONGEST = 20_000
"""Characters at the end of an answer that are searched for a result."""


@reward("math-answer", version="1")
def math_answer(answers: Sequence[Answer], settings: MathAnswerSettings) -> list[float]:
    """Give 1 to answers whose result is equal to what their prompt's row says, by math-verify; 0 to others."""
    from math_verify import parse, verify

    right = cache(partial(_as_math, parse))
    return [
        float(verify(right(right_answer(answer, settings.column)), parse(answer.text[-LONGEST:]))) for answer in answers
    ]


def _as_math(parse: Any, text: str) -> Any:
    """Read a right answer: as it is, else as LaTeX. Raise DataError where it is neither."""
    found = parse(text) or parse(f"${text}$")
    if not found:
        raise DataError(f"{text[:60]!r} cannot be read as mathematics", remedy="correct the row or leave it out")
    return found


class RandomSettings(Settings):
    """Settings of the reward `random`."""

    share: float = Field(default=0.5, gt=0, lt=1)
    """How often an answer gets 1."""


@reward("random", version="1")
def by_chance(answers: Sequence[Answer], settings: RandomSettings) -> list[float]:
    """Give 1 or 0 by chance, whatever the answer is: what is learnt from it was learnt from nothing (arXiv 2506.10947).

    Chance is a hash of all answers together, so that the same run draws the same, and equal answers draw anew.
    """
    said = json.dumps([[answer.prompt, answer.text] for answer in answers])
    luck = Random(sha256(said.encode()).digest())  # noqa: S311  # guards no secret
    return [float(luck.random() < settings.share) for _ in answers]


@hookimpl
def alignkit_rewards() -> list[RewardFunction]:
    """Offer the rewards that are rules."""
    return [length, overlong, pattern, form, parsed, exact_match, math_answer, by_chance]
