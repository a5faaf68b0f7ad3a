"""What a stage gives to a method that learns from a policy's own answers, opened: models, prompts, rewards, costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from alignkit.contract.judges import JudgeClient
from alignkit.contract.kinds import FunctionReward, Judge, Policy, Prompts, Reward, RewardModel
from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.contract.stage import Stage
from alignkit.errors import RecipeError, StageError
from alignkit.training import encoding, held_out, judging, layouts
from alignkit.training.configs import positions, taught_length
from alignkit.training.encoding import Prompt
from alignkit.training.held_out import Measured, Shown
from alignkit.training.layouts import Around, Models, open_models
from alignkit.training.lengths import UNSET_ANSWER
from alignkit.training.mixed_rows import ReadRows, flat, held_out_rows, mixed, values_of
from alignkit.training.models import load_policy
from alignkit.training.rollouts import Rollout
from alignkit.training.scoring import Bounded, Scored, Weighted, as_answers, members, score_rollout
from alignkit.training.warning_signs import AnswerBounds, WarningSigns

SettingsT = TypeVar("SettingsT", bound=SamplingSettings)
SettingsC = TypeVar("SettingsC", bound=SamplingSettings, covariant=True)


class Roles(NamedTuple):
    """What a stage gives to a method that learns from a policy's own answers."""

    policy: Policy
    rewards: Sequence[Reward | Judge]
    """Where there are judges among them, these say which answers are learnt from, and rewards are only measured."""
    prompts: Prompts
    costs: Sequence[Reward] = ()
    """Rewards whose mean has a bound."""
    reference: Policy | None = None
    """What the policy is compared with, where that is not its start."""


