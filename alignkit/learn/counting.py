"""How many tokens the rows of a source have, by the tokenizer of the model that will read them.

Rows are encoded by the very functions that encode them for training. Of many rows a part is counted, spread evenly.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Demonstrations, Preferences, Prompts, Ratings, Records, Text
from alignkit.contract.settings import Settings
from alignkit.learn import data
from alignkit.learn.data import NOT_LEARNT, Tokens

MOST = 10_000
"""Rows that are counted at most."""


class Rows(NamedTuple):
    """How many rows a source has."""

    train: int
    """Learnt from."""
    held_out: int


class Lengths(NamedTuple):
    """Of one row, in tokens."""

    prompt: float
    """Of what is not learnt."""
    answer: float
    """Of what is learnt; of a pair's two answers the mean."""
    longest: int
    """Of its sequences."""
    tokens: int
    """Of all its sequences together."""
    highest: int = 0
    """Number of its highest token, which the model may have no row for."""


@dataclass(frozen=True)
class Counted:
    """The lengths of a source's rows, of every `step`-th one."""

    step: int
    train: tuple[Lengths, ...]
    """Of rows that are learnt from."""
    held_out: tuple[Lengths, ...]
    special: int
    """Rows whose own text holds one of the tokenizer's special tokens, such as that of an answer's end."""
    same: int = 0
    """Pairs whose two sides are the same tokens: what differs in their text, a chat template has left away."""

    @property
    def rows(self) -> tuple[Lengths, ...]:
        return (*self.train, *self.held_out)


def count(records: Records, rows: Rows, tokenizer: PreTrainedTokenizerBase, learn: data.Learn = "all") -> Counted:
    """Count the tokens of a source's rows."""
    step, special = max(1, math.ceil(sum(rows) / MOST)), [str(token) for token in tokenizer.all_special_tokens]
    marked = same = 0

    def lengths(side: Iterable[data.Row]) -> Iterator[Lengths]:
        nonlocal marked, same
        for row in islice(side, 0, None, step):
            text = all_text(row)
            marked += any(token in text for token in special)
            encoded = [tokens for _, tokens in sequences(type(records), row, tokenizer, learn)]
            same += len(encoded) == 2 and encoded[0].ids == encoded[1].ids
            yield lengths_of(encoded)

    return Counted(step, tuple(lengths(records.train())), tuple(lengths(records.held_out())), marked, same)


def learn_of(settings: Settings) -> data.Learn:
    """Tell which turns of a chat a stage learns."""
    learn: data.Learn = getattr(settings, "learn", "all")
    return learn


def lengths_of(sequences: Sequence[Tokens]) -> Lengths:
    """Weigh a row's sequences."""
    whole = [len(tokens.ids) for tokens in sequences]
    learnt = [sum(label != NOT_LEARNT for label in tokens.labels) for tokens in sequences]
    highest = max(max(tokens.ids, default=0) for tokens in sequences)
    return Lengths(fmean(whole) - fmean(learnt), fmean(learnt), max(whole), sum(whole), highest)


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
