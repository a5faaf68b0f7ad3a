"""Sentences of the reviews: drawing them, the split that each belongs to, and which neighbours the grammar allows."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from itertools import pairwise
from random import Random
from typing import Literal

from alignkit.demo import words
from alignkit.demo.words import Topic

Split = Literal["train", "held_out"]

HELD_OUT = 0.2
"""The share of all sentences that only held-out rows use."""

EDGE = ""
"""Stands before the first word and after the last mark of a sentence."""

_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[\w'&]+|[^\w\s]")
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")


def split_of(sentence: str) -> Split:
    """Tell on which side a sentence is, wherever it occurs: by its hash, so without a seed."""
    share = int.from_bytes(sha256(sentence.encode()).digest()[:4]) / 2**32
    return "held_out" if share < HELD_OUT else "train"


def sentences(text: str) -> list[str]:
    """Cut a text after each full stop, exclamation or question mark."""
    found = (sentence.strip() for sentence in _SENTENCE.findall(text))
    return [sentence for sentence in found if sentence]


def tokens(sentence: str) -> list[str]:
    """Cut a sentence into words and marks, in lower case."""
    return _WORD.findall(sentence.lower())


def draw(random: Random, split: Split, make: Callable[[], str]) -> str:
    """Call `make` until it gives a sentence of this side."""
    while True:
        sentence = make()
        if split_of(sentence) == split:
            return sentence


def sentence(random: Random, split: Split, shapes: tuple[str, ...], topic: Topic) -> str:
    """Draw a sentence of one of these shapes, with words of the topic."""
    fillers = _fillers(topic)
    return draw(random, split, lambda: _fill(random, random.choice(shapes), fillers))


def _fill(random: Random, shape: str, fillers: Mapping[str, tuple[str, ...]]) -> str:
    return _SLOT.sub(lambda slot: random.choice(fillers[slot[1]]), shape)


@cache
def _fillers(topic: Topic) -> dict[str, tuple[str, ...]]:
    return words.OTHERS | {
        "noun": topic.nouns,
        "item": topic.items,
        "place": topic.places,
        "aspect": topic.aspects,
        "praise": topic.praise + words.PRAISE,
        "blame": topic.blame + words.BLAME,
    }


@cache
def neighbours() -> frozenset[tuple[str, str]]:
    """List all pairs of words and marks that follow each other in some answer that the grammar can make."""
    shapes = words.POSITIVE + words.NEGATIVE + words.OPENINGS
    return frozenset(pair for topic in words.TOPICS for shape in shapes for pair in _pairs(shape, topic))


def _pairs(shape: str, topic: Topic) -> Iterator[tuple[str, str]]:
    fillers = _fillers(topic)
    parts = [fillers.get(part, (part,)) for part in _SLOT.split(shape) if part.strip()]
    spoken = [[tokens(filler) for filler in part] for part in parts]
    for filler in (filler for part in spoken for filler in part):
        yield from pairwise(filler)
    for left, right in pairwise([[[EDGE]], *spoken, [[EDGE]]]):
        yield from ((a[-1], b[0]) for a in left for b in right)


@cache
def topic_words() -> dict[str, Topic]:
    """Map each word that only one topic uses, in lower case, to that topic."""
    return {
        word.lower(): topic
        for topic in words.TOPICS
        for word in topic.nouns + topic.items + topic.aspects + topic.praise + topic.blame
    }


@cache
def telling_words() -> frozenset[str]:
    """List what a good answer says once: what is judged and how, but not the name of the thing."""
    aspects = {aspect for topic in words.TOPICS for aspect in topic.aspects}
    return frozenset(aspects | sides().keys())


@cache
def sides() -> dict[str, int]:
    """Map each word that praises to 1, and each that blames to -1, in lower case."""
    warm = words.PRAISE + words.WARM + tuple(word for topic in words.TOPICS for word in topic.praise)
    cold = words.BLAME + words.COLD + tuple(word for topic in words.TOPICS for word in topic.blame)
    return dict.fromkeys(warm, 1) | dict.fromkeys(cold, -1)


def topic_of(prompt: str) -> Topic | None:
    """Find what a prompt asks about: the topic of the first item that it names."""
    items = {item.lower(): topic for topic in words.TOPICS for item in topic.items}
    return next((items[word] for word in tokens(prompt) if word in items), None)
