"""A verifiable reward: 1 where the last number of an answer is the one that the prompt's row says, else 0."""

import re
from collections.abc import Sequence

from alignkit import Answer, DataError, RewardFunction, Settings, hookimpl, reward

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class ArithmeticSettings(Settings):
    """Settings of the reward `arithmetic`."""

    column: str = "result"
    """The column with the right number; the source of the prompts must `keep` it."""
    unfinished: float = 0.0
    """The score of an answer that was cut."""


@reward("arithmetic", version="1")
def arithmetic(answers: Sequence[Answer], settings: ArithmeticSettings) -> list[float]:
    """Give 1 for the right number at the end of an answer."""
    return [score(answer, settings) for answer in answers]


def score(answer: Answer, settings: ArithmeticSettings) -> float:
    if settings.column not in answer.row:
        raise DataError(f"prompts have no column {settings.column!r}", remedy=f'keep = ["{settings.column}"]')
    found = NUMBER.findall(answer.text)
    right = str(answer.row[settings.column])
    if not answer.finished:
        return settings.unfinished
    return float(bool(found) and float(found[-1].replace(",", "")) == float(right.replace(",", "")))


@hookimpl
def alignkit_rewards() -> list[RewardFunction]:
    return [arithmetic]
