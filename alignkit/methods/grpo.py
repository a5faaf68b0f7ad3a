"""GRPO: raise the scores of a policy's own answers, each judged by the other answers to its prompt.

Group relative policy optimisation (Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300) is PPO without a critic: several
answers are sampled for every prompt, and an answer's advantage, the same for all of its tokens, is how far its score
lies above the mean of its group, in standard deviations. The pull to the start stands in the loss, not in the scores.

1. The paper averages losses by answer, which makes long bad answers cheap; `average = "answer"` is the paper's, the
   default is DAPO's mean over tokens (arXiv 2503.14476), and `scale = "none"` with `average = "fixed"` is Dr. GRPO
   (arXiv 2503.20783).
2. The paper's pull has the gradient of KL(start || policy). By default it is corrected to that of KL(policy || start),
   token by token, so that `kl.coef` means what it means elsewhere; `kl.corrected = false` is the paper's.
3. A pull in the loss makes a token pay for its own departure, never for the departures it leads to; and the mean that a
   score is compared with contains the score itself, which shrinks advantages to 1 - 1/answers of RLOO's. Where an exact
   trade of score against KL matters, `rloo` has it.
4. Iterating with a reward model in training and process rewards are left out: they are other inputs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Prompts, Reward
from alignkit.contract.method import Method, method
from alignkit.contract.sampling_settings import KL, GroupSettings
from alignkit.contract.stage import Stage

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from alignkit.training.groups import Experience
    from alignkit.training.layouts import Models
    from alignkit.training.losses import Count
    from alignkit.training.rollouts import Rollout
    from alignkit.training.scoring import Scored
    from alignkit.training.updates import State


class GroupKL(KL):
    """The pull back to the starting policy."""

    coef: NonNegativeFloat = 0.04
    """Loss added for each nat by which a token's log-probability exceeds the starting policy's; where `scale`
    is not `none`, scores count in deviations, so the same pull needs another number than in ppo. 0: the starting policy
    is not kept in memory."""
    corrected: bool = True
    """Pull by the gradient of KL(policy || start), as the other methods do; false: by that of KL(start || policy), as
    in GRPO's paper."""


class GRPOSettings(GroupSettings):
    """Settings of `grpo`."""

    method: ClassVar[str] = "grpo"

    kl: GroupKL = GroupKL()
    """The pull back to the starting policy."""
    clip_high: PositiveFloat | None = None
    """As `clip`, where the probability rises; 0.28 lets rare tokens grow (DAPO). Unset: `clip`."""
    scale: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the standard deviation of a prompt's scores, of all scores of an update, or
    nothing, so that easy and hard prompts do not weigh more (Dr. GRPO)."""
    average: Literal["answer", "token", "fixed"] = "token"
    """How losses of tokens become one: the mean of each answer, then over answers (GRPO's paper); over all tokens
    (DAPO); or over as many as answers may have, so that length pays nowhere (Dr. GRPO)."""


@method("grpo", loop="online", results=("reward", "reward/{rewards}", "kl", "length", "eos_rate"))
def grpo(
    settings: GRPOSettings, stage: Stage, *, policy: Policy, rewards: tuple[Reward, ...], prompts: Prompts
) -> Policy:
    """Raise the rewards of a policy's own answers, each judged by the other answers to its prompt."""
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
    models: Models, state: State, rollout: Rollout, scored: Scored, settings: GRPOSettings, chance: Generator
) -> dict[str, float]:
    """Learn from answers: compare the scores of each group, and step on the clipped ratios of tokens."""
    from alignkit.training import losses
    from alignkit.training.groups import experience_of, take_steps
    from alignkit.training.updates import look

    known, metrics = look(models, state, rollout, scored, settings)
    advantages = losses.group_advantages(known.scores, settings.answers, settings.scale)
    metrics["val/groups_without_signal"] = float(losses.share_of_equal_groups(known.scores, settings.answers))

    def loss(part: Experience, logprobs: Tensor, count: Count) -> tuple[Tensor, dict[str, Tensor]]:
        result = losses.grpo_loss(
            logprobs,
            part.logprobs,
            part.advantages,
            part.mask,
            count,
            reference=part.reference,
            kl_coef=state.kl_coef,
            corrected=settings.kl.corrected,
            clip=settings.clip,
            clip_high=settings.clip_high,
            how=settings.average,
        )
        return result.loss, {
            "pull": result.pull,
            "approxkl": result.approximate_kl,
            "clipfrac": result.clip_fraction,
            "ratio": losses.masked_mean(result.ratio, part.mask, count.tokens),
        }

    experience = experience_of(rollout, known, advantages)
    return metrics | take_steps(models, state.actor, experience, loss, settings, chance)


@hookimpl
def alignkit_methods() -> list[Method]:
    return [grpo]
