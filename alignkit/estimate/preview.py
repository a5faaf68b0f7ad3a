"""What a stage gets of a source, as facts: tokens, what does not fit, and rows as the model sees them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens as text, special ones included."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class RenderedSample:
    """A sequence as the model sees it; `role` is `demonstration`, `chosen`, `rejected`, ..."""

    role: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Preview:
    """What one stage gets of one source of rows."""

    counted: int
    """Rows whose tokens were counted."""
    of: int
    """Rows that there are."""
    tokens: int
    """Of all sequences of the counted rows."""
    median: float
    most: int
    """99 of 100 rows are no longer."""
    longest: int
    limit: int
    """The longest sequence, `max_length`."""
    room: int
    """The longest row; less than the limit where an answer to it must fit, too."""
    over: int
    """Counted rows with a sequence longer than that."""
    fate: str
    """What happens to those rows."""
    lengths: tuple[int, ...]
    """Counted rows of up to 16, 32, 64, ... tokens, each more than the bound before."""
    special: int
    """Counted rows whose own text holds one of the tokenizer's special tokens, such as that of an answer's end."""
    same: int
    """Counted pairs whose two sides are the same tokens."""
    refused: int
    """Rows that the chat template refuses, among as many as were counted; they are not counted."""
    samples: tuple[RenderedSample, ...]
    steps: int | None
    """None where the method counts none."""
    steps_are: Literal["optimiser steps", "updates"]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """Read what `as_dict` gave, from JSON, too."""
        samples = tuple(
            RenderedSample(one["role"], tuple(Piece(**piece) for piece in one["pieces"])) for one in facts["samples"]
        )
        return cls(**{**facts, "lengths": tuple(facts["lengths"]), "samples": samples})
