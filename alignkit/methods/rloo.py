"""RLOO: raise the rewards of a policy's own answers, each judged by the mean of the other answers to its prompt.

REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, "Back to Basics", arXiv 2402.14740; the baseline is Kool
et al.'s, 2019). An answer is one action: its reward is its score less kl.coef times its log-probability's excess over
the starting policy's, and its advantage how far that lies above the mean of the other answers to the same prompt. No
critic, no discount, no scaling: the gradient is the unbiased one of E[score] - kl.coef * KL(policy || start).

1. The paper takes its steps without a ratio. With several steps on the same answers, a ratio of the whole answer's
   probability, clipped as in PPO, keeps them in bounds (as TRL does); in the first step it is 1, and the gradient the
   paper's.
2. Scores are not whitened: the scale of advantages is that of the rewards, so learning rates depend on it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat, PositiveInt

from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Prompts, Reward
from alignkit.contract.method import Method, method
from alignkit.contract.sampling_settings import GroupSettings
from alignkit.contract.stage import Stage

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from alignkit.training.groups import Experience
    from alignkit.training.layouts import Models
    from alignkit.training.losses import Count
    from alignkit.training.rollouts import Rollout
    from alignkit.training.scoring import Scored
    from alignkit.training.updates import State


class RLOOSettings(GroupSettings):
    """Settings of `rloo`."""

    method: ClassVar[str] = "rloo"

    answers: PositiveInt = 4
    """Answers to each prompt, which are compared with each other; more make a steadier comparison. At least 2."""
    clip: PositiveFloat = 0.2
    """How far a whole answer's probability may move in one update before its gradient stops, as a share."""


@method("rloo", loop="online", results=("reward", "reward/{rewards}", "kl", "length", "eos_rate"))
def rloo(
    settings: RLOOSettings, stage: Stage, *, policy: Policy, rewards: tuple[Reward, ...], prompts: Prompts
) -> Policy:
    """Raise the rewards of a policy's own answers, each judged by the mean of the others to its prompt."""
    from alignkit.training.layouts import open_models
    from alignkit.training.updates import only_one_process, settled, start, take_updates, train_and_measure

    only_one_process(stage, settings.method)
    models, tokenizer = open_models(
        policy,
        rewards,
        critic=None,
        temperature=settings.generation.temperature,
        lora=settings.lora,
        precision=settings.precision,
        compared=settings.kl.coef > 0,
        trained_layers=settings.trained_layers,
    )
    settings = settled(settings, models)
    train, state = partial(take_updates, learn), start(models, settings)
    tell = train_and_measure(train, models, tokenizer, state, rewards, prompts, settings, stage)
    made = stage.save_policy(models.policy, tokenizer)
    tell()
    return made


def learn(
    models: Models, state: State, rollout: Rollout, scored: Scored, settings: RLOOSettings, chance: Generator
) -> dict[str, float]:
    """Learn from answers: compare each reward with the group's others, and step on the ratios of whole answers."""
    from alignkit.training import losses
    from alignkit.training.groups import experience_of, take_steps
    from alignkit.training.updates import look

    known, metrics = look(models, state, rollout, scored, settings)
    answer_rewards = known.scores - state.kl_coef * known.kl.sum(dim=1)
    advantages = losses.leave_one_out_advantages(answer_rewards, settings.answers)
    metrics["val/groups_without_signal"] = float(losses.share_of_equal_groups(known.scores, settings.answers))

    def loss(part: Experience, logprobs: Tensor, count: Count) -> tuple[Tensor, dict[str, Tensor]]:
        result = losses.rloo_loss(logprobs, part.logprobs, part.advantages, part.mask, count, settings.clip)
        return result.loss, {
            "approxkl": result.approximate_kl,
            "clipfrac": result.clip_fraction,
            "ratio": result.ratio.sum() / count.answers,
        }

    experience = experience_of(rollout, known, advantages)
    return metrics | take_steps(models, state.actor, experience, loss, settings, chance)


@hookimpl
def alignkit_methods() -> list[Method]:
    return [rloo]
