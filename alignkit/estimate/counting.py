"""How many tokens the rows of a source have, by the tokenizer of the model that will read them.

Rows are encoded by the very functions that encode them for training. Of many rows a part is counted, spread evenly.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import fmean
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import (
    Artifact,
    Demonstrations,
    Policy,
    Preferences,
    Prompts,
    Ratings,
    Records,
    RewardModel,
    Text,
)
from alignkit.contract.needs import Needs, PairNeeds, TrainerNeeds
from alignkit.errors import DataError
from alignkit.estimate.desk import Desk
from alignkit.sources.source import Source
from alignkit.store import rundir
from alignkit.store.notes import note_path, read_note, write_note
from alignkit.training import encoding, row_texts
from alignkit.training.encoding import NOT_LEARNT, LabelledTokens
from alignkit.training.lengths import UNSET_ANSWER, learnt_runs
from alignkit.training.templates import Learn
from alignkit.training.tokenizers import open_tokenizer, policy_tokenizer

VERSION = 5
"""Raised when what is counted changes."""
MOST = 10_000
"""Rows that are counted at most."""


class RowCounts(NamedTuple):
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
    begins: int = 0
    """Where the first token that is learnt stands; behind the last where none is."""
    run: int = 0
    """Of its longest answer: of the tokens that are learnt one behind the other."""


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
    refused: int = 0
    """Rows that the chat template refuses, which are not among the others."""

    @property
    def rows(self) -> tuple[Lengths, ...]:
        return (*self.train, *self.held_out)


def count(records: Records, rows: RowCounts, tokenizer: PreTrainedTokenizerBase, learn: Learn = "all") -> Counted:
    """Count the tokens of a source's rows."""
    step, special = max(1, math.ceil(sum(rows) / MOST)), [str(token) for token in tokenizer.all_special_tokens]
    marked = same = refused = 0

    def lengths(side: Iterable[row_texts.Row]) -> Iterator[Lengths]:
        nonlocal marked, same, refused
        for row in islice(side, 0, None, step):
            try:
                encoded = [tokens for _, tokens in sequences(type(records), row, tokenizer, learn)]
            except DataError:  # told by what renders all rows
                refused += 1
                continue
            text = all_text(row)
            marked += any(token in text for token in special)
            same += len(encoded) == 2 and encoded[0].ids == encoded[1].ids
            yield lengths_of(encoded)

    return Counted(step, tuple(lengths(records.train())), tuple(lengths(records.held_out())), marked, same, refused)


def lengths_of(sequences: Sequence[LabelledTokens]) -> Lengths:
    """Weigh a row's sequences."""
    whole = [len(tokens.ids) for tokens in sequences]
    learnt = [sum(label != NOT_LEARNT for label in tokens.labels) for tokens in sequences]
    highest = max(max(tokens.ids, default=0) for tokens in sequences)
    begins = max(_begins(tokens) for tokens in sequences)
    run = max(learnt_runs(sequences), default=0)
    return Lengths(fmean(whole) - fmean(learnt), fmean(learnt), max(whole), sum(whole), highest, begins, run)


def _begins(tokens: LabelledTokens) -> int:
    return next((place for place, label in enumerate(tokens.labels) if label != NOT_LEARNT), len(tokens.labels))


def takes_apart(needs: Needs | None, kind: type[Artifact]) -> bool:
    """Return whether a stage takes the two answers of a pair as two rows."""
    return isinstance(needs, TrainerNeeds | PairNeeds) and needs.apart and issubclass(kind, Preferences)


def one_by_one(needs: Needs | None, kind: type[Records], rows: Sequence[Lengths]) -> Sequence[Lengths]:
    """Return the rows as a stage takes them: one that learns from single answers takes the two of a pair apart."""
    if not takes_apart(needs, kind):
        return rows
    sizes = ((row, size) for row in rows for size in (row.longest, row.tokens - row.longest))
    return [row._replace(longest=size, tokens=size) for row, size in sizes]


class Fate(NamedTuple):
    """What becomes of rows that are too long, as `encoding.LengthReport` counts it."""

    over: int
    """They are cut or left out."""
    left_out: int


def fate_of(kind: type[Records], rows: Sequence[Lengths], room: int) -> Fate:
    """Count the rows that are longer than there is room: a demonstration loses its end if some of its answer remains,
    raw text goes on in a next block, any other row is left out."""
    over = [row for row in rows if row.longest > room]
    if issubclass(kind, Text):
        return Fate(len(over), 0)
    kept = sum(row.begins < room for row in over) if issubclass(kind, Demonstrations) else 0
    return Fate(len(over), len(over) - kept)


def room(kind: type[Records], limit: int, new_tokens: int) -> int:
    """Return the longest sequence of a kind's rows that a stage takes: a prompt must leave room for its answer."""
    return limit - new_tokens if issubclass(kind, Prompts) else limit


def learn_of(needs: Needs | None) -> Learn:
    """Return which turns of a chat a stage learns."""
    return "all" if needs is None else needs.learn


def answer_tokens(needs: Needs | None) -> int:
    """Return the tokens of the answers that a stage has sampled, at most; 0 where it samples none."""
    found = 0 if needs is None else needs.new_tokens
    return UNSET_ANSWER if found is None else found


def all_text(row: row_texts.Row) -> str:
    """Put together what a row says, without what a chat template adds."""
    values = (row[name] for name in ("prompt", "completion", "messages", "chosen", "rejected", "text") if name in row)
    return "\n".join(row_texts.shown(value) for value in values)


def sequences(
    kind: type[Records], row: row_texts.Row, tokenizer: PreTrainedTokenizerBase, learn: Learn = "all"
) -> Iterator[tuple[str, LabelledTokens]]:
    """Encode a row of a kind; give each of its sequences with its role."""
    if issubclass(kind, Demonstrations):
        yield "demonstration", encoding.demonstration(row, tokenizer, learn)
    elif issubclass(kind, Preferences):
        for side in ("chosen", "rejected"):
            yield side, encoding.side(row, side, tokenizer)
    elif issubclass(kind, Ratings):
        yield "answer", encoding.side(row, "completion", tokenizer)
    elif issubclass(kind, Prompts):
        ids = encoding.prompt_ids(tokenizer, row["prompt"], row.get("tools"))
        yield "prompt", LabelledTokens(ids, [NOT_LEARNT] * len(ids))
    elif issubclass(kind, Text):
        ids = next(encoding.documents([row["text"]], tokenizer))
        yield "text", LabelledTokens(ids, ids)


def count_tokens(desk: Desk, source: Source, model: Source, learn: Learn) -> Counted:
    """Count the tokens of a source's rows by the tokenizer of a policy, or of a reward model, once for each content."""
    seen = (source.fingerprint, source.kind.__name__, source.said(), model.fingerprint, learn)
    note = note_path(rundir.cache_folder(desk.runs), "tokens", VERSION, *seen)
    if facts := read_note(note):
        sides = {side: tuple(Lengths(*row) for row in facts[side]) for side in ("train", "held_out")}
        return Counted(**{**facts, **sides})
    records, opened, audit = desk.open(source), desk.open(model), desk.audits[source.name]
    assert isinstance(records, Records)
    assert isinstance(opened, Policy | RewardModel)
    tokenizer = policy_tokenizer(opened) if isinstance(opened, Policy) else open_tokenizer(opened.path)
    found = count(records, RowCounts(audit.rows, audit.held_out), tokenizer, learn)
    if source.fingerprint and model.fingerprint:
        write_note(note, asdict(found))
    return found
