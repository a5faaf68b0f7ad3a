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
5. What came after it changes what is compared, what that is divided by, the ratio, the surrogate or the pull; each is
   a setting here, and `group_papers` says which paper has which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from alignkit.contract.advice import Advice
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Artifact, Policy, Prompts, Reward
from alignkit.contract.method import Method, method
from alignkit.contract.needs import group_needs
from alignkit.contract.sampling_settings import KL, GroupSettings
from alignkit.contract.stage import Stage
from alignkit.errors import StageError
from alignkit.methods.group_papers import GROUP_PAPERS

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.training.losses import Count
    from alignkit.training.seen import Experience, Seen
    from alignkit.training.updates import Loop


class GroupKL(KL):
    """The pull back to the starting policy."""

    added: ClassVar[frozenset[str]] = frozenset({"term"})

    coef: NonNegativeFloat = 0.04
    """Loss added for each nat by which a token's log-probability exceeds the starting policy's; where `scale`
    is not `none`, scores count in deviations, so the same pull needs another number than in ppo. 0: the starting policy
    is not kept in memory."""
    corrected: bool = True
    """Pull by the gradient of KL(policy || start), as the other methods do; false: by that of KL(start || policy), as
    in GRPO's paper."""
    term: Literal["k3", "k2", "k1", "reward"] = "k3"
    """How the pull is counted: in the loss, by one of Schulman's estimators, or as k1 that is taken off the reward of
    each token (REINFORCE++)."""

    @model_validator(mode="after")
    def _the_term_pulls(self) -> Self:
        if self.term != "k3" and not self.coef:
            raise ValueError(f'term = "{self.term}" counts a pull that coef = 0 switches off; leave it out')
        if self.term == "reward" and not self.corrected:
            raise ValueError('term = "reward" has the gradient of KL(policy || start) always; leave corrected out')
        if self.term == "k1" and not self.corrected:
            raise ValueError('term = "k1" pulls nowhere on average unless it is corrected; leave corrected out')
        return self


