"""Optimiser steps of methods in which the policy alone learns."""

from collections.abc import Callable, Mapping

from torch import Tensor

from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.training.layouts import check_first_step, passes, policy_logprobs
from alignkit.training.losses import Count
from alignkit.training.seen import Experience
from alignkit.training.step import mean_metrics, minibatches, take_step
from alignkit.training.updates import POLICY_METRICS, Update, longest_answer

METRICS = POLICY_METRICS | {"pull": "loss/kl_avg"}

AnswerLoss = Callable[[Experience, Tensor, Count], tuple[Tensor, Mapping[str, Tensor]]]
"""Returns the loss of a part of a step's answers, given the policy's log-probabilities (n, t) with gradient and the
count of the whole step, which sums are divided by; and metrics: `approxkl`, `clipfrac` and `ratio` are usual."""


def step_policy(update: Update[SamplingSettings], experience: Experience, loss: AnswerLoss) -> dict[str, float]:
    """Take the optimiser steps of one update, and return the means of their metrics.

    Raises StageError where the first step does not begin at what was sampled.
    """
    models, settings = update.loop.models, update.loop.settings
    steps: list[dict[str, float]] = []
    for rows in minibatches(len(experience.answers), settings.epochs, settings.minibatches, update.chance):
        minibatch = experience.take(rows)
        count = Count(int(minibatch.mask.sum()), len(rows), longest_answer(settings))

        def objective(part: Experience, count: Count = count) -> tuple[Tensor, Mapping[str, Tensor]]:
            return loss(part, policy_logprobs(models, part.prompts, part.answers, part.states), count)

        parts = [minibatch.take(group) for group in passes(models, minibatch.prompts, minibatch.answers)]
        steps.append(take_step(update.loop.state.actor, parts, objective))
        if len(steps) == 1 and "approxkl" in steps[0]:
            check_first_step(models, steps[0]["approxkl"])
        if settings.kl.stop and steps[-1].get("approxkl", 0.0) > settings.kl.stop:
            break
    return mean_metrics(steps, METRICS)
