"""What the start says of answers: computed once, before the first step, and kept on disk for all that begin there.

The start is never a second model: before the first step the policy itself is the start.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Generic, TypeVar

from alignkit import Policy, RowSettings, Stage, StageError

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
Table = Sequence[Sequence[float]]

SAME = 1e-3
"""Nats by which an answer's log-probability may differ between two passes in fp32; more is another model."""
KEPT = 1e-4
"""Nats by which it may differ between what was kept and the same pass now."""
AT_ONCE = 4096
"""Rows whose tokens are held in memory while the start reads them."""


@dataclass(frozen=True)
class Start(Generic[T]):
    """A policy before its first step, and how it reads rows."""

    policy: Policy
    settings: RowSettings
    stage: Stage
    read: Callable[[Sequence[T]], Table]
    """Gives so many log-probabilities of each row."""
    tokens: Callable[[T], Sequence[Sequence[int]]]
    """Returns all tokens of a row."""
    form: str = ""
    """What else decides on what is read."""
    learns: bool = True
    """It is the policy that learns, so that no answer has gained or lost anything before the first step."""

    def says_of(self, train: Sequence[T], held_out: Sequence[T]) -> tuple[Table, Table]:
        """Return the start's log-probabilities of both rows, from disk where they were computed before.

        Raise StageError where the policy is its own start and says otherwise the second time.
        """
        first_rows = train[: self.settings.batch]
        first = self.read(first_rows)
        said = self._of_all(first, train, held_out)
        if self.learns and self.stage.latest() is None:
            self.check(first_rows, first, said)
        return said[: len(train)], said[len(train) :]

    def _of_all(self, first: Table, train: Sequence[T], held_out: Sequence[T]) -> Table:
        """Return what it says of all rows, one behind the other.

        What is kept is only used if this very model says the same of the first rows: a stage that was run again has
        other weights under the same fingerprint.
        """
        content = hashlib.sha256(f"{self.policy.fingerprint} {self.settings.precision}{self.form}".encode())
        for row in chain(train, held_out):
            content.update(repr([*self.tokens(row)]).encode())
        file = self.stage.cache / f"logprobs-{content.hexdigest()}.json"
        kept = read_kept(file)
        if kept and len(kept[1]) == len(train) + len(held_out) and furthest(kept[0], first) < KEPT:
            return kept[1]
        parts = (train[place : place + AT_ONCE] for place in range(0, len(train), AT_ONCE))
        computed = [list(said) for part in (*parts, held_out) for said in self.read(part)]
        write_kept(file, first, computed)
        return computed

    def check(self, rows: Sequence[T], first: Table, said: Table) -> None:
        """Refuse a start that says of the first rows by themselves what it does not say of them among all."""
        worst = furthest(first, said[: len(rows)])
        longest = max(sum(map(len, self.tokens(row))) for row in rows)
        if worst > SAME * math.sqrt(longest) * (1 if self.settings.precision == "fp32" else 100):
            raise StageError(
                f"the policy is not its own start before the first step ({worst:.3g} nats apart)",
                remedy="take a model that says the same each time it is asked, in another precision if need be",
            )


def read_kept(file: Path) -> tuple[Table, Table] | None:
    """Return what was kept of the first rows by themselves, and of all; None where nothing was, or it is damaged."""
    try:
        first, every, seal = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return None
    return (first, every) if seal == sealed(first, every) else None


def write_kept(file: Path, first: Table, every: Table) -> None:
    written = file.with_suffix(f".{secrets.token_hex(4)}")
    written.write_text(json.dumps([first, every, sealed(first, every)]), "utf-8")
    written.replace(file)


def sealed(first: object, every: object) -> str:
    return hashlib.sha256(json.dumps([first, every]).encode()).hexdigest()


def furthest(some: Table, others: Table) -> float:
    """Return how far two tables are apart; of different length, infinitely."""
    if len(some) != len(others):
        return math.inf
    return max(abs(a - b) for row, other in zip(some, others, strict=True) for a, b in zip(row, other, strict=True))