class GRPOSettings(GroupSettings):
    """Settings of `grpo`."""

    method: ClassVar[str] = "grpo"
    added: ClassVar[frozenset[str]] = frozenset(
        {"dual_clip", "ratio", "surrogate", "baseline", "best_of", "uncertain", "dynamic_sampling"}
    )

    kl: GroupKL = GroupKL()
    """The pull back to the starting policy."""
    clip_high: PositiveFloat | None = None
    """As `clip`, where the probability rises; 0.28 lets rare tokens grow (DAPO). Unset: `clip`."""
    dual_clip: float | None = Field(default=None, gt=1)
    """The most that a ratio counts for in a bad answer; 3 keeps one token of a policy that has moved far from
    filling the gradient. Unset: there is no such bound."""
    ratio: Literal["token", "sequence", "sequence-token"] = "token"
    """What is clipped: the ratio of each token's probabilities, the geometric mean of an answer's (GSPO), or that mean
    with each token's own gradient (GSPO-token), for advantages that differ within an answer."""
    surrogate: Literal["clip", "weights", "tapered", "gate", "geometric"] = "clip"
    """What is made of ratio and advantage: PPO's clipped product; clipped ratios as weights of the log-probability,
    so that no token loses its gradient (CISPO); 1 as the weight in good answers, and the ratio, at most 1, in bad ones
    (TOPR); a gate that closes smoothly (SAPO); or the geometric mean of an answer's clipped ratios (GMPO)."""
    baseline: Literal["group", "others", "length", "none"] = "group"
    """What a score is compared with: the mean of its prompt's scores, that of the other ones (leave-one-out), the mean
    in which long answers count more (OPO), or nothing."""
    best_of: PositiveInt = 1
    """An answer is judged by what it gives to teams of so many answers to its prompt, of which the best counts
    (Pass@k training). 1: by its own score."""
    scale: Literal["group", "batch", "tokens", "beta", "none"] = "group"
    """What advantages are divided by: the standard deviation of a prompt's scores, of all scores of an update, or
    nothing, so that easy and hard prompts do not weigh more (Dr. GRPO). `tokens`: all tokens' advantages of an update
    are shifted to mean 0 and scaled to variance 1 (REINFORCE++). `beta`: how usual a prompt's mean score is among the
    update's (BNPO); scores must lie between 0 and 1."""
    average: Literal["answer", "token", "fixed"] = "token"
    """How losses of tokens become one: the mean of each answer, then over answers (GRPO's paper); over all tokens
    (DAPO); or over as many as answers may have, so that length pays nowhere (Dr. GRPO)."""
    uncertain: float = Field(default=1.0, gt=0, le=1)
    """Learn from this share of an update's tokens alone, those of highest entropy; 0.2 is usual."""
    dynamic_sampling: NonNegativeInt = 0
    """How often, in an update, prompts whose answers all score the same are exchanged for others (DAPO); 10 is usual.
    0: they stay, and teach nothing."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        for problem in self._idle():
            raise ValueError(problem)
        return self

    def _idle(self) -> Iterator[str]:
        """Yield what a setting cannot do beside the others."""
        form, own = self.surrogate, self.uncertain < 1 or self.kl.term == "reward"
        if self.dual_clip and form != "clip":
            yield f'dual_clip bounds the surrogate "clip", and surrogate is "{form}"; leave dual_clip out'
        if form in ("tapered", "gate") and (self.clip, self.clip_high) != (0.2, None):
            yield f'surrogate = "{form}" clips nothing; leave clip and clip_high out'
        if form == "geometric" and self.ratio != "token":
            yield 'surrogate = "geometric" takes the mean of ratios of tokens; leave ratio out'
        if form == "geometric" and self.clip >= 1:
            yield 'surrogate = "geometric" takes logarithms of what clip leaves, so clip must be below 1'
        if form in ("weights", "tapered") and self.ratio == "sequence-token":
            yield f'surrogate = "{form}" has the gradient of each token always; set ratio = "sequence"'
        if own and (form == "geometric" or (self.ratio == "sequence" and form in ("clip", "gate"))):
            which = "uncertain" if self.uncertain < 1 else 'kl.term = "reward"'
            yield f'{which} tells tokens of an answer apart, and one ratio stands for all; set ratio = "sequence-token"'
        if self.best_of >= self.answers:
            yield f"teams of {self.best_of} of {self.answers} answers cannot be compared; set best_of below answers"
        if self.best_of > 1 and (self.baseline != "group" or self.scale in ("batch", "beta")):
            yield 'best_of has a baseline of its own; leave baseline out, and set scale to "group", "tokens" or "none"'
        if self.best_of > 1 and self.kl.term == "reward":
            yield 'best_of judges whole answers, and kl.term = "reward" their tokens; set another term'
        if self.kl.term == "reward" and self.scale in ("group", "batch", "beta"):
            yield f'kl.term = "reward" rewards tokens, which scale = "{self.scale}" does not; set "tokens" or "none"'
        if self.baseline == "none" and self.scale == "group":
            yield 'baseline = "none" compares nothing within a group; set another scale than "group"'


def unfit(settings: GRPOSettings, inputs: Mapping[str, Sequence[type[Artifact]]]) -> Iterator[tuple[str, str]]:
    """Yield what bounded costs cannot do beside these settings: they are taken off each answer's score."""
    if inputs.get("costs") and settings.scale == "beta":
        yield 'grpo.scale = "beta" needs scores from 0 to 1, and constraints take costs off them', "set another scale"
    if inputs.get("costs") and settings.best_of > 1:
        yield "grpo.best_of counts the best of a team, and constraints bound the mean of all", "leave one of them out"


