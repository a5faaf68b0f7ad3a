"""The loop of methods that learn from given rows, and pairs of answers as it takes them.

A method brings an objective, which gives a loss for each row; the loop does the rest: the order of rows, exact
accumulation over what fits into memory, clipping, the schedule, metrics, checkpoints, resuming, stopping.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Preferences, Ratings
from alignkit.contract.row_settings import RowSettings, TrainingSettings
from alignkit.contract.stage import Stage
from alignkit.errors import RecipeError
from alignkit.training import encoding, parallel, row_texts, sharding
from alignkit.training.answers import Model, answer_logprobs, in_passes, summed_logprobs
from alignkit.training.arithmetic import computing, device
from alignkit.training.configs import positions
from alignkit.training.encoded import encode_pairs_once
from alignkit.training.encoding import LabelledPair, LabelledTokens, LengthReport
from alignkit.training.mixed_rows import ReadRows, flat, held_out_rows, mixed, order_of, values_of
from alignkit.training.rollouts import generator_for
from alignkit.training.row_order import rows_of_step, size_of
from alignkit.training.row_texts import Row
from alignkit.training.snapshots import is_due, snapshots_of
from alignkit.training.step import (
    CommitTimer,
    Learner,
    commit_or_leave,
    load_learner,
    load_learners,
    make_learner,
    read_state,
    save_learners,
    save_weights,
    set_learning_rate,
    take_step,
)

LOGGED_STEPS = 300
"""About so many lines of metrics a stage."""

T = TypeVar("T")
RowLoss = Callable[[Sequence[T]], tuple[Tensor, Mapping[str, Tensor]]]
"""Gives, with gradient, the loss of each of n rows (n,), and metrics of each (n,)."""
Passes = Callable[[Sequence[T]], Sequence[Sequence[int]]]
"""Groups rows into what goes through the model at once."""
BeforeStep = Callable[[Sequence[T]], Sequence[T]]
"""From the rows of a step to those that its loss takes, with the model as it is before the step."""


@dataclass(frozen=True)
class Teaching(Generic[T]):
    """How rows of a kind are learnt from."""

    loss: RowLoss[T]
    passes: Passes[T] | None = None
    """None: rows go one by one."""
    weigh: Callable[[T], int] | None = None
    """What a row counts: the sums of losses and metrics over a step are divided by that of its rows. None: 1."""
    tokens: Callable[[T], int] | None = None
    """How many tokens of a row are read, for the figure `tokens_per_second`."""
    dropout: bool = False
    """It is on, as the model and its adapter have it."""
    before_step: BeforeStep[T] | None = None
    """What a step needs of all its rows together. None: nothing."""
    memory: dict[str, float] = field(default_factory=dict)
    """Numbers that are carried from step to step; checkpoints have them."""


class Answered(NamedTuple):
    """A prompt and an answer to it, as tokens; the answer is closed as the model closes one."""

    prompt: list[int]
    answer: list[int]


class Pair(NamedTuple):
    """Two answers to one prompt, of which the first is preferred."""

    chosen: Answered
    rejected: Answered
    p_chosen: float
    """How likely it is that the chosen one is the better; 1 where the row says nothing of it."""
    row: Row

    @property
    def tokens(self) -> int:
        return sum(map(len, (*self.chosen, *self.rejected)))


class PairRows(NamedTuple):
    """What is learnt from, and what is kept aside."""

    train: Sequence[Pair]
    """Each is read when it is asked for, and none is kept."""
    held_out: Sequence[Pair]


class JudgedAnswer(NamedTuple):
    """An answer to a prompt, as tokens, and its row: `prompt`, `completion`, and a `label` or a `rating`."""

    prompt: list[int]
    answer: list[int]
    row: Row
    texts: tuple[str, str] = ("", "")
    """Both as text, for trainers that make their own tokens; a chat is rendered, and its answer closed."""


class AnswerRows(NamedTuple):
    """What is learnt from, and what is kept aside."""

    train: Sequence[JudgedAnswer]
    held_out: list[JudgedAnswer]


def read_pairs(
    pairs: Preferences, model: Model, tokenizer: PreTrainedTokenizerBase, settings: RowSettings, stage: Stage
) -> PairRows:
    """Encode pairs; one with a side longer than `max_length` is left out, which is counted and told.

    Raises DataError where that takes more than the share `max_lost`, or where no pair is left.
    """
    limit = _limit(model, settings)
    train, lengths = encode_pairs_once(stage, pairs, tokenizer, limit, pair_of)
    encoding.report(stage, "pairs", lengths, settings.max_lost)
    aside = flat(held_out_rows(pairs, settings.measured)).rows
    held_out, _ = encoding.collected(encoding.encode_pairs(aside, tokenizer, limit))
    return PairRows(train, [*map(pair_of, held_out)])


def read_answers(
    answers: Ratings | Preferences,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    settings: RowSettings,
    stage: Stage,
) -> AnswerRows:
    """Encode judged answers; of a pair, the chosen one has the label true, the rejected one false.

    An answer that is longer with its prompt than `max_length` is left out, which is counted and told. Raises DataError
    where that takes more than the share `max_lost`, or where no answer is left.
    """
    limit = _limit(model, settings)

    def read(some: Ratings | Preferences) -> ReadRows[JudgedAnswer]:
        kept, lengths = _judged(_alone(some.train()), tokenizer, limit)
        return ReadRows(kept, lengths, values_of((one.row for one in kept), some))

    train, lengths = mixed(answers, read)
    encoding.report(stage, "answers", lengths, settings.max_lost)
    aside = islice(_alone(iter(flat(held_out_rows(answers, settings.measured)).rows)), settings.measured)
    held_out, _ = _judged(aside, tokenizer, limit)
    return AnswerRows(train, held_out)


def _limit(model: Model, settings: RowSettings) -> int:
    if settings.lora and settings.lora.dropout:
        remedy = "set this stage's lora.dropout to 0"
        raise RecipeError("dropout would make a model differ from itself from pass to pass", "lora.dropout", remedy)
    return encoding.fitting_length(positions(model), settings.max_length)


def _alone(rows: Iterator[Row]) -> Iterator[Row]:
    """Take the answers of pairs one by one."""
    for row in rows:
        if "chosen" not in row:
            yield row
            continue
        shared = {name: row[name] for name in ("prompt", "tools") if name in row}
        for side, label in (("chosen", True), ("rejected", False)):
            yield encoding.at_same_place(row, {**shared, "completion": row[side], "label": label})


def _judged(
    rows: Iterator[Row], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[JudgedAnswer], LengthReport]:
    def judged(row: Row) -> JudgedAnswer:
        texts = row_texts.answered_text(row["prompt"], row["completion"], tokenizer, row.get("tools"))
        return JudgedAnswer(*_side(row, "completion", tokenizer), row, texts)

    return encoding.fitting(rows, limit, judged, lambda one: len(one.prompt) + len(one.answer))


def pair_of(pair: LabelledPair) -> Pair:
    """Return an encoded pair with its answers cut from its prompt."""
    chosen, rejected = (_parted(tokens) for tokens in (pair.chosen, pair.rejected))
    return Pair(chosen, rejected, pair.row.get("p_chosen", 1.0), pair.row)


def _side(row: Row, side: str, tokenizer: PreTrainedTokenizerBase) -> Answered:
    return _parted(encoding.side(row, side, tokenizer))


def _parted(tokens: LabelledTokens) -> Answered:
    ids, labels = tokens
    start = next(place for place, label in enumerate(labels) if label != encoding.NOT_LEARNT)
    return Answered(ids[:start], ids[start:])


def pair_logprobs(model: Model, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Compute, with gradient, the log-probabilities of chosen and of rejected answers, both (n, t).

    The two answers to a prompt share its computation.
    """
    sides = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    table = answer_logprobs(model, [side.prompt for side in sides], [side.answer for side in sides])
    return table[: len(pairs)], table[len(pairs) :]


