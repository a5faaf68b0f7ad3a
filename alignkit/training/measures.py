"""Measures on held-out rows: what a stage tells before and after."""

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.contract.settings import Precision
from alignkit.contract.stage import Stage
from alignkit.data.floors import TRAIN, difference, words_win
from alignkit.store.notes import note_path, read_note, write_note
from alignkit.training import parallel, sharding
from alignkit.training.arithmetic import computing, evaluating, padded
from alignkit.training.encoding import NOT_LEARNT, LabelledTokens, Row, TokenPair, shown

LOGITS_IN_A_PASS = 2**25
"""128 MB in fp32."""
ROWS_IN_A_PASS = 64


def perplexity(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[LabelledTokens],
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision = "auto",
) -> float:
    """Measure exp of the mean negative log-likelihood over all learnt tokens together; NaN where there are none.

    The first token of a row has nothing before it and is not counted.
    """
    sums = {"loss": 0.0, "tokens": 0.0}
    groups = _together(rows, int(model.config.get_text_config().vocab_size))
    with evaluating(model), computing(precision):
        for group, counts in parallel.deal_weighted(groups):
            ids, mask = padded([row.ids for row in group], tokenizer.pad_token_id, model.device)
            labels, _ = padded([row.labels for row in group], NOT_LEARNT, model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            targets = labels[:, 1:].flatten()
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), targets, ignore_index=NOT_LEARNT, reduction="sum"
            )
            sums["loss"] += counts * float(losses)
            sums["tokens"] += counts * int((targets != NOT_LEARNT).sum())
    sharding.part_again(model)
    sums = parallel.add_metrics(sums)
    total, count = sums["loss"], sums["tokens"]
    return math.exp(min(total / count, 700.0)) if count else math.nan


def _together(rows: Sequence[LabelledTokens], vocabulary: int) -> list[list[LabelledTokens]]:
    """Group rows of like length into what goes through a model at once."""
    order = sorted(rows, key=lambda row: len(row.ids))
    most, groups = min(ROWS_IN_A_PASS, parallel.share(len(rows))), list[list[LabelledTokens]]()
    while order:
        longest = len(order[min(most, len(order)) - 1].ids)
        size = max(1, min(most, LOGITS_IN_A_PASS // (vocabulary * longest)))
        groups.append(order[:size])
        order = order[size:]
    return groups


def tell_perplexity(stage: Stage, before: float | None, after: float, rows: int | None = None) -> None:
    """Report the perplexity of held-out text, and warn where training has not lowered it."""
    stage.result("perplexity", before, after, rows=rows)
    if before is not None and after >= before:
        problem = f"the perplexity of held-out text has not fallen ({before:.4g} -> {after:.4g})"
        stage.warn(problem, "lower the learning rate, train for fewer epochs, or look at the data")


class Floor(NamedTuple):
    """What needs no understanding reaches on held-out pairs."""

    accuracy: float
    judge: str
    """`length` or `words`."""


WORDS_VERSION = 1
"""Raised when the classifier of words changes."""


def pair_accuracy_floor(
    longer: float, train: Iterable[Row], held_out: Iterable[Row], *, cache: Path | None = None
) -> Floor:
    """Return the better of two judges of held-out pairs: who takes the longer answer (`longer`), and a classifier of
    words that has learnt from the first rows that are learnt from.

    Rows have `chosen` and `rejected`, strings or chats. The classifier takes seconds for long answers: what came of the
    same rows before lies in the `cache`, where one is given (`stage.cache`).
    """
    sides = (islice(train, TRAIN), held_out)
    texts = [[(shown(row["chosen"]), shown(row["rejected"])) for row in side] for side in sides]
    note = note_path(cache, "words", WORDS_VERSION, texts) if cache else None
    known = read_note(note) if note else {}
    words = known["words"] if "words" in known else words_win(*([difference(*pair) for pair in side] for side in texts))
    if note and not known:
        write_note(note, {"words": words})
    return Floor(longer, "length") if words is None or words <= longer else Floor(words, "words")


def share_of_longer(pairs: Sequence[TokenPair]) -> float:
    """Return how often the chosen side is the longer one, ties counting half: what a judge by length alone reaches."""
    wins = [0.5 if len(p.chosen) == len(p.rejected) else float(len(p.chosen) > len(p.rejected)) for p in pairs]
    return sum(wins) / len(wins)