@method(
    "grpo",
    advice=Advice(
        "a checker or a reward scores any answer, and several answers to each prompt are cheap",
        "groups that all score the same teach nothing: prompts that are too easy or too hard are paid for in vain",
    ),
    needs=group_needs,
    results=("reward", "reward/{rewards}", "cost/{costs}", "kl", "length", "eos_rate"),
    papers=GROUP_PAPERS,
    refuses=unfit,
)
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
    from alignkit.training.roles import Roles
    from alignkit.training.updates import open_loop

    around = Around(trained_layers=settings.trained_layers, start=settings.needs_start)
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
        scored = update.score(rollout)
        rollout, scored, exchanged = update.resample(rollout, scored, settings.dynamic_sampling)
        seen = update.read(rollout, scored)
        equal = {"val/groups_without_signal": float(losses.share_of_equal_groups(seen.scores, settings.answers))}
        if settings.dynamic_sampling:
            equal["val/groups_exchanged"] = exchanged * settings.answers / settings.batch
        # Divided by a deviation, advantages have the same size whatever costs take off, and so has a pull in the loss.
        same_size = settings.scale != "none" and settings.kl.term != "reward"
        kl_coef = loop.state.kl_coef if same_size else seen.kl_coef
        experience = seen.experience(advantages_of(settings, seen, kl_coef))
        objective = partial(policy_loss, settings, kl_coef)
        update.done({**seen.metrics, **equal, **step_policy(update, experience, objective)})


def advantages_of(settings: GRPOSettings, seen: Seen, kl_coef: float) -> Tensor:
    """Compute advantages (n,), one for all tokens of an answer; (n, t) where its tokens differ."""
    from alignkit.training import losses

    if settings.scale == "beta" and not ((seen.scores >= 0) & (seen.scores <= 1)).all():
        problem = f"scores lie between {seen.scores.min():.4g} and {seen.scores.max():.4g}"
        raise StageError(f'scale = "beta" needs scores from 0 to 1, and {problem}', remedy="choose another scale")
    if settings.kl.term == "reward":
        rewards = losses.token_rewards(seen.scores, seen.kl, seen.mask, kl_coef)  # (n, t)
        whole = seen.scores - kl_coef * seen.kl.sum(dim=1)  # (n,)
        advantages = (compared(settings, whole, seen.mask) - whole)[:, None] + losses.rewards_to_go(rewards)
    else:
        advantages = compared(settings, seen.scores, seen.mask)
    if settings.scale == "tokens":
        wide = advantages if advantages.ndim == 2 else advantages[:, None].expand(seen.mask.shape)
        advantages = losses.whiten(wide, seen.mask)
    if settings.uncertain < 1:
        kept = losses.most_uncertain(seen.entropy, seen.mask, settings.uncertain)
        advantages = (advantages if advantages.ndim == 2 else advantages[:, None]) * kept
    return advantages


def compared(settings: GRPOSettings, scores: Tensor, mask: Tensor) -> Tensor:
    """Compare scores with those of their groups (n,)."""
    from alignkit.training import losses

    if settings.best_of > 1:
        return losses.best_of_advantages(scores, settings.answers, settings.best_of, settings.scale == "group")
    scale = "none" if settings.scale == "tokens" else settings.scale
    lengths = mask.sum(dim=1).to(scores.dtype)
    return losses.group_advantages(scores, settings.answers, scale, settings.baseline, lengths)


def policy_loss(
    settings: GRPOSettings, kl_coef: float, part: Experience, logprobs: Tensor, count: Count
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the surrogate and of the pull, and its metrics, as their share of a whole step."""
    from alignkit.training import losses

    high = settings.clip if settings.clip_high is None else settings.clip_high
    surrogate = losses.Surrogate(settings.surrogate, settings.ratio, settings.clip, high, settings.dual_clip)
    result = losses.grpo_loss(
        logprobs,
        part.logprobs,
        part.advantages,
        part.mask,
        count,
        surrogate=surrogate,
        reference=part.reference,
        kl_coef=0.0 if settings.kl.term == "reward" else kl_coef,
        estimator="k3" if settings.kl.term == "reward" else settings.kl.term,
        corrected=settings.kl.corrected,
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
