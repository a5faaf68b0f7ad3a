"""Judges: what compares or rates answers.

A rule is one function under `@judge`, asked by `{ judge = "rule:NAME" }`; any reward function is a rule, too. Whatever
must be opened first, a model or an endpoint, is a scheme under `@judge_scheme`, asked by `{ judge = "SCHEME:REST" }`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from alignkit.contract.kinds import Judge
from alignkit.contract.names import check_offer, settings_taken, summary_of
from alignkit.contract.one_each import one_number_each
from alignkit.contract.reward_function import Answer, Score
from alignkit.contract.settings import Settings
from alignkit.errors import PluginError

RULE = "rule"
"""The scheme of addresses whose rest is the name of a function."""


class Question(NamedTuple):
    """Which of two answers to one prompt is better?"""

    first: Answer
    second: Answer
    principle: str = ""
    """By what they are compared; empty: as the judge likes."""


class Verdict(NamedTuple):
    """What a judge says of a question."""

    first: float | None
    """How likely it is that the first answer is the better one, from 0 to 1; None where there is no valid reply."""
    mass: float = 1.0
    """How much of its probability the judge gave to valid replies."""


Chat: TypeAlias = Sequence[Mapping[str, str]]
"""Messages, each with a `role` and a `content`."""


@dataclass(frozen=True)
class JudgeClient:
    """A judge that is ready to be asked. What it cannot do is None."""

    compare: Callable[[Sequence[Question]], list[Verdict]]
    """One verdict for each question, in their order."""
    rate: Callable[[Sequence[Answer], str], list[float | None]] | None = None
    """How good each answer is by a principle; None where there is no valid reply."""
    write: Callable[[Sequence[Chat]], list[str]] | None = None
    """A reply in words to each chat."""
    results: Callable[[], Mapping[str, float]] = dict
    """What it has cost so far, such as `requests`."""


@dataclass(frozen=True)
class JudgeFunction:
    """A rule that a plugin offers. Callable as the function that it wraps."""

    name: str
    summary: str
    settings: type[Settings]
    compare: Callable[[Sequence[Question], Any], list[float]]
    version: str = ""

    def __call__(self, questions: Sequence[Question], settings: Settings) -> list[float]:
        return self.compare(questions, settings)


@dataclass(frozen=True)
class JudgeScheme:
    """A way to judges that a plugin offers: the word before the colon of their address."""

    name: str
    summary: str
    settings: type[Settings]
    """What a source may say besides its address."""
    open: Callable[[Judge, Any, Path | None], JudgeClient]
    policy: bool = False
    """Behind the colon stands the address of a policy; the judge's path is then where it lies."""
    free: tuple[str, ...] = ()
    """Settings that change no verdict, and so are no part of a stage's fingerprint."""


def judge(
    name: str, *, version: str = ""
) -> Callable[[Callable[[Sequence[Question], Any], list[float]]], JudgeFunction]:
    """Make a rule of `f(questions, settings) -> list[float]`: how likely each first answer is the better one.

    Half is a tie, NaN no opinion. Its `version`, where given, is part of a stage's fingerprint.
    """

    def wrap(function: Callable[[Sequence[Question], Any], list[float]]) -> JudgeFunction:
        check_offer("judge", name, function)
        kind = settings_taken(function, 2)
        if kind is None:
            raise PluginError(
                f"judge {name!r} is not of the form f(questions, settings: SomeSettings) -> list[float]",
                function.__module__,
                "give it two parameters, the second annotated with a Settings class",
            )
        return JudgeFunction(name, summary_of(function), kind, function, version)

    return wrap


def judge_scheme(
    name: str, *, policy: bool = False, free: Sequence[str] = ()
) -> Callable[[Callable[[Judge, Any, Path | None], JudgeClient]], JudgeScheme]:
    """Make a scheme of `f(judge, settings, cache) -> JudgeClient`.

    It is called where a stage begins, before anything costly. `cache` is a folder that outlives the stage, for replies
    that were paid for; None where there is none.
    """

    def wrap(function: Callable[[Judge, Any, Path | None], JudgeClient]) -> JudgeScheme:
        check_offer("judge scheme", name, function)
        kind = settings_taken(function, 3)
        if kind is None or name == RULE:
            raise PluginError(
                f"judge scheme {name!r} is not of the form f(judge, settings: SomeSettings, cache) -> JudgeClient",
                function.__module__,
                f"give it three parameters, the second annotated with a Settings class, and no name {RULE!r}",
            )
        return JudgeScheme(name, summary_of(function), kind, function, policy, tuple(free))

    return wrap


def by_comparing(compare: Callable[[Sequence[Question]], list[float]], name: str) -> JudgeClient:
    """Make a judge of a rule. Raises PluginError, when asked, where a number is no probability."""

    def verdicts(questions: Sequence[Question]) -> list[Verdict]:
        given = one_number_each(compare(questions), len(questions), "the rule", f"judge {name!r}")
        odd = next((value for value in given if isfinite(value) and not 0 <= value <= 1), None)
        if odd is not None:
            problem = f"the rule says {odd:g}, which is no probability"
            raise PluginError(problem, f"judge {name!r}", "it must return numbers from 0 to 1")
        return [Verdict(value if isfinite(value) else None) for value in given]

    return JudgeClient(verdicts)


def by_rating(score: Score, name: str) -> JudgeClient:
    """Make a judge of a reward function: the answer with the higher score is the better one."""

    def rate(answers: Sequence[Answer], principle: str) -> list[float | None]:
        given = one_number_each(score(answers), len(answers), "the rule", f"judge {name!r}")
        return [value if isfinite(value) else None for value in given]

    def compare(questions: Sequence[Question]) -> list[Verdict]:
        rated = rate([answer for question in questions for answer in question[:2]], "")
        return [
            Verdict(None) if one is None or other is None else Verdict((1 + (one > other) - (one < other)) / 2)
            for one, other in zip(rated[::2], rated[1::2], strict=True)
        ]

    return JudgeClient(compare, rate)
