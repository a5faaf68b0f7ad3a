"""What a stage will be trained on, before it is: tokens, what is cut, and rows as the model sees them.

It is made by the very functions that encode rows for training, so what is shown as learnt is learnt.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from statistics import median
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.check.rendered import Piece, Preview, Sample
from alignkit.contract.kinds import Demonstrations, Policy, Records, Text
from alignkit.contract.settings import Settings
from alignkit.learn import data
from alignkit.learn.counting import Counted, Rows, learn_of, sequences
from alignkit.learn.data import NOT_LEARNT, Tokens
from alignkit.learn.models import open_config, open_tokenizer, positions_of

SAMPLES = 3
FATES: Mapping[type[Records], str] = {
    Text: "go on in a next block; nothing is cut off or left out",
    Demonstrations: "lose their end, or are left out where nothing of the answer remains",
    Records: "are left out whole; none is cut",
}
"""What becomes of a row that is longer than the limit."""
FIRST_BITS = 4
"""The first bar of a histogram has up to 2 ** 4 tokens."""


def preview(policy: Policy, records: Records, settings: Settings, counted: Counted, rows: Rows) -> Preview:
    """Tell what the stage will make of the rows."""
    tokenizer = open_tokenizer(policy.path)
    limit = data.fitting_length(positions_of(open_config(policy.path)), getattr(settings, "max_length", None))
    lengths = sorted(row.longest for row in counted.rows)
    first, learn = islice(records.train(), SAMPLES), learn_of(settings)
    samples = [list(sequences(type(records), row, tokenizer, learn)) for row in first]
    return Preview(
        counted=len(lengths),
        of=rows.train + rows.held_out,
        tokens=sum(row.tokens for row in counted.rows),
        median=median(lengths) if lengths else 0.0,
        most=lengths[99 * (len(lengths) - 1) // 100] if lengths else 0,
        longest=lengths[-1] if lengths else 0,
        limit=limit,
        fate=next(words for kind, words in FATES.items() if isinstance(records, kind)),
        lengths=histogram(lengths),
        special=counted.special,
        same=counted.same,
        over=sum(length > limit for length in lengths),
        samples=tuple(Sample(role, tuple(pieces(tokens, tokenizer))) for row in samples for role, tokens in row),
        steps=steps(type(records), rows.train, settings, counted, limit),
        steps_are="updates" if hasattr(settings, "updates") else "optimiser steps",
    )


def histogram(lengths: Sequence[int]) -> tuple[int, ...]:
    """Count lengths up to 16, 32, 64 and so on, to the bound that holds the longest."""
    places = [max(0, (length - 1).bit_length() - FIRST_BITS) for length in lengths]
    return tuple(places.count(place) for place in range(max(places, default=-1) + 1))


def pieces(tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    """Part a sequence where what is learnt begins or ends."""
    paired = zip(tokens.ids, tokens.labels, strict=True)
    for learnt, group in groupby(paired, key=lambda pair: pair[1] != NOT_LEARNT):
        text: Any = tokenizer.decode([token for token, _ in group])
        yield Piece(text, learnt)


def steps(kind: type[Records], train: int, settings: Any, counted: Counted, limit: int) -> int | None:
    """Tell how many optimiser steps a stage takes over so many rows, raw text in blocks; or how many updates.

    Rows that are too long and will be left out are counted, too. None for a method that has neither batch nor updates.
    """
    if hasattr(settings, "updates"):
        return int(settings.updates)
    batch, epochs = getattr(settings, "batch", None), getattr(settings, "epochs", None)
    if batch is None or epochs is None:
        return None
    sequences = train
    if issubclass(kind, Text):
        sequences = math.ceil(counted.step * sum(row.tokens for row in counted.train) / limit)
    taken: int = math.ceil(epochs * math.ceil(sequences / batch))
    return taken
