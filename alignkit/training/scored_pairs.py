"""Pairs that a score is learnt from, and what is told of a reward model that has learnt it."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Preferences, RewardModel
from alignkit.contract.row_settings import ScoreSettings
from alignkit.contract.settings import Precision
from alignkit.contract.stage import Stage
from alignkit.training import parallel
from alignkit.training.answers import Model
from alignkit.training.arithmetic import computing
from alignkit.training.classifiers import token_logits
from alignkit.training.configs import positions
from alignkit.training.encoded import encode_pairs_once
from alignkit.training.encoding import TokenPair, fitting_length, preferences, report
from alignkit.training.measures import pair_accuracy_floor, share_of_longer
from alignkit.training.mixed_rows import flat, held_out_rows, places_of
from alignkit.training.models import heads_of
from alignkit.training.picking import picked_samples
from alignkit.training.reward_ensemble import spread_of
from alignkit.training.row_texts import prompt_text, shown
from alignkit.training.weight_files import scale_of

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
    """Score both sides of each pair; a model with several heads gives the mean of theirs."""
    return means(score_by_head(model, tokenizer, pairs, precision))


def score_by_head(
    model: Model, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenPair], precision: Precision
) -> Tensor:
    """Score both sides of each pair by each head (n, 2, heads)."""
    sides, heads = [side for pair in pairs for side in (pair.chosen, pair.rejected)], heads_of(model)
    mine = parallel.deal(range(len(sides)))
    with computing(precision):
        found = token_logits(model, [sides[place] for place in mine], tokenizer)
    scores = torch.tensor(found, dtype=torch.float64).view(len(mine), heads)
    return parallel.placed(scores, mine, len(sides)).view(len(pairs), 2, heads)


def means(by_head: Tensor) -> PairScores:
    """Return the scores of pairs of which those by each head are given (n, 2, heads)."""
    return [(chosen, rejected) for chosen, rejected in by_head.mean(dim=2).tolist()]


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
    made, by_head = save_heads(model, tokenizer, rows, settings, stage)
    return made, means(by_head)


def save_heads(
    model: Model, tokenizer: PreTrainedTokenizerBase, rows: TokenPairRows, settings: ScoreSettings, stage: Stage
) -> tuple[RewardModel, Tensor]:
    """Save a reward model as `save_scorer` does; return it with the scores of the held-out pairs (n, 2, heads)."""
    scores = score_by_head(model, tokenizer, rows.held_out, settings.precision)
    few, more = len(scores) < ENOUGH, rows.train[: settings.measured]
    known = score_by_head(model, tokenizer, more, settings.precision) if few else scores
    mean, std = normalisation(means(known))
    heads: list[float] = known.mean(dim=(0, 1)).tolist() if known.shape[2] > 1 else []
    return stage.save_reward(model, tokenizer, mean, std, heads), scores


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


def tell_heads(stage: Stage, made: RewardModel, by_head: Tensor) -> None:
    """Report how well each head tells held-out pairs apart, and how far heads differ; scores are (n, 2, heads)."""
    if not len(by_head):
        return
    for head, scores in enumerate(by_head.unbind(dim=2), start=1):
        stage.measure(f"accuracy of head {head}", None, wins([(one, other) for one, other in scores.tolist()]))
    scale = scale_of(made.path)
    scores = ((by_head - by_head.new_tensor(scale.heads)) / scale.std).flatten(0, 1)  # (2n, heads)
    differing = spread_of(scores, scores.new_ones(scores.shape[1])).view(-1, 2).mean(dim=1)
    stage.measure("spread of heads", None, differing.tolist(), better="")


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