def sequence_logprobs(model: Model, answers: Sequence[Answered | JudgedAnswer], settings: RowSettings) -> Tensor:
    """Compute the log-probability of each answer (n,), without gradient."""
    with computing(settings.precision):
        return summed_logprobs(model, [one.prompt for one in answers], [one.answer for one in answers])


def pair_passes(model: Model, pairs: Sequence[Pair]) -> list[list[int]]:
    """Group pairs into what goes through a model at once."""
    together = [[*pair.chosen.answer, *pair.rejected.answer] for pair in pairs]
    return in_passes(model, [pair.chosen.prompt for pair in pairs], together)


def train_pairs(
    model: Model,
    pairs: Sequence[Pair],
    loss: RowLoss[Pair],
    settings: RowSettings,
    stage: Stage,
    *,
    part: str = "",
    before_step: BeforeStep[Pair] | None = None,
) -> None:
    """Train a model on pairs as `train_rows` does."""

    def passes(some: Sequence[Pair]) -> list[list[int]]:
        return pair_passes(model, some)

    train_rows(model, pairs, loss, settings, stage, passes, part=part, before_step=before_step)


def train_rows(
    model: Model,
    rows: Sequence[T],
    loss: RowLoss[T],
    settings: TrainingSettings,
    stage: Stage,
    passes: Passes[T] | None = None,
    *,
    part: str = "",
    before_step: BeforeStep[T] | None = None,
    memory: dict[str, float] | None = None,
) -> None:
    """Train a model on rows by the mean of their losses, from the checkpoint that the stage goes on from, if any.

    Every epoch shuffles the rows anew, or is one of their mix. `passes` groups the rows of a step into what goes
    through the model at once, which changes memory and time and nothing else; without it they go one by one.
    `before_step` is for a loss that needs something of all rows of a step together: it gets them, in every process, and
    returns them as the loss takes them. `memory` are numbers that it carries from step to step: checkpoints have them,
    and they are put back where a stage goes on.

    A stage with several loops (rounds of sampling and learning, say) gives each a `part`, a name of its own, and calls
    them in the same order in every attempt: what is finished is then not learnt again. Several processes share the
    passes of a step. Raise StageError where a second loop has no name of its own.
    """
    teach(
        model,
        rows,
        Teaching(loss, passes, before_step=before_step, memory={} if memory is None else memory),
        settings,
        stage,
        part,
    )


