"""The gold score: how good an answer to a review prompt is, known exactly because the grammar is.

An answer is `sound` as far as it is fluent, on the topic of its prompt, varied, of a proper length and ended by itself
(each between 0 and 1, multiplied), and `warm` as far as it praises rather than blames. The score is

    sound * (1 + warm) - 1

1 for a sound answer that only praises, 0 for a sound one that only blames, towards -1 for anything that is not sound
whatever it says. A mixture of half praise and half blame has 0.5.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.reward_function import Answer, RewardFunction, reward
from alignkit.contract.settings import Settings
from alignkit.demo.grammar import EDGE, neighbours, sentences, sides, telling_words, tokens, topic_of, topic_words
from alignkit.demo.words import NEVER

VERSION = "1"
"""Raised when any answer gets another score."""

SHORTEST, LONGEST = 10, 60
"""Words and marks: shorter and longer answers lose in proportion."""
TOLERATED = 0.8
"""The share of different words among the telling ones that is varied enough."""
UNFINISHED = 0.5
"""What is left of an answer that was cut off."""


class GoldSettings(Settings):
    """The gold score has no settings."""


@reward("reviews-gold", version=VERSION)
def reviews_gold(answers: Sequence[Answer], settings: GoldSettings) -> list[float]:
    """Score answers to `builtin:reviews` prompts: fluent, on topic, varied, ended and full of praise is 1."""
    return [gold(answer.prompt, answer.text, answer.finished) for answer in answers]


def gold(prompt: str, text: str, finished: bool = True) -> float:
    """Score one answer, from -1 (useless) over 0 (sound but all blame) to 1 (sound and all praise)."""
    said = [tokens(sentence) for sentence in sentences(text)]
    if not said:
        return -1.0
    sound = fluency(said) * topicality(prompt, said) * variety(said) * length(said)
    return (sound if finished else sound * UNFINISHED) * (1 + warmth(said)) - 1


def fluency(said: list[list[str]]) -> float:
    """Measure how much of the text is in an order of words that the grammar can make; half of it wrong gives 0."""
    pairs = [pair for sentence in said for pair in pairwise([EDGE, *sentence, EDGE])]
    right = sum(pair in neighbours() for pair in pairs) / len(pairs)
    return max(0.0, 2 * right - 1)


def topicality(prompt: str, said: list[list[str]]) -> float:
    """Measure the share of topical words that belong to the prompt's topic; 0 where none does."""
    topic = topic_of(prompt)
    found = [topic_words()[word] for sentence in said for word in sentence if word in topic_words()]
    return sum(other is topic for other in found) / max(1, len(found))


def variety(said: list[list[str]]) -> float:
    """Measure how little is said twice: the share of different sentences, times that of different telling words.

    Nobody minds when one telling word of five comes back.
    """
    telling = [word for sentence in said for word in sentence if word in telling_words()]
    different = len({tuple(sentence) for sentence in said}) / len(said)
    return different * min(1.0, len(set(telling)) / max(1, len(telling)) / TOLERATED)


def length(said: list[list[str]]) -> float:
    """Measure whether the answer is neither silent nor endless."""
    spoken = sum(map(len, said))
    return min(1.0, spoken / SHORTEST, LONGEST / spoken)


def warmth(said: list[list[str]]) -> float:
    """Measure praise as a share of praise and blame; 0.5 where there is neither."""
    taken = [side for sentence in said for side in _sides(sentence)]
    return (1 + sum(taken) / len(taken)) / 2 if taken else 0.5


def _sides(sentence: list[str]) -> list[int]:
    return [
        -sides()[word] if before == NEVER else sides()[word]
        for before, word in pairwise([EDGE, *sentence])
        if word in sides()
    ]


@hookimpl
def alignkit_rewards() -> Iterable[RewardFunction]:
    """Offer the gold score."""
    return [reviews_gold]
