"""Updates of methods that judge each answer by the others to its prompt, and so need no critic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from alignkit.contract.sampling_settings import GroupSettings
from alignkit.training.layouts import Models, check_first_step, passes, policy_logprobs
from alignkit.training.losses import Count
from alignkit.training.rollouts import Rollout, Tokens
from alignkit.training.step import Learner, mean_metrics, minibatches, take_step
from alignkit.training.updates import POLICY_METRICS, Known, longest_answer

METRICS = POLICY_METRICS | {"pull": "loss/kl_avg"}


@dataclass(frozen=True)
class Experience:
    """Answers and what to learn from them; tables are (n, t), right-padded."""

    prompts: Sequence[Tokens]
    answers: Sequence[Tokens]
    mask: Tensor
    logprobs: Tensor
    advantages: Tensor
    """(n,)."""
    reference: Tensor | None
    states: Sequence[Tensor] | None
    """What frozen layers made of each row, where there are some."""

    def take(self, rows: Sequence[int]) -> "Experience":
        """Take these rows, as wide as the longest of them."""
        answers = [self.answers[row] for row in rows]
        width = max(map(len, answers))
        return Experience(
            [self.prompts[row] for row in rows],
            answers,
            self.mask[rows, :width],
            self.logprobs[rows, :width],
            self.advantages[rows],
            None if self.reference is None else self.reference[rows, :width],
            self.states and [self.states[row] for row in rows],
        )


GroupLoss = Callable[[Experience, Tensor, Count], tuple[Tensor, Mapping[str, Tensor]]]
"""Gives a loss and its metrics for a part of a step's answers, the policy's log-probabilities, and the step's count."""


def experience_of(rollout: Rollout, known: Known, advantages: Tensor) -> Experience:
    """Keep of answers what is to be learnt from them."""
    reading = known.reading
    return Experience(
        rollout.prompts, rollout.answers, known.mask, reading.logprobs, advantages, reading.reference, reading.states
    )


def take_steps(
    models: Models,
    actor: Learner,
    experience: Experience,
    loss: GroupLoss,
    settings: GroupSettings,
    chance: Generator,
) -> dict[str, float]:
    """Take the optimiser steps of one update, and give the means of their metrics.

    Raises StageError where the first step does not begin at what was sampled.
    """
    steps: list[dict[str, float]] = []
    for rows in minibatches(len(experience.answers), settings.epochs, settings.minibatches, chance):
        minibatch = experience.take(rows)
        count = Count(int(minibatch.mask.sum()), len(rows), longest_answer(settings))

        def objective(part: Experience, count: Count = count) -> tuple[Tensor, Mapping[str, Tensor]]:
            return loss(part, policy_logprobs(models, part.prompts, part.answers, part.states), count)

        parts = [minibatch.take(group) for group in passes(models, minibatch.prompts, minibatch.answers)]
        steps.append(take_step(actor, parts, objective))
        if len(steps) == 1:
            check_first_step(models, steps[0]["approxkl"])
        if settings.kl.stop and steps[-1]["approxkl"] > settings.kl.stop:
            break
    return mean_metrics(steps, METRICS)
