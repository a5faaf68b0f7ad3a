"""`builtin:reviews`: raw text, demonstrations, preferences, ratings and prompts, made from the grammar.

No sentence of a held-out row, of whatever kind, occurs in a training row of any kind: each sentence and each prompt
belongs to one side by its hash. Half of the demonstrations are good. The preferences' labels are drawn from
Bradley-Terry on the gold score, so some are against it. The ratings, one to five stars, are the gold score and noise.
"""

import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Literal, NamedTuple

from alignkit.demo import words
from alignkit.demo.gold import gold, variety
from alignkit.demo.grammar import Split, draw, sentence, tokens
from alignkit.demo.words import TOPICS, Topic

VERSION = "1"
"""Raised when any generated row changes, or the tiny model, whose tokenizer is trained on these rows."""

Kind = Literal["text", "demonstrations", "preferences", "ratings", "prompts"]
Row = dict[str, Any]

COUNTS: dict[Kind, dict[Split, int]] = {
    "text": {"train": 4000, "held_out": 200},
    "demonstrations": {"train": 4000, "held_out": 200},
    "preferences": {"train": 6000, "held_out": 1000},
    "ratings": {"train": 6000, "held_out": 1000},
    "prompts": {"train": 1300, "held_out": 256},
}

SHARPNESS = 4.0
"""The scale of Bradley-Terry: with a gap of 1 in gold, one label in 56 is against it; with 0.5, one in 8."""

STARS_OFF = 0.7
"""Standard deviation of a rating around what the gold score says, in stars."""


def rows(kind: Kind, split: Split) -> Iterator[Row]:
    """Make the rows of one kind and side, the same ones every time."""
    random = Random(f"reviews {VERSION} {kind} {split}")  # noqa: S311  # chooses sentences, guards no secret
    makers: dict[Kind, Callable[[Random, Split], Iterator[Row]]] = {
        "text": _texts,
        "demonstrations": _demonstrations,
        "preferences": _preferences,
        "ratings": _ratings,
        "prompts": _prompts,
    }
    made = makers[kind](random, split)
    return (next(made) for _ in range(COUNTS[kind][split]))


def bayes_accuracy(split: Split) -> float:
    """Return how often the best possible judge, gold itself, is expected to agree with the labels."""
    chances = [_chance(row["prompt"], row["chosen"], row["rejected"]) for row in rows("preferences", split)]
    return sum(max(chance, 1 - chance) for chance in chances) / len(chances)


def _chance(prompt: str, answer: str, other: str) -> float:
    return 1 / (1 + math.exp(SHARPNESS * (gold(prompt, other) - gold(prompt, answer))))


def _texts(random: Random, split: Split) -> Iterator[Row]:
    """Write diaries: about one topic or two, a question now and then, each topic in a mood of its own."""
    while True:
        parts = []
        for topic in random.sample(TOPICS, random.choice((1, 1, 1, 1, 2))):
            first = random.choice((words.DIARY, words.DIARY, words.QUESTIONS))
            shapes = _mood(random) + words.OPENINGS[:1]
            parts += [sentence(random, split, first, topic)]
            parts += [sentence(random, split, shapes, topic) for _ in range(random.choice((2, 3, 4)))]
        yield {"text": " ".join(parts)}


def _demonstrations(random: Random, split: Split) -> Iterator[Row]:
    while True:
        for answer in (_praising, _blaming):
            topic, prompt = _question(random, split)
            yield {"prompt": prompt, "completion": " " + answer(random, split, topic)}


def _preferences(random: Random, split: Split) -> Iterator[Row]:
    while True:
        topic, prompt = _question(random, split)
        worse = _blaming if random.random() < 0.65 else random.choice(FLAWED)
        one, other = (" " + answer(random, split, topic) for answer in (_praising, worse))
        if random.random() > _chance(prompt, one, other):
            one, other = other, one
        yield {"prompt": prompt, "chosen": one, "rejected": other}


def _ratings(random: Random, split: Split) -> Iterator[Row]:
    """Rate four answers to each question: a good one, a bad one, and two that may be anything."""
    while True:
        topic, prompt = _question(random, split)
        kinds = [_praising, _blaming, *random.choices((_praising, _blaming, *FLAWED), k=2)]
        for answer in random.sample(kinds, len(kinds)):
            text = " " + answer(random, split, topic)
            stars = round(1 + 4 * gold(prompt, text) + random.gauss(0, STARS_OFF))
            yield {"prompt": prompt, "completion": text, "rating": min(max(stars, 1), 5)}


def _prompts(random: Random, split: Split) -> Iterator[Row]:
    """Ask each question once."""
    asked = set[str]()
    while True:
        _, prompt = _question(random, split)
        if prompt not in asked:
            asked.add(prompt)
            yield {"prompt": prompt}


class _Question(NamedTuple):
    topic: Topic
    prompt: str


def _question(random: Random, split: Split) -> _Question:
    topic = random.choice(TOPICS)
    return _Question(topic, sentence(random, split, words.QUESTIONS, topic))


def _answer(random: Random, split: Split, topic: Topic, *moods: tuple[str, ...]) -> str:
    """Say one sentence in each mood, after an opening in one answer of four, and nothing twice."""
    shapes = [words.OPENINGS, *moods] if random.random() < 0.25 else moods
    while True:
        said = [sentence(random, split, mood, topic) for mood in shapes]
        if variety([tokens(one) for one in said]) == 1:
            return " ".join(said)


def _praising(random: Random, split: Split, topic: Topic) -> str:
    return _answer(random, split, topic, *[words.POSITIVE] * random.choice((2, 3)))


def _blaming(random: Random, split: Split, topic: Topic) -> str:
    return _answer(random, split, topic, *[words.NEGATIVE] * random.choice((2, 3)))


def _mixed(random: Random, split: Split, topic: Topic) -> str:
    return _answer(random, split, topic, words.POSITIVE, words.NEGATIVE)


def _astray(random: Random, split: Split, topic: Topic) -> str:
    """Answer about something else."""
    answer = random.choice((_praising, _blaming))
    return answer(random, split, random.choice([other for other in TOPICS if other is not topic]))


def _drifting(random: Random, split: Split, topic: Topic) -> str:
    """Begin well and go on about something else."""
    return _praising(random, split, topic) + " " + _astray(random, split, topic)


def _again(random: Random, split: Split, topic: Topic) -> str:
    """Say one sentence two or three times."""
    return " ".join([sentence(random, split, _mood(random), topic)] * random.choice((2, 3)))


def _scrambled(random: Random, split: Split, topic: Topic) -> str:
    """Say two sentences with their words in any order."""
    mood = _mood(random)

    def scramble() -> str:
        spoken = sentence(random, split, mood, topic)[:-1].split()
        return " ".join(random.sample(spoken, len(spoken))).capitalize() + "."

    return " ".join(draw(random, split, scramble) for _ in range(2))


def _mood(random: Random) -> tuple[str, ...]:
    return random.choice((words.POSITIVE, words.NEGATIVE))


FLAWED = (_mixed, _drifting, _astray, _again, _scrambled)
"""What may be wrong with an answer that is not simply bad."""
