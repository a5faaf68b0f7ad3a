"""KTO: learn from answers that are good or bad by themselves; no two of them need answer the same prompt.

Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306) takes the DPO reward of an answer, beta times
the log-probability by which the policy exceeds its start, and pushes it above (good) or below (bad) a zero point: beta
times the KL divergence from the start, estimated on answers swapped between the prompts of `kl_rows` rows.

The trainer is TRL's, driven as a stage: an example of how any trainer of TRL or transformers becomes a method. It
takes text, and makes its own tokens of it; ours tell beforehand what does not fit, and render chats.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from random import Random
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, PositiveFloat

from alignkit import Policy, Preferences, Ratings, RecipeError, RowSettings, Stage, TrainerNeeds, method, trainer_needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from alignkit.kit import JudgedAnswer


READS = 6
"""How often an answer is read besides: with a swapped one, by policy and start, and by the start once before."""


class KTOSettings(RowSettings):
    """Settings of `kto`."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate; 5e-7 to 5e-6 for billions of weights, ten times as much with LoRA."""
    beta: PositiveFloat = 0.1
    """The pull back to the start: the smaller, the further the policy may go."""
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto`: the paper's. `apo_zero_unpaired`: zero point at the start, for good answers that are better than the
    policy's own (arXiv 2408.06266)."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of the good answers' loss."""
    undesirable_weight: PositiveFloat | None = None
    """Weight of the bad answers' loss. Unset: such that all good and all bad answers weigh the same."""
    good_from: float | None = None
    """Where rows have a `rating`: an answer is good from this number on. Unset: above the median."""
    kl_rows: int = Field(default=8, ge=2)
    """Rows between which answers are swapped to estimate the KL divergence; they go through the model at once."""


def needs(settings: KTOSettings) -> TrainerNeeds:
    """Return what TRL's trainer will do: each answer and a swapped one, both read by the start before."""
    return replace(
        trainer_needs(settings), max_lost=settings.max_lost, rows_at_once=settings.kl_rows, reads=READS, apart=True
    )


@method("kto", needs=needs, results=("auc",))
def kto(settings: KTOSettings, stage: Stage, *, policy: Policy, answers: Ratings | Preferences) -> Policy:
    """Learn from answers that are good or bad by themselves, without pairs and without a reward model."""
    from trl import KTOConfig, KTOTrainer

    from alignkit.kit import run_trainer

    ready = prepare(settings, stage, policy, answers)
    run_trainer(lambda: KTOTrainer(args=KTOConfig(**ready.options), **ready.arguments), stage)
    return finish(ready, settings, stage)


class Ready(NamedTuple):
    """What the trainer is made of, and what is measured once it is done."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    options: dict[str, Any]
    """Of TRL's config class."""
    arguments: dict[str, Any]
    """Of the trainer itself."""
    held_out: Sequence[JudgedAnswer]
    before: Tensor
    """Log-probabilities of the held-out answers (n,)."""
    good_from: float
    """The rating that a good answer reaches."""


def prepare(settings: KTOSettings, stage: Stage, policy: Policy, answers: Ratings | Preferences) -> Ready:
    """Open what the stage names, and lay answers out for the trainer. Raises RecipeError where groups do not fit."""
    from datasets import Dataset

    from alignkit.kit import load_policy, read_answers, seen_by_all, sequence_logprobs, trainer_options

    if settings.batch % settings.kl_rows:
        remedy = f"set it to a multiple of {settings.kl_rows}"
        raise RecipeError(f"{settings.batch} answers do not split into groups of kl_rows", "batch", remedy)
    if settings.kl_rows % stage.world:
        remedy = f"set it to a multiple of {stage.world}"
        raise RecipeError(f"{settings.kl_rows} answers cannot be shared by {stage.world} processes", "kl_rows", remedy)
    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    start = load_policy(policy, precision=settings.precision)[0] if settings.lora else None
    train, held_out = read_answers(answers, model, tokenizer, settings, stage)
    good_from = threshold(train, settings)
    before = sequence_logprobs(model, held_out, settings)
    rows = [train[place] for place in order_of_rows(len(train), settings, stage.seed)]
    reader, columns = texts_for_trainer(rows, tokenizer)
    labels = [is_good(row, good_from) for row in rows]
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    options = trainer_options(model, stage, settings, len(rows), longest) | {
        "per_device_train_batch_size": settings.kl_rows // stage.world,
        "gradient_accumulation_steps": settings.batch // settings.kl_rows,
        "precompute_ref_log_probs": True,
        "max_length": None,
        "beta": settings.beta,
        "loss_type": settings.loss,
        "desirable_weight": settings.desirable_weight,
        "undesirable_weight": settings.undesirable_weight or settings.desirable_weight * balance(labels),
    }
    data = seen_by_all(Dataset.from_dict({**columns, "label": labels}), stage)
    arguments = {"model": model, "ref_model": start, "train_dataset": data, "processing_class": reader}
    return Ready(model, tokenizer, options, arguments, held_out, before, good_from)


def finish(ready: Ready, settings: KTOSettings, stage: Stage) -> Policy:
    """Save the policy, and tell what its held-out answers have gained."""
    from alignkit.kit import sequence_logprobs

    made = stage.save_policy(ready.model, ready.tokenizer)
    gains = sequence_logprobs(ready.model, ready.held_out, settings) - ready.before
    tell(ready.held_out, gains.tolist(), ready.good_from, stage)
    return made


def texts_for_trainer(
    rows: Sequence[JudgedAnswer], tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedTokenizerBase, dict[str, list[Any]]]:
    """Return the trainer's tokenizer and its columns: strings as they stand, chats as our own text.

    A chat is rendered already, so it goes as two turns to a template that puts contents one behind the other: what is
    asked, what is answered and what ends it is then the same in all methods.
    """
    names = ("prompt", "completion")
    if all(isinstance(row.row[name], str) for row in rows for name in names):
        return tokenizer, {name: [row.row[name] for row in rows] for name in names}
    end = str(tokenizer.eos_token)
    closed = [row.answer[-1] == tokenizer.eos_token_id and not row.texts[1].endswith(end) for row in rows]
    return verbatim(tokenizer), {
        "prompt": [[{"role": "user", "content": row.texts[0]}] for row in rows],
        "completion": [
            [{"role": "assistant", "content": row.texts[1] + (end if ended else "")}]
            for row, ended in zip(rows, closed, strict=True)
        ],
    }


def verbatim(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose template puts contents one behind the other, for chats that are rendered already."""
    reader = copy.deepcopy(tokenizer)
    reader.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return reader


def threshold(answers: Sequence[JudgedAnswer], settings: KTOSettings) -> float:
    """Return the rating that a good answer exceeds or reaches; of rows with a label that is true."""
    if "label" in answers[0].row:
        return 1.0
    if settings.good_from is not None:
        return settings.good_from
    return math.nextafter(median(one.row["rating"] for one in answers), math.inf)


def is_good(answer: JudgedAnswer, good_from: float) -> bool:
    return float(answer.row["label"] if "label" in answer.row else answer.row["rating"]) >= good_from


def balance(labels: Sequence[bool]) -> float:
    """Return how many good answers there are to a bad one; raises RecipeError where there is but one side."""
    good = sum(labels)
    if not 0 < good < len(labels):
        side = "good" if good else "bad"
        raise RecipeError(f"all answers are {side}", "answers", "give both kinds; `good_from` says where ratings part")
    return good / (len(labels) - good)


def order_of_rows(rows: int, settings: KTOSettings, seed: int) -> list[int]:
    """Shuffle each epoch anew; the last group is filled up, since an answer cannot be swapped with none."""
    epochs = [Random(f"{seed} {epoch}").sample(range(rows), rows) for epoch in range(math.ceil(settings.epochs))]  # noqa: S311
    order = [row for epoch in epochs for row in epoch][: max(1, round(settings.epochs * rows))]
    lacking = -len(order) % settings.kl_rows
    return order + (order * settings.kl_rows)[:lacking]


def tell(answers: Sequence[JudgedAnswer], gains: Sequence[float], good_from: float, stage: Stage) -> None:
    """Report how often a good held-out answer has gained more than a bad one (the area under the ROC curve)."""
    from alignkit.kit import area_interval

    labels = [is_good(answer, good_from) for answer in answers]
    if len(set(labels)) < 2:
        stage.warn("good and bad answers are not both held out, so nothing is measured", "raise the source's held_out")
        return
    after, floor = area(gains, labels), area([len(answer.answer) for answer in answers], labels)
    good, bad = ([gain for gain, label in zip(gains, labels, strict=True) if label is side] for side in (True, False))
    interval = area_interval(good, bad)
    change = interval and (interval[0] - 0.5, interval[1] - 0.5)
    stage.result("auc", 0.5, after, floor, len(answers), interval=interval, change=change)


def area(values: Sequence[float], labels: Sequence[bool]) -> float:
    """Return the area under the ROC curve: how often a good answer's value exceeds a bad one's, ties half."""
    good = [value for value, label in zip(values, labels, strict=True) if label]
    bad = [value for value, label in zip(values, labels, strict=True) if not label]
    return fmean((one > other) + 0.5 * (one == other) for one in good for other in bad)
