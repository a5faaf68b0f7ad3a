"""Pairs that a score is learnt from, and what is told of a reward model that has learnt it."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Preferences, RewardModel
from alignkit.contract.row_settings import ScoreSettings
from alignkit.contract.settings import Precision
from alignkit.contract.stage import Stage
from alignkit.training import parallel
from alignkit.training.answers import Model
from alignkit.training.arithmetic import computing
from alignkit.training.classifiers import score_tokens
from alignkit.training.configs import positions
from alignkit.training.encoded import encode_pairs_once
from alignkit.training.encoding import TokenPair, fitting_length, preferences, report
from alignkit.training.measures import pair_accuracy_floor, share_of_longer
from alignkit.training.mixed_rows import flat, held_out_rows, places_of
from alignkit.training.picking import picked_samples
from alignkit.training.row_texts import prompt_text, shown

ENOUGH = 32
"""So many held-out pairs tell the spread of scores well enough; with fewer, training pairs do."""

PairScores: TypeAlias = list[tuple[float, float]]
"""The scores of the chosen and the rejected answer of each pair."""


class TokenPairRows(NamedTuple):
    """What is learnt from, and what is kept aside."""

    train: Sequence[TokenPair]
    held_out: list[TokenPair]
    sources: Sequence[str] = ()
    """Of a mix, the source of each held-out pair."""


def read_token_pairs(
    pairs: Preferences, model: Model, tokenizer: PreTrainedTokenizerBase, settings: ScoreSettings, stage: Stage
) -> TokenPairRows:
    """Encode pairs, each side whole; one with a side longer than `max_length` is left out, which is counted and told.

    Raises DataError where that takes more than the share `max_lost`, or where no pair is left.
    """
    limit = fitting_length(positions(model), settings.max_length)
    train, lengths = encode_pairs_once(stage, pairs, tokenizer, limit, lambda pair: pair.tokens)
    report(stage, "pairs", lengths, settings.max_lost)
    aside = held_out_rows(pairs, settings.measured)
    held_out, sources = flat({name: preferences(rows, tokenizer, limit)[0] for name, rows in aside.items()})
    return TokenPairRows(train, held_out, sources)


def score_pairs(
    model: Model, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenPair], precision: Precision
) -> PairScores:
    """Score both sides of each pair."""
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    mine = parallel.deal(range(len(sides)))
    with computing(precision):
        found = score_tokens(model, [sides[place] for place in mine], tokenizer)
    scores = parallel.placed(torch.tensor(found, dtype=torch.float64), mine, len(sides)).tolist()
    return list(zip(scores[::2], scores[1::2], strict=True))


def wins(scores: PairScores) -> list[float]:
    """Return for each pair whether the chosen answer scores higher: 1 or 0, and 1/2 for a tie."""
    return [0.5 if chosen == rejected else float(chosen > rejected) for chosen, rejected in scores]


def normalisation(scores: PairScores) -> tuple[float, float]:
    """Return the mean and the spread of all scores; a spread of zero counts as one."""
    flat = [score for pair in scores for score in pair]
    return statistics.fmean(flat), statistics.pstdev(flat) or 1.0


def save_scorer(
    model: Model, tokenizer: PreTrainedTokenizerBase, rows: TokenPairRows, settings: ScoreSettings, stage: Stage
) -> tuple[RewardModel, PairScores]:
    """Save a reward model with the mean and spread of its scores; return it with those of the held-out pairs."""
    scores = score_pairs(model, tokenizer, rows.held_out, settings.precision)
    few, more = len(scores) < ENOUGH, rows.train[: settings.measured]
    spread = score_pairs(model, tokenizer, more, settings.precision) if few else scores
    return stage.save_reward(model, tokenizer, *normalisation(spread)), scores


def tell_scores(stage: Stage, before: PairScores, after: PairScores, rows: TokenPairRows) -> None:
    """Report the accuracy beside that of the better of two judges, who know lengths or words only."""
    if not after:
        stage.warn("no pairs are held out, so accuracy is not measured", "raise the source's held_out")
        return
    sides = ((pair.row for pair in pairs) for pairs in (rows.train, rows.held_out))
    floor, _ = pair_accuracy_floor(share_of_longer(rows.held_out), *sides, cache=stage.cache)
    stage.measure("accuracy", wins(before) or None, wins(after), floor)
    for name, places in places_of(rows.sources).items():
        was, now = ([wins(scores)[place] for place in places] for scores in (before, after))
        stage.measure(f"accuracy/{name}", was, now)
    margins = [chosen - rejected for chosen, rejected in after]
    stage.rows({"margin": margins, "longer": [len(p.chosen) - len(p.rejected) for p in rows.held_out]})


def show_scores(
    stage: Stage, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenPair], scores: PairScores, count: int = 4
) -> None:
    """Show held-out pairs with their scores: so many of those that were told apart best, worst, and of others."""
    for place, kind in picked_samples([chosen - rejected for chosen, rejected in scores[: len(pairs)]], count):
        pair, (chosen, rejected) = pairs[place], scores[place]
        stage.sample(
            {
                "prompt": prompt_text(tokenizer, pair.row["prompt"], pair.row.get("tools")),
                "chosen": shown(pair.row["chosen"]),
                "rejected": shown(pair.row["rejected"]),
                "chosen_score": round(chosen, 4),
                "rejected_score": round(rejected, 4),
            },
            kind,
        )
