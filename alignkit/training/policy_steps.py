"""Optimiser steps of methods in which the policy alone learns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.training.layouts import Models, check_first_step, passes, policy_logprobs
from alignkit.training.losses import Count, rloo_loss, weighted
from alignkit.training.packing import joined
from alignkit.training.roles import longest_answer
from alignkit.training.rollouts import Rollout, Tokens, apart_beyond
from alignkit.training.seen import Experience
from alignkit.training.step import mean_metrics, minibatches, take_step
from alignkit.training.updates import POLICY_METRICS, Update

METRICS = POLICY_METRICS | {"pull": "loss/kl_avg", "margin": "policy/margin_avg"}

AnswerLoss = Callable[[Experience, Tensor, Count], tuple[Tensor, Mapping[str, Tensor]]]
"""Returns the loss of a part of a step's answers, given the policy's log-probabilities (n, t) with gradient and the
count of the whole step, which sums are divided by; and metrics: `approxkl`, `clipfrac` and `ratio` are usual."""
RowsLoss = Callable[[Sequence[int], Count], tuple[Tensor, Mapping[str, Tensor]]]
"""Returns the same of a part of a step's answers by their numbers alone: it reads them itself."""


def step_policy(
    update: Update[SamplingSettings], experience: Experience, loss: AnswerLoss, together: int = 1
) -> dict[str, float]:
    """Take the optimiser steps of one update, and return the means of their metrics.

    So many neighbours stay `together`, in every step and in every part of it: a loss of pairs compares two. Raises
    StageError where the first step does not begin at what was sampled.
    """
    models = update.loop.models

    def objective(rows: Sequence[int], count: Count) -> tuple[Tensor, Mapping[str, Tensor]]:
        part = experience.take(rows)
        return loss(part, weighted(_logprobs(models, part, together), part.weights), count)

    return step_answers(update, experience, experience.mask, objective, together)


def whole_answer_loss(
    clip: float, part: Experience, logprobs: Tensor, count: Count
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute `rloo_loss`, that of the ratios of whole answers, and its metrics, as their share of a whole step.

    Where the ratio is 1, as in the first step, its gradient is -A grad log pi(y).
    """
    result = rloo_loss(logprobs, part.logprobs, part.advantages, part.mask, count, clip)
    return result.loss, {
        "approxkl": result.approximate_kl,
        "clipfrac": result.clip_fraction,
        "ratio": result.ratio.sum() / count.answers,
    }


def step_answers(
    update: Update[SamplingSettings], answered: Experience | Rollout, mask: Tensor, loss: RowsLoss, together: int = 1
) -> dict[str, float]:
    """Take the optimiser steps of one update as `step_policy` does, where the loss reads the answers itself.

    `mask` (n, t) marks the tokens that are learnt.
    """
    models, settings = update.loop.models, update.loop.settings
    steps: list[dict[str, float]] = []
    groups = len(answered.answers) // together
    for chosen in minibatches(groups, settings.epochs, settings.minibatches, update.chance):
        rows = list(_neighbours(chosen, together))
        count = Count(int(mask[rows].sum()), len(rows), longest_answer(settings))
        prompts, answers = ([side[row] for row in rows] for side in (answered.prompts, answered.answers))
        parts = [[rows[place] for place in group] for group in _passes(models, prompts, answers, together)]
        steps.append(take_step(update.loop.state.actor, parts, partial(_of_step, loss, count)))
        if len(steps) == 1 and "approxkl" in steps[0]:
            check_first_step(models, steps[0]["approxkl"])
        if settings.kl.stop and steps[-1].get("approxkl", 0.0) > settings.kl.stop:
            break
    return mean_metrics(steps, METRICS)


def _of_step(loss: RowsLoss, count: Count, rows: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
    return loss(rows, count)


def _neighbours(groups: Sequence[int], together: int) -> Iterator[int]:
    """Yield the rows of groups of so many neighbours."""
    for group in groups:
        yield from range(group * together, (group + 1) * together)


def _passes(models: Models, prompts: Sequence[Tokens], answers: Sequence[Tokens], together: int) -> list[list[int]]:
    """Group rows into what goes through the model at once, neighbours together."""
    joint = [
        [token for answer in answers[start : start + together] for token in answer]
        for start in range(0, len(answers), together)
    ]
    return [list(_neighbours(group, together)) for group in passes(models, prompts[::together], joint)]


def _logprobs(models: Models, part: Experience, together: int) -> Tensor:
    """Compute log-probabilities (n, t) of rows that must be in one part, though some may have to be read apart."""
    rows = list(range(len(part.answers)))
    alone = together > 1 and models.rows_at_once == 1
    groups = [[row] for row in rows] if alone else [rows]
    groups = apart_beyond(groups, part.prompts, part.answers, models.alone_beyond if together > 1 else None)
    apart = [part] if groups == [rows] else [part.take(group) for group in groups]
    tables = [policy_logprobs(models, one.prompts, one.answers, one.states) for one in apart]
    return tables[0] if len(tables) == 1 else joined(groups, tables)
