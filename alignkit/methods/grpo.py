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
from alignkit.contract.needs import group_needs
from alignkit.contract.sampling_settings import KL, GroupSettings
from alignkit.contract.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.training.losses import Count
    from alignkit.training.seen import Experience
    from alignkit.training.updates import Loop


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


@method("grpo", needs=group_needs, results=("reward", "reward/{rewards}", "cost/{costs}", "kl", "length", "eos_rate"))
def grpo(
    settings: GRPOSettings,
    stage: Stage,
    *,
    policy: Policy,
    rewards: tuple[Reward, ...],
    prompts: Prompts,
    costs: tuple[Reward, ...] = (),
    reference: Policy | None = None,
) -> Policy:
    """Raise the rewards of a policy's own answers, each judged by the other answers to its prompt."""
    from alignkit.training.layouts import Around
    from alignkit.training.updates import Roles, open_loop

    around = Around(trained_layers=settings.trained_layers, start=settings.kl.coef > 0)
    loop, finish = open_loop(settings, stage, Roles(policy, rewards, prompts, costs, reference), around)
    train(loop)
    return finish()


def train(loop: Loop[GRPOSettings]) -> None:
    """Sample groups of answers, score, compare within each group, step; as often as there are updates left."""
    from alignkit.training import losses
    from alignkit.training.policy_steps import step_policy

    settings = loop.settings
    for update in loop.updates():
        rollout = update.sample()
        seen = update.read(rollout, update.score(rollout))
        advantages = losses.group_advantages(seen.scores, settings.answers, settings.scale)  # (n,)
        equal = {"val/groups_without_signal": float(losses.share_of_equal_groups(seen.scores, settings.answers))}
        # Divided by a deviation, advantages have the same size whatever costs take off, and so has the pull.
        kl_coef = seen.kl_coef if settings.scale == "none" else loop.state.kl_coef
        objective = partial(policy_loss, settings, kl_coef)
        update.done({**seen.metrics, **equal, **step_policy(update, seen.experience(advantages), objective)})


def policy_loss(
    settings: GRPOSettings, kl_coef: float, part: Experience, logprobs: Tensor, count: Count
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of clipped ratios and of the pull, and its metrics, as their share of a whole step."""
    from alignkit.training import losses

    result = losses.grpo_loss(
        logprobs,
        part.logprobs,
        part.advantages,
        part.mask,
        count,
        reference=part.reference,
        kl_coef=kl_coef,
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


@hookimpl
def alignkit_methods() -> list[Method]:
    return [grpo]
