"""What a stage will be trained on, before it is: tokens, what is cut, and rows as the model sees them.

It is made by the very functions that encode rows for training, so what is shown as learnt is learnt.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice
from statistics import median
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Demonstrations, Policy, Records, Text
from alignkit.contract.needs import EvaluationNeeds, Needs, RowNeeds, SamplingNeeds
from alignkit.errors import DataError
from alignkit.estimate.counting import (
    Counted,
    Fate,
    RowCounts,
    answer_tokens,
    fate_of,
    learn_of,
    one_by_one,
    room,
    sequences,
    takes_apart,
)
from alignkit.estimate.preview import Piece, Preview, RenderedSample
from alignkit.training import encoding
from alignkit.training.configs import open_config, positions_of
from alignkit.training.encoding import NOT_LEARNT, LabelledTokens
from alignkit.training.templates import Learn
from alignkit.training.tokenizers import policy_tokenizer

SAMPLES = 3
FIRST_BITS = 4
"""The first bar of a histogram has up to 2 ** 4 tokens."""


def preview(policy: Policy, records: Records, needs: Needs | None, counted: Counted, rows: RowCounts) -> Preview:
    """Return what a stage with these needs will make of the rows; an evaluation reads those held out and no others."""
    aside = isinstance(needs, EvaluationNeeds)
    tokenizer = policy_tokenizer(policy)
    limit = encoding.fitting_length(positions_of(open_config(policy.path)), needs.max_length if needs else None)
    longest = room(type(records), limit, answer_tokens(needs))
    read = one_by_one(needs, type(records), counted.held_out if aside else counted.rows)
    lengths, fate = sorted(row.longest for row in read), fate_of(type(records), read, longest)
    samples = islice(_samples(records, tokenizer, learn_of(needs), aside), SAMPLES)
    return Preview(
        counted=len(lengths),
        of=rows.held_out if aside else rows.train + rows.held_out,
        tokens=sum(row.tokens for row in read),
        median=median(lengths) if lengths else 0.0,
        most=lengths[99 * (len(lengths) - 1) // 100] if lengths else 0,
        longest=lengths[-1] if lengths else 0,
        limit=limit,
        room=longest,
        fate=words_on(type(records), fate),
        lengths=histogram(lengths),
        special=counted.special,
        same=counted.same,
        refused=counted.refused,
        over=fate.over,
        samples=tuple(
            RenderedSample(role, tuple(pieces(tokens, tokenizer))) for row in samples for role, tokens in row
        ),
        steps=steps(type(records), rows.train, needs, counted, limit),
        steps_are="updates" if isinstance(needs, SamplingNeeds) else "optimiser steps",
    )


def _samples(
    records: Records, tokenizer: PreTrainedTokenizerBase, learn: Learn, aside: bool
) -> Iterator[list[tuple[str, LabelledTokens]]]:
    """Yield the rows that the chat template does not refuse."""
    for row in records.held_out() if aside else records.train():
        with suppress(DataError):
            yield list(sequences(type(records), row, tokenizer, learn))


def words_on(kind: type[Records], fate: Fate) -> str:
    """Return what becomes of rows that are too long."""
    if issubclass(kind, Text):
        return "go on in a next block; nothing is cut off or left out"
    if not issubclass(kind, Demonstrations):
        return "are left out whole; none is cut"
    cut = fate.over - fate.left_out
    parts = [f"{cut} lose their end" if fate.left_out else "lose their end"] if cut else []
    left_out = f"{fate.left_out} are left out, since nothing of the answer would remain" if fate.left_out else ""
    return " and ".join([*parts, left_out] if left_out else parts)


def histogram(lengths: Sequence[int]) -> tuple[int, ...]:
    """Count lengths up to 16, 32, 64 and so on, to the bound that holds the longest."""
    places = [max(0, (length - 1).bit_length() - FIRST_BITS) for length in lengths]
    return tuple(places.count(place) for place in range(max(places, default=-1) + 1))


def pieces(tokens: LabelledTokens, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    """Part a sequence where what is learnt begins or ends."""
    paired = zip(tokens.ids, tokens.labels, strict=True)
    for learnt, group in groupby(paired, key=lambda pair: pair[1] != NOT_LEARNT):
        text: Any = tokenizer.decode([token for token, _ in group])
        yield Piece(text, learnt)


def steps(kind: type[Records], train: int, needs: Needs | None, counted: Counted, limit: int) -> int | None:
    """Return how many optimiser steps a stage takes over so many rows, raw text in blocks; or how many updates.

    Rows that are too long and will be left out are counted, too. None for a method that does not say.
    """
    if isinstance(needs, SamplingNeeds):
        return needs.updates
    if not isinstance(needs, RowNeeds):
        return None
    sequences = 2 * train if takes_apart(needs, kind) else train
    if issubclass(kind, Text):
        sequences = math.ceil(counted.step * sum(row.tokens for row in counted.train) / limit)
    taken: int = math.ceil(needs.epochs * math.ceil(sequences / needs.batch))
    return taken
