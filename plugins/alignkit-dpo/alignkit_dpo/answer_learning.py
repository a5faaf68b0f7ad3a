"""What methods that learn from answers which are good or bad have in common: from ratings to a policy and its results.

A method brings an objective, and what all rows of a step need together before it is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat

from alignkit import Artifact, PairNeeds, Policy, Preferences, Ratings, RecipeError, RowSettings, Stage, pair_needs
from alignkit_dpo.start_logprobs import Start

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.kit import JudgedAnswer


class AnswerSettings(RowSettings):
    """Settings of every method of this package that learns from answers that are good or bad."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate; 5e-7 to 5e-6 for billions of weights, ten times as much with LoRA."""
    beta: PositiveFloat = 0.1
    """The pull back to the start: the smaller, the further the policy may go."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of the good answers' loss."""
    undesirable_weight: PositiveFloat | None = None
    """Weight of the bad answers' loss. Unset: such that all good and all bad answers weigh the same."""
    good_from: float | None = None
    """Where rows have a `rating`: an answer is good from this number on. Unset: above the median."""


@dataclass(frozen=True)
class GoodOrBad:
    """An answer to a prompt, as tokens, and what is known of it."""

    prompt: list[int]
    answer: list[int]
    good: bool
    swapped: list[int] | None = None
    """The answer to another prompt; None where it is not read."""
    start: float = 0.0
    """The start's log-probability of the answer."""
    swapped_start: float = 0.0
    """And of the swapped one to this prompt."""
    anchor: float = 0.0
    """Where a gain counts as none in this step, in nats."""
    share: float = 1.0
    """Share of the step's rows that are on the same side."""


Anchor = Callable[[Any, Sequence[GoodOrBad]], float]
"""From the model before a step and the step's rows to where a gain counts as none, in nats."""


@dataclass(frozen=True)
class AnswerMethod:
    """How a method learns from answers that are good or bad."""

    settings: AnswerSettings
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    """From rewards, who is good (1 or 0) and the anchor's reward, all (n,), to losses (n,) without weights."""
    anchor: Anchor | None = None
    """None: at the start."""
    swaps: float = 0.0
    """Share of the rows whose swapped answers it reads."""
    anchored: str = "objective/kl"
    """What the anchor is, in figures."""
    averaged: bool = False
    """The anchor is the mean of those of all steps so far."""


def needs(settings: AnswerSettings, reads: float) -> PairNeeds:
    """Return what a method will do that reads each answer so often besides."""
    return replace(pair_needs(settings), reads=reads, apart=True)


