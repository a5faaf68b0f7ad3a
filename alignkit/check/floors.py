"""How far words alone go: a classifier of words and pairs of words, on a sample.

An accuracy means something only above what needs no understanding. The classifier is logistic regression on which
words and pairs of neighbouring words the two answers do not share (Bradley-Terry), or on those of one answer with a
label, learnt by stochastic gradient steps of shrinking length.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from random import Random

TRAIN, MEASURED = 2000, 500
"""Rows of the sample that are learnt from, and measured on."""
EPOCHS = 6
RATE = 0.5

Features = dict[str, float]


def features(text: str) -> set[str]:
    """Give the words of a text and their pairs."""
    words = re.findall(r"\w+", text.casefold())
    return {*words, *(f"{one} {other}" for one, other in pairwise(words))}


def difference(one: str, other: str) -> Features:
    """Give what tells two answers apart, as a vector of length 1."""
    first, second = features(one), features(other)
    signed = dict.fromkeys(first - second, 1.0) | dict.fromkeys(second - first, -1.0)
    size = math.sqrt(len(signed)) or 1.0
    return {word: value / size for word, value in signed.items()}


def words_win(train: Sequence[Features], measured: Sequence[Features]) -> float | None:
    """Give the share of the measured pairs that words tell rightly, ties half; None where there is too little.

    Each vector points from the worse answer to the better one.
    """
    if len(train) < 20 or len(measured) < 20:
        return None
    weights: Features = {}
    random = Random(0)  # noqa: S311  # shuffles rows, guards no secret
    rows = list(train)
    for epoch in range(EPOCHS):
        random.shuffle(rows)
        rate = RATE / (1 + epoch)
        for row in rows:
            push = rate / (1 + math.exp(min(30.0, margin(weights, row))))
            for word, value in row.items():
                weights[word] = weights.get(word, 0.0) + push * value
    margins = [margin(weights, row) for row in measured]
    return sum(0.5 if value == 0 else float(value > 0) for value in margins) / len(margins)


def margin(weights: Features, row: Features) -> float:
    return 4 * sum(weights.get(word, 0.0) * value for word, value in row.items())
