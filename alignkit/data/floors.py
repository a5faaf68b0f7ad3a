"""How far words alone go: a classifier of words and pairs of words, on a sample.

An accuracy means something only above what needs no understanding. The classifier is logistic regression on which
words and pairs of neighbouring words the two answers do not share (Bradley-Terry), rare ones counting more, learnt by
stochastic gradient steps of shrinking length.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random

TRAIN, MEASURED = 2000, 500
"""Rows of the sample that are learnt from, and measured on."""
FEWEST = 20
"""With fewer rows on either side nothing is measured."""
EPOCHS = 6
RATE = 2.0
SHARPNESS = 4.0
"""Scale of margins: how sure the classifier becomes."""

Features = dict[str, float]


def features(text: str) -> set[str]:
    """Return the words of a text and their pairs."""
    words = re.findall(r"\w+", text.casefold())
    return {*words, *(f"{one} {other}" for one, other in pairwise(words))}


def difference(one: str, other: str) -> Features:
    """Return what tells two answers apart: 1 for what only the first has, -1 for what only the other has."""
    first, second = features(one), features(other)
    return dict.fromkeys(first - second, 1.0) | dict.fromkeys(second - first, -1.0)


def words_win(train: Sequence[Features], measured: Sequence[Features]) -> float | None:
    """Return the share of the measured pairs that words tell rightly, ties half; None where there is too little.

    Each difference is that of the better answer from the worse one.
    """
    if len(train) < FEWEST or len(measured) < FEWEST:
        return None
    found_in = Counter(word for row in train for word in row)
    rarity = {word: math.log(1 + len(train) / times) for word, times in found_in.items()}
    rows = [weighed(row, rarity) for row in train]
    weights: Features = {}
    random = Random(0)  # noqa: S311  # shuffles rows, guards no secret
    for epoch in range(EPOCHS):
        random.shuffle(rows)
        rate = RATE / (1 + epoch)
        for row in rows:
            push = rate / (1 + math.exp(min(30.0, margin(weights, row))))
            for word, value in row.items():
                weights[word] = weights.get(word, 0.0) + push * value
    margins = [margin(weights, weighed(row, rarity)) for row in measured]
    return sum(0.5 if value == 0 else float(value > 0) for value in margins) / len(margins)


def weighed(row: Features, rarity: Mapping[str, float]) -> Features:
    """Let rare words count more (inverse document frequency), and all together as a vector of length 1."""
    known = {word: value * rarity[word] for word, value in row.items() if word in rarity}
    size = math.sqrt(sum(value * value for value in known.values())) or 1.0
    return {word: value / size for word, value in known.items()}


def margin(weights: Features, row: Features) -> float:
    return SHARPNESS * sum(weights.get(word, 0.0) * value for word, value in row.items())
