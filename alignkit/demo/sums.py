"""`builtin:sums`: sums of small numbers and words to reverse, whose answers can be checked; demonstrations and prompts.

Each prompt belongs to one side by its hash, so that what is asked of a held-out row was never shown. Of the
demonstrations some are wrong, as people are: sums that are off by one or by ten, letters of which two are swapped. So a
policy that imitates them knows how, and is right at times. A row of prompts has the right answer beside it; rewards
see it where their source keeps it: `keep = ["answer"]`.
"""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Literal

from alignkit.demo.grammar import Split, split_of

VERSION = "1"
"""Raised when any generated row changes."""

Kind = Literal["demonstrations", "prompts"]
Row = dict[str, Any]

COUNTS: dict[Kind, dict[Split, int]] = {
    "demonstrations": {"train": 3600, "held_out": 200},
    "prompts": {"train": 1200, "held_out": 256},
}
LARGEST = 49
"""Of the numbers that are added."""
LETTERS, FEWEST, MOST = "abcdefgh", 3, 4
"""What is reversed, and how many of them."""
WRONG = 0.4
"""The share of demonstrations that are wrong."""


def rows(kind: Kind, split: Split) -> Iterator[Row]:
    """Make the rows of one kind and side, the same ones every time."""
    random = Random(f"sums {VERSION} {kind} {split}")  # noqa: S311  # chooses numbers, guards no secret
    makers: dict[Kind, Callable[[Random, Split], Iterator[Row]]] = {
        "demonstrations": _demonstrations,
        "prompts": _prompts,
    }
    made = makers[kind](random, split)
    return (next(made) for _ in range(COUNTS[kind][split]))


def _demonstrations(random: Random, split: Split) -> Iterator[Row]:
    for prompt, answer in _tasks(random, split):
        said = _slip(random, answer) if random.random() < WRONG else answer
        yield {"prompt": prompt, "completion": f" {said}"}


def _prompts(random: Random, split: Split) -> Iterator[Row]:
    for prompt, answer in _tasks(random, split):
        yield {"prompt": prompt, "answer": answer}


def _tasks(random: Random, split: Split) -> Iterator[tuple[str, str]]:
    """Draw questions of this side, each once, with their right answers: sums as often as letters to reverse."""
    asked = set[str]()
    while True:
        prompt, answer = random.choice((_sum, _reversal))(random)
        if split_of(prompt) == split and prompt not in asked:
            asked.add(prompt)
            yield prompt, answer


def _sum(random: Random) -> tuple[str, str]:
    one, other = random.randint(0, LARGEST), random.randint(0, LARGEST)
    return f"{one} + {other} =", str(one + other)


def _reversal(random: Random) -> tuple[str, str]:
    letters = random.choices(LETTERS, k=random.randint(FEWEST, MOST))
    return f"{' '.join(letters)} reversed:", " ".join(reversed(letters))


def _slip(random: Random, answer: str) -> str:
    """Make a wrong answer of a right one."""
    if answer.isdecimal():
        return str(
            random.choice([near for step in (1, 10) for near in (int(answer) - step, int(answer) + step) if near >= 0])
        )
    letters = answer.split()
    first, second = random.sample(range(len(letters)), 2)
    letters[first], letters[second] = letters[second], letters[first]
    if (said := " ".join(letters)) != answer:
        return said
    return " ".join([*letters[1:], random.choice(LETTERS.replace(letters[0], ""))])
