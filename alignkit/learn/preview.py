"""What a stage will be trained on, before it is: tokens, what is cut, and rows as the model sees them.

It is made by the very functions that encode rows for training, so what is shown as learnt is learnt.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from statistics import median
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from alignkit.contract.kinds import Demonstrations, Policy, Preferences, Prompts, Ratings, Records, Text
from alignkit.contract.settings import Settings
from alignkit.learn import data
from alignkit.learn.data import NOT_LEARNT, Tokens
from alignkit.learn.folders import base_of, is_adapter
from alignkit.learn.models import open_tokenizer

COUNTED = 2000
"""Rows whose tokens are counted."""
SAMPLES = 3
FATES: Mapping[type[Records], str] = {
    Text: "go on in a next block; nothing is cut off or left out",
    Demonstrations: "lose their end, or are left out where nothing of the answer remains",
    Records: "are left out whole; none is cut",
}
"""What becomes of a row that is longer than the limit."""
FIRST_BITS = 4
"""The first bar of a histogram has up to 2 ** 4 tokens."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens as text, special ones included."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class Sample:
    """A sequence as the model sees it; `role` is `demonstration`, `chosen`, `rejected`, ..."""

    role: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Preview:
    """What one stage gets of one source of rows."""

    counted: int
    """Rows, from the start, whose tokens were counted."""
    tokens: int
    """Of all counted sequences."""
    median: float
    most: int
    """99 of 100 rows are no longer."""
    longest: int
    limit: int
    over: int
    """Counted rows with a sequence longer than the limit."""
    fate: str
    """What happens to those rows."""
    lengths: tuple[int, ...]
    """Counted rows of up to 16, 32, 64, ... tokens, each more than the bound before."""
    special: int
    """Counted rows whose own text holds one of the tokenizer's special tokens, such as that of an answer's end."""
    samples: tuple[Sample, ...]


def preview(policy: Policy, records: Records, settings: Settings) -> Preview:
    """Encode the first rows as the stage will."""
    tokenizer = open_tokenizer(policy.path)
    limit = data.fitting_length(reads(policy), getattr(settings, "max_length", None))
    learn: data.Learn = getattr(settings, "learn", "all")
    rows = list(islice(records.train(), COUNTED))
    encoded = [list(sequences(type(records), row, tokenizer, learn)) for row in rows]
    lengths = [max(len(tokens.ids) for _, tokens in several) for several in encoded]
    special = [str(token) for token in tokenizer.all_special_tokens]
    return Preview(
        counted=len(rows),
        tokens=sum(len(tokens.ids) for several in encoded for _, tokens in several),
        median=median(lengths) if lengths else 0.0,
        most=sorted(lengths)[99 * (len(lengths) - 1) // 100] if lengths else 0,
        longest=max(lengths, default=0),
        limit=limit,
        fate=next(words for kind, words in FATES.items() if isinstance(records, kind)),
        lengths=histogram(lengths),
        special=sum(any(token in text for token in special) for text in map(all_text, rows)),
        over=sum(length > limit for length in lengths),
        samples=tuple(
            Sample(role, tuple(pieces(tokens, tokenizer))) for several in encoded[:SAMPLES] for role, tokens in several
        ),
    )


def histogram(lengths: Sequence[int]) -> tuple[int, ...]:
    """Count lengths up to 16, 32, 64 and so on, to the bound that holds the longest."""
    places = [max(0, (length - 1).bit_length() - FIRST_BITS) for length in lengths]
    return tuple(places.count(place) for place in range(max(places, default=-1) + 1))


def all_text(row: data.Row) -> str:
    """Put together what a row says, without what a chat template adds."""
    values = (row[name] for name in ("prompt", "completion", "messages", "chosen", "rejected", "text") if name in row)
    return "\n".join(data.shown(value) for value in values)


def sequences(
    kind: type[Records], row: data.Row, tokenizer: PreTrainedTokenizerBase, learn: data.Learn = "all"
) -> Iterator[tuple[str, Tokens]]:
    """Encode a row of a kind; give each of its sequences with its role."""
    if issubclass(kind, Demonstrations):
        yield "demonstration", data.demonstration(row, tokenizer, learn)
    elif issubclass(kind, Preferences):
        for side in ("chosen", "rejected"):
            yield side, data.answered(row["prompt"], row[side], tokenizer)
    elif issubclass(kind, Ratings):
        yield "answer", data.answered(row["prompt"], row["completion"], tokenizer)
    elif issubclass(kind, Prompts):
        ids = data.prompt_ids(tokenizer, row["prompt"])
        yield "prompt", Tokens(ids, [NOT_LEARNT] * len(ids))
    elif issubclass(kind, Text):
        ids = next(data.documents([row["text"]], tokenizer))
        yield "text", Tokens(ids, ids)


def pieces(tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    """Part a sequence where what is learnt begins or ends."""
    paired = zip(tokens.ids, tokens.labels, strict=True)
    for learnt, group in groupby(paired, key=lambda pair: pair[1] != NOT_LEARNT):
        text: Any = tokenizer.decode([token for token, _ in group])
        yield Piece(text, learnt)


def reads(policy: Policy) -> int | None:
    """Tell how many positions a policy has, by its config alone."""
    folder = base_of(policy.path) if is_adapter(policy.path) else policy.path
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found and found > 0 else None


def steps(kind: type[Records], rows: int, settings: Settings) -> int | None:
    """Tell how many optimiser steps a stage takes over given rows; None where it does not count by them."""
    batch, epochs = getattr(settings, "batch", None), getattr(settings, "epochs", None)
    if batch is None or epochs is None or hasattr(settings, "updates") or issubclass(kind, Text):
        return None
    taken: int = math.ceil(epochs * math.ceil(rows / batch))
    return taken