def teach(
    model: Model, rows: Sequence[T], teaching: Teaching[T], settings: TrainingSettings, stage: Stage, part: str = ""
) -> None:
    """Train a model on rows as `train_rows` says. Afterwards it has no gradients, and dropout is off."""
    parallel.check(stage)
    order = order_of(rows)
    of = math.ceil(settings.epochs * math.ceil(size_of(order) / settings.batch))
    before = stage.begin_part(part, of)
    rate = settings.learning_rate or rate_for(model)
    learner = make_learner(model.train(teaching.dropout), rate, settings.optimisation)
    done, timer = _go_on(stage, learner, part, before + of, teaching.memory), CommitTimer()
    every = max(1, of // LOGGED_STEPS)
    count = snapshots_of(settings)

    def write(folder: Path) -> None:
        facts = {"part": part, "before": before, "done": learner.steps, "memory": teaching.memory}
        save_learners(folder, {"model": learner}, facts)

    for step in range(done, of):
        batch = [rows[row] for row in rows_of_step(order, step, settings.batch, stage.seed, part)]
        set_learning_rate(learner, step, of)
        with _draws(stage.seed, part, step) if teaching.dropout else nullcontext():
            metrics = _take_step(learner, batch, teaching, settings)
        if (step + 1) % every == 0 or step + 1 == of:
            stage.log(before + step + 1, before + of, metrics)
        if is_due(step + 1, of, count):
            stage.save_snapshot(before + step + 1, model)
        commit_or_leave(stage, before + step + 1, write, timer)
    if part and (done < of or not parallel.agreed(_end_of(stage, part).is_file())):
        save_weights(learner, _end_of(stage, part))
        stage.commit(before + of, write)
    model.eval().zero_grad(set_to_none=True)


def _take_step(
    learner: Learner, batch: Sequence[T], teaching: Teaching[T], settings: TrainingSettings
) -> dict[str, float]:
    """Take one step on a batch, and give its figures."""
    began = time.perf_counter()
    batch = teaching.before_step(batch) if teaching.before_step else batch
    groups = teaching.passes(batch) if teaching.passes else [[row] for row in range(len(batch))]
    weight = sum(map(teaching.weigh, batch)) if teaching.weigh else len(batch)

    def objective(part: Sequence[T]) -> tuple[Tensor, Mapping[str, Tensor]]:
        with computing(settings.precision):
            losses, metrics = teaching.loss(part)
        return losses.sum() / weight, {name: values.sum() / weight for name, values in metrics.items()}

    metrics = take_step(learner, [[batch[row] for row in group] for group in groups], objective)
    seconds = time.perf_counter() - began
    metrics |= {"learning_rate": learner.learning_rate, "rows_per_second": len(batch) / seconds}
    return metrics | ({"tokens_per_second": sum(map(teaching.tokens, batch)) / seconds} if teaching.tokens else {})


@contextmanager
def _draws(seed: int, part: str, step: int) -> Iterator[None]:
    """Let dropout draw random numbers that belong to a step, and to this process's share of it."""
    here = device()
    with torch.random.fork_rng(devices=[here] if here.type == "cuda" else []):
        torch.manual_seed(generator_for(seed, part, "dropout", step, parallel.rank()).initial_seed())
        yield


def rate_for(model: Model) -> float:
    """Return a peak learning rate by the model's size: 1e-3 for a million weights, 1e-4 for 100 million, 1e-5 for 10
    billion, and ten times as much where an adapter learns. What people use for models of these sizes lies within a
    factor of three of it.
    """
    weights = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)
    return float((10.0 if isinstance(model, PeftModel) else 1.0) / math.sqrt(weights))


def _go_on(stage: Stage, learner: Learner, part: str, end: int, memory: dict[str, float]) -> int:
    """Put a learner and its memory into the state in which an earlier attempt left its part, and return how many steps
    are done."""
    latest = stage.latest()
    facts = read_state(latest) if latest else {}
    if latest and facts["part"] == part:
        memory.update(facts["memory"])
        return int(load_learners(latest, {"model": learner})["done"])
    if latest and facts["before"] >= end:  # it is of a later part, so this one is finished
        load_learner(learner, _end_of(stage, part))
    return learner.steps


def _end_of(stage: Stage, part: str) -> Path:
    """Return where the weights lie that a part ended with."""
    return stage.folder / f"{part}.safetensors"


@torch.no_grad()
def map_pairs(
    model: Model, pairs: Sequence[Pair], compute: Callable[[Sequence[Pair]], Tensor], settings: RowSettings
) -> Tensor:
    """Compute something of each pair (n, ...) without gradient, as many at once as fit."""
    if not pairs:
        return torch.empty(0)
    mine = parallel.deal_weighted(pair_passes(model, pairs))
    with computing(settings.precision):
        parts = [compute([pairs[row] for row in group]) for group, _ in mine]
    sharding.part_again(model)
    rows = [row for group, counts in mine if counts for row in group]
    return parallel.placed(torch.cat(parts)[: len(rows)], rows, len(pairs))
