"""Measures on held-out rows: what a stage tells before and after."""

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.contract.events import Certainty
from alignkit.contract.settings import Precision
from alignkit.contract.stage import Stage
from alignkit.data.floors import TRAIN, difference, words_win
from alignkit.noise import Interval, ratio_interval
from alignkit.store.notes import note_path, read_note, write_note
from alignkit.training import parallel, sharding
from alignkit.training.arithmetic import computing, evaluating, padded
from alignkit.training.encoding import NOT_LEARNT, LabelledTokens, TokenPair
from alignkit.training.mixed_rows import places_of
from alignkit.training.row_texts import Row, shown

LOGITS_IN_A_PASS = 2**25
"""128 MB in fp32."""
ROWS_IN_A_PASS = 64


class Perplexity(NamedTuple):
    """exp of the mean negative log-likelihood of all learnt tokens together, from what each row adds to it."""

    losses: list[float]
    """In nats, the sum of each row's."""
    tokens: list[int]
    """How many, of each row."""

    @property
    def value(self) -> float:
        """NaN where there are no tokens."""
        count = sum(self.tokens)
        return _exp(sum(self.losses) / count) if count else math.nan

    @property
    def interval(self) -> Interval | None:
        """95 %, over the rows."""
        around = ratio_interval(self.losses, self.tokens)
        return around and (_exp(around[0]), _exp(around[1]))

    def of(self, places: Sequence[int]) -> "Perplexity":
        """Return that of some of the rows."""
        return Perplexity([self.losses[place] for place in places], [self.tokens[place] for place in places])

    def change_from(self, before: "Perplexity") -> Interval | None:
        """Return the 95 % interval around what it has changed since `before`, of the same rows."""
        gains = [now - was for now, was in zip(self.losses, before.losses, strict=True)]
        around = ratio_interval(gains, self.tokens)
        return around and (before.value * (_exp(around[0]) - 1), before.value * (_exp(around[1]) - 1))


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def perplexity(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[LabelledTokens],
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision = "auto",
) -> Perplexity:
    """Measure the negative log-likelihood of each row's learnt tokens.

    The first token of a row has nothing before it and is not counted.
    """
    sums = torch.zeros(len(rows), 2, dtype=torch.float64)
    groups = _together(rows, int(model.config.get_text_config().vocab_size))
    with evaluating(model), computing(precision):
        for group, counts in parallel.deal_weighted(groups):
            ids, mask = padded([rows[place].ids for place in group], tokenizer.pad_token_id, model.device)
            labels, _ = padded([rows[place].labels for place in group], NOT_LEARNT, model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            targets = labels[:, 1:].flatten()
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), targets, ignore_index=NOT_LEARNT, reduction="none"
            )
            by_row = torch.stack([losses.view(len(group), -1), (targets != NOT_LEARNT).view(len(group), -1)])
            sums[group] += counts * by_row.sum(dim=2).T.to("cpu", torch.float64)
    sharding.part_again(model)
    losses_of, tokens = parallel.add_up(sums).T.tolist()
    return Perplexity(losses_of, list(map(int, tokens)))


def _together(rows: Sequence[LabelledTokens], vocabulary: int) -> list[list[int]]:
    """Group rows of like length, by their places, into what goes through a model at once."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    most, groups = min(ROWS_IN_A_PASS, parallel.share(len(rows))), list[list[int]]()
    while order:
        longest = len(rows[order[min(most, len(order)) - 1]].ids)
        size = max(1, min(most, LOGITS_IN_A_PASS // (vocabulary * longest)))
        groups.append(order[:size])
        order = order[size:]
    return groups


def tell_perplexity(stage: Stage, before: Perplexity | None, after: Perplexity, sources: Sequence[str] = ()) -> None:
    """Report the perplexity of held-out text, of several sources also of each, and warn where training has not
    lowered it.
    """
    was, now = before and before.value, after.value
    _tell_one(stage, "perplexity", before, after)
    for name, places in places_of(sources).items():
        _tell_one(stage, f"perplexity/{name}", before and before.of(places), after.of(places))
    if was is not None and now >= was:
        problem = f"the perplexity of held-out text has not fallen ({was:.4g} -> {now:.4g})"
        stage.warn(problem, "lower the learning rate, train for fewer epochs, or look at the data")


def _tell_one(stage: Stage, name: str, before: Perplexity | None, after: Perplexity) -> None:
    certainty = Certainty(interval=after.interval, change=before and after.change_from(before), better="lower")
    stage.result(name, before and before.value, after.value, rows=len(after.tokens), **certainty)


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
