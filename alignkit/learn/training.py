"""The loop's inside: one exact optimiser step over any number of micro-batches.

An objective is `(batch) -> (loss, figures)`, its loss already divided by the count of the *whole* step, so that the
micro-batches' losses, gradients and figures simply add up.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from alignkit.contract.settings import Optimisation
from alignkit.errors import NotFiniteError

Batch = TypeVar("Batch")
Objective = Callable[[Batch], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass
class Learner:
    """A model in training: what steps its weights, and how many steps it took."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    peak: float
    """The learning rate that the schedule scales."""
    settings: Optimisation
    steps: int = 0

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def make_learner(model: nn.Module, learning_rate: float, settings: Optimisation, eps: float = 1e-8) -> Learner:
    """Prepare to train those weights of the model that want a gradient, by AdamW."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return Learner(model, optimizer, learning_rate, settings)


def scheduled(done: int, of: int, settings: Optimisation) -> float:
    """Tell the share of the peak learning rate when `done` steps out of `of` are done."""
    warmup = settings.warmup * of
    if done < warmup:
        return (done + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    left = 1 - (done - warmup) / max(of - warmup, 1)
    return left if settings.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def set_learning_rate(learner: Learner, done: int, of: int) -> None:
    """Follow the schedule."""
    for group in learner.optimizer.param_groups:
        group["lr"] = learner.peak * scheduled(done, of, learner.settings)


def take_step(learner: Learner, batches: Iterable[Batch], objective: Objective[Batch]) -> dict[str, float]:
    """Take one optimiser step on the sum of the objective over the batches, and give the sums of its figures.

    They have `loss` and `grad_norm` (before clipping) among them. Raises NotFiniteError, with the weights as they
    were, where either is not a finite number.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for batch in batches:
        loss, figures = objective(batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, value in {"loss": loss, **figures}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    weights = [weight for group in learner.optimizer.param_groups for weight in group["params"]]
    sums["grad_norm"] = float(nn.utils.clip_grad_norm_(weights, learner.settings.max_grad_norm))
    if not math.isfinite(sums["loss"] + sums["grad_norm"]):
        raise NotFiniteError(
            f"optimiser step {learner.steps + 1} has loss {sums['loss']} and gradient norm {sums['grad_norm']}",
            remedy="lower the learning rate, or look at the rewards and the data of this step",
        )
    learner.optimizer.step()
    learner.steps += 1
    return sums


def minibatches(rows: int, epochs: int, parts: int, chance: torch.Generator) -> Iterator[list[int]]:
    """Give the rows of each optimiser step: in every epoch a new shuffle of all rows, cut into equal parts."""
    for _ in range(epochs):
        shuffled = torch.randperm(rows, generator=chance)
        yield from (part.tolist() for part in shuffled.chunk(parts))


def mean_figures(steps: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    """Average the figures over the steps that were taken, under their public names; nothing where none were."""
    return {names[key]: sum(step[key] for step in steps) / len(steps) for key in (steps[0] if steps else ())}
