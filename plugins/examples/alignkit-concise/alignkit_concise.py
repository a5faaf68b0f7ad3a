"""A judge by a rule: of two answers the shorter one that is finished is better, the more clearly the more it is."""

from collections.abc import Sequence
from math import exp

from alignkit import Answer, JudgeFunction, Question, Settings, hookimpl, judge


class ConciseSettings(Settings):
    """Settings of the judge `concise`."""

    sharpness: float = 4.0
    """How certain it is: an answer of half the length is better with a chance of 0.94."""


@judge("concise", version="1")
def concise(questions: Sequence[Question], settings: ConciseSettings) -> list[float]:
    """Prefer the shorter answer, and a finished one to one that was cut."""
    return [chance(question.first, question.second, settings.sharpness) for question in questions]


def chance(first: Answer, second: Answer, sharpness: float) -> float:
    if first.finished != second.finished:
        return float(first.finished)
    one, other = len(first.text.split()), len(second.text.split())
    return 1 / (1 + exp(2 * sharpness * (one - other) / max(one + other, 1)))


@hookimpl
def alignkit_judges() -> list[JudgeFunction]:
    return [concise]