def unfit(settings: AnswerSettings, inputs: Mapping[str, Sequence[type[Artifact]]]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with settings beside these inputs."""
    if settings.good_from is not None and Preferences in inputs.get("answers", ()):
        yield "the sides of preferences are good and bad, so good_from does nothing", "leave it out"


def learn(method: AnswerMethod, stage: Stage, policy: Policy, answers: Ratings | Preferences) -> Policy:
    """Train a policy on answers that are good or bad, save it, and tell what its held-out answers have gained."""
    from alignkit.kit import in_order_of, in_passes, load_policy, read_answers, sequence_logprobs, train_rows

    settings = method.settings
    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    train, held_out = read_answers(answers, model, tokenizer, settings, stage)
    good_from = threshold(train, settings)
    more_good = balance([is_good(row, good_from) for row in train])
    weights = settings.undesirable_weight or settings.desirable_weight * more_good, settings.desirable_weight
    judged = [GoodOrBad(row.prompt, row.answer, is_good(row, good_from)) for row in train]
    rows = in_order_of(with_start(settings, model, policy, swapped(judged, method.swaps, stage.seed), stage), train)
    before = sequence_logprobs(model, held_out, settings)

    def loss(part: Sequence[GoodOrBad]) -> tuple[Tensor, dict[str, Tensor]]:
        return losses(method, model, part, weights)

    def passes(some: Sequence[GoodOrBad]) -> list[list[int]]:
        return in_passes(model, [row.prompt for row in some], [row.answer for row in some])

    memory = {"steps": 0.0, "mean": 0.0}

    def ahead(some: Sequence[GoodOrBad]) -> list[GoodOrBad]:
        anchor = method.anchor(model, some) if method.anchor else 0.0
        if method.averaged:
            memory["steps"] += 1
            memory["mean"] += (anchor - memory["mean"]) / memory["steps"]
            anchor = memory["mean"]
        good = sum(row.good for row in some) / len(some)
        return [replace(row, anchor=anchor, share=good if row.good else 1 - good) for row in some]

    train_rows(model, rows, loss, settings, stage, passes, before_step=ahead, memory=memory)
    made = stage.save_policy(model, tokenizer)
    gains = sequence_logprobs(model, held_out, settings) - before
    tell(held_out, gains.tolist(), good_from, stage)
    return made


def losses(
    method: AnswerMethod, model: Any, part: Sequence[GoodOrBad], weights: tuple[float, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of each of n answers (n,), and figures whose mean over a step is that over one side of it."""
    import torch

    from alignkit.kit import answer_logprobs, brought

    beta = method.settings.beta
    logprobs = answer_logprobs(model, [row.prompt for row in part], [row.answer for row in part]).sum(dim=1)
    known = torch.tensor([[row.start, row.anchor, row.good, row.share, weights[row.good]] for row in part])
    start, anchor, good, share, weight = brought(known, logprobs.device).unbind(dim=1)
    rewards = beta * (logprobs - start)
    loss = weight * method.loss(rewards, good, beta * anchor)
    sides = {"chosen": good / share, "rejected": (1 - good) / share}
    rewarded = {f"rewards/{name}": rewards.detach() * side for name, side in sides.items()}
    said = {f"logps/{name}": logprobs.detach() * side for name, side in sides.items()}
    margins = rewarded["rewards/chosen"] - rewarded["rewards/rejected"]
    return loss, {**rewarded, "rewards/margins": margins, **said, method.anchored: anchor}


def swapped(rows: Sequence[GoodOrBad], share: float, seed: int) -> list[GoodOrBad]:
    """Return the rows, a share of them with the answer of another one beside their own."""
    order = Random(f"{seed} swapped").sample(range(len(rows)), len(rows))  # noqa: S311
    other = dict(zip(order[: round(share * len(rows))], [*order[1:], *order[:1]], strict=False))
    return [replace(row, swapped=rows[other[n]].answer) if n in other else row for n, row in enumerate(rows)]


def with_start(
    settings: AnswerSettings, model: Any, policy: Policy, rows: Sequence[GoodOrBad], stage: Stage
) -> list[GoodOrBad]:
    """Return the rows with what the start says of them, which is the policy before the first step."""

    def read(part: Sequence[GoodOrBad]) -> list[list[float]]:
        return logprobs_by_prompt(settings, model, [(row.prompt, answers_of(row)) for row in part])

    start = Start(policy, settings, stage, read, lambda row: [row.prompt, *answers_of(row)])
    said, _ = start.says_of(rows, [])
    return [replace(row, start=own, swapped_start=sum(other)) for row, (own, *other) in zip(rows, said, strict=True)]


def answers_of(row: GoodOrBad) -> list[list[int]]:
    """Return a row's answer, and the swapped one where it is read."""
    return [row.answer] if row.swapped is None else [row.answer, row.swapped]


def logprobs_of(settings: RowSettings, model: Any, answers: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Compute the log-probability of each answer to its prompt, without gradient."""
    from alignkit.kit import JudgedAnswer, sequence_logprobs

    rows = [JudgedAnswer(prompt, answer, {}) for prompt, answer in answers]
    computed: list[float] = sequence_logprobs(model, rows, settings).tolist()
    return computed


def logprobs_by_prompt(
    settings: RowSettings, model: Any, asked: Sequence[tuple[list[int], Sequence[list[int]]]]
) -> list[list[float]]:
    """Compute the log-probabilities of several answers to each prompt, without gradient."""
    computed = iter(logprobs_of(settings, model, [(prompt, answer) for prompt, some in asked for answer in some]))
    return [[next(computed) for _ in some] for _, some in asked]


def threshold(answers: Sequence[JudgedAnswer], settings: AnswerSettings) -> float:
    """Return the rating that a good answer exceeds or reaches; of rows with a label that is true.

    Raise RecipeError where labels leave nothing for `good_from` to say.
    """
    if "label" in answers[0].row:
        if settings.good_from is not None:
            raise RecipeError("the answers have labels, so good_from does nothing", "good_from", "leave it out")
        return 1.0
    if settings.good_from is not None:
        return settings.good_from
    return math.nextafter(median(one.row["rating"] for one in answers), math.inf)


def is_good(answer: JudgedAnswer, good_from: float) -> bool:
    return rating_of(answer) >= good_from


def rating_of(answer: JudgedAnswer) -> float:
    """Return an answer's rating; a label counts as 1 or 0."""
    return float(answer.row["label"] if "label" in answer.row else answer.row["rating"])


def balance(labels: Sequence[bool]) -> float:
    """Return how many good answers there are to a bad one. Raise RecipeError where there is but one side."""
    good = sum(labels)
    if not 0 < good < len(labels):
        side = "good" if good else "bad"
        raise RecipeError(f"all answers are {side}", "answers", "give both kinds; `good_from` says where ratings part")
    return good / (len(labels) - good)


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