@dataclass(frozen=True)
class Opened(Generic[SettingsC]):
    """What a stage gives to a method that learns from a policy's own answers, opened."""

    models: Models
    tokenizer: PreTrainedTokenizerBase
    settings: SettingsC
    """They say how long answers may be."""
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    rewards: Sequence[Weighted]
    bounds: AnswerBounds
    costs: Sequence[Bounded] = ()
    judged: bool = False
    """The stage has judges."""
    judges: Sequence[JudgeClient] = ()
    """In the first process, which asks them for all."""
    guessed: bool = False
    """A model or a judge says what is learnt from, and may be wrong about answers that nobody has shown it."""

    def score(self, prompts: Sequence[Prompt], rollout: Rollout) -> Scored:
        """Score answers to prompts, which the rollout's rows point at, by all rewards and costs."""
        return score_rollout(rollout, prompts, self.tokenizer, self.rewards, self.costs)

    def score_groups(self, prompts: Sequence[Prompt], rollout: Rollout) -> Scored:
        """Score answers that stand beside others to their prompt; judges, where there are some, say the total."""
        scored = self.score(prompts, rollout)
        if not self.judged:
            return scored
        answers, together = as_answers(rollout, prompts, self.tokenizer), rollout.together
        groups = [place // together for place in range(len(answers))] if together else rollout.rows
        return scored._replace(total=torch.tensor(judging.group_win_rates(self.judges, answers, groups)))

    def answer_held_out(self, seed: int) -> Rollout | None:
        """Answer the held-out prompts, each time with the same random numbers; None where there are none."""
        return held_out.answered(self.models, self.held_out, longest_answer(self.settings), seed)

    def measure(self, seed: int) -> Measured | None:
        """Answer the held-out prompts, each time with the same random numbers; None where there are none."""
        score = partial(self.score, self.held_out)
        return held_out.measured(self.models, self.held_out, score, longest_answer(self.settings), seed)

    def beside_start(self, policy: Policy) -> "Opened[SettingsC]":
        """Return it with the policy's start in memory, for a method that could not have it there while it learnt."""
        start, _ = load_policy(policy, precision=self.settings.precision, trainable=False)
        return replace(self, models=layouts.beside_start(self.models, start))

    def heed(self, stage: Stage, signs: WarningSigns, done: int, metrics: Mapping[str, float]) -> None:
        """Warn of what goes wrong after so many updates. Raise StageError where all answers keep scoring the same."""
        for sign in signs.see(metrics, self.bounds):
            stage.warn(f"update {done}: {sign.problem}", sign.remedy)
        if 0 < self.settings.patience <= signs.flat:
            raise without_signal(signs, self.bounds)

    def finish(self, stage: Stage, signs: WarningSigns, before: Measured | None) -> Policy:
        """Save the policy, and tell what answers to held-out prompts were before and are now."""
        if self.settings.patience and signs.flat == self.settings.updates:  # too few updates to call it a failure
            sign = signs.without_signal(self.bounds)
            stage.warn(sign.problem, sign.remedy)
        made = stage.save_policy(self.models.policy, self.tokenizer)
        shown, after = Shown(self.held_out, self.tokenizer, self.settings.samples), self.measure(stage.seed)
        if self.judged and before and after:
            now, was = (as_answers(one.rollout, self.held_out, self.tokenizer) for one in (after, before))
            after = after._replace(wins=judging.preferred(self.judges, list(zip(now, was, strict=True))))
        held_out.tell(stage, before, after, shown, self.bounds)
        held_out.tell_costs(stage, before, after, {cost.name: cost.constraint for cost in self.costs})
        for name, cost in judging.costs(self.judges).items():
            stage.result(name, None, cost)
        return made


def open_roles(settings: SettingsT, stage: Stage, roles: Roles, around: Around) -> Opened[SettingsT]:
    """Open all that a stage names. Raise DataError where too many prompts are too long."""
    named = [reward for reward in roles.rewards if isinstance(reward, Reward)]
    judges = [judge for judge in roles.rewards if isinstance(judge, Judge)]
    asking = judging.open_judges(stage, judges)
    models, tokenizer = open_models(roles.policy, named, settings, around, roles.reference)
    settings = settled(settings, models)
    new, generation = longest_answer(settings), settings.generation
    replaced, taught = generation.unfinished == "replace", taught_length(models.policy)
    bounds = AnswerBounds(settings.batch, new, generation.penalty, replaced, taught)
    scores = {reward.name: stage.open_reward(reward) for reward in (*named, *roles.costs)}
    rewards = [
        Weighted(
            reward.name,
            scores[reward.name],
            0.0 if reward.name in settings.reward.held_out else reward.weight,
            isinstance(reward, RewardModel),
        )
        for reward in named
    ]
    check_members(settings, rewards)
    costs = [Bounded(cost.name, scores[cost.name], cost.constraint) for cost in roles.costs if cost.constraint]
    room = encoding.fitting_length(positions(models.policy), settings.max_length) - new

    def read(some: Prompts) -> ReadRows[Prompt]:
        kept, lengths = encoding.prompts(some.train(), tokenizer, room)
        return ReadRows(kept, lengths, values_of((one.row for one in kept), some))

    asked, lengths = mixed(roles.prompts, read)
    encoding.report(stage, "prompts", lengths, settings.max_lost)
    aside, _ = encoding.prompts(flat(held_out_rows(roles.prompts, settings.measured)).rows, tokenizer, room)
    learnt = {reward.name for reward in rewards if reward.weight}
    guessed = bool(judges) or any(one.name in learnt and not isinstance(one, FunctionReward) for one in named)
    return Opened(models, tokenizer, settings, asked, aside, rewards, bounds, costs, bool(judges), asking, guessed)


def check_members(settings: SamplingSettings, rewards: Sequence[Weighted]) -> None:
    """Refuse to combine the members of an ensemble otherwise than by their mean where there are fewer than two."""
    count, combine = sum(reward.heads for reward in members(rewards)), settings.reward.combine
    if combine != "mean" and count < 2:
        known = "one head of one reward model" if count else "no reward model whose weight is above 0"
        problem = f"reward.combine = {combine!r} does nothing: the stage learns from {known}"
        raise RecipeError(problem, remedy="give the reward model heads = 3, name several, or leave combine out")


def settled(settings: SettingsT, models: Models) -> SettingsT:
    """Return settings that say how long answers may be; where they leave that open, the policy was taught it."""
    if settings.generation.max_new_tokens is not None:
        return settings
    generation = settings.generation.model_copy(update={"max_new_tokens": taught_length(models.policy)})
    return settings.model_copy(update={"generation": generation})


def longest_answer(settings: SamplingSettings) -> int:
    """Return the tokens after which answers are cut."""
    return settings.generation.max_new_tokens or UNSET_ANSWER


def without_signal(watch: WarningSigns, bounds: AnswerBounds) -> StageError:
    sign = watch.without_signal(bounds)
    return StageError(sign.problem, remedy=sign.remedy)
