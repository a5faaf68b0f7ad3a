"""PPO: raise the reward of a policy's own answers, and keep it close to where it started.

Maximises E[score(answer)] - kl_coef * KL(policy || start) by proximal policy optimisation (Schulman et al. 2017,
arXiv 1707.06347), as it was brought to language models by Ziegler et al. (2019, arXiv 1909.08593) and Stiennon et al.
(2020, arXiv 2009.01325). One update is: sample answers, score them, shape a reward for every token, estimate
advantages, and take several epochs of clipped steps.

1. The critic is a model of its own with its own learning rate, so no coefficient weighs its loss.
2. The score stands on an answer's last token, whether it ended by itself or was cut.
3. Log-probabilities are recomputed by a full pass, never taken from decoding; dropout is off throughout.
4. Entropy bonus, pretraining loss and sampling tricks (top-k and the like) are left out: the first two are zero in all
   of these papers' chosen settings or need other data, the last makes the ratios wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Prompts, Reward
from alignkit.contract.method import Method, method
from alignkit.contract.settings import LoRA, Optimisation, Precision, Settings
from alignkit.contract.stage import Stage
from alignkit.errors import RecipeError

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from alignkit.learn.data import Prompt
    from alignkit.learn.held_out import Measured
    from alignkit.learn.layouts import Models
    from alignkit.learn.rollouts import Rollout, Tokens
    from alignkit.learn.scoring import Scored
    from alignkit.learn.training import Learner

ADAM_EPS = 1e-5
"""As in lm-human-preferences: with 1e-8 the first updates are too bold."""
POLICY_FIGURES = {
    "loss": "loss/policy_avg",
    "approxkl": "policy/approxkl_avg",
    "clipfrac": "policy/clipfrac_avg",
    "ratio": "val/ratio",
    "grad_norm": "policy/grad_norm",
}
VALUE_FIGURES = {"loss": "loss/value_avg", "clipfrac": "val/clipfrac_avg", "grad_norm": "val/grad_norm"}


class KL(Settings):
    """The pull back to the starting policy."""

    coef: NonNegativeFloat = 0.05
    """Reward taken off for each nat by which a token's log-probability exceeds the starting policy's."""
    target: NonNegativeFloat = 0.0
    """Adapt `coef` so that the mean KL of an answer comes to this; 6 is usual. 0: `coef` stays."""
    horizon: PositiveFloat = 10_000.0
    """How slowly `coef` adapts, in answers."""
    stop: NonNegativeFloat = 0.0
    """End an update's policy steps once a step's approximate KL a token from the sampling policy exceeds this. 0: all
    steps are taken."""


class CriticSettings(Settings):
    """The model that learns what an unfinished answer will be worth."""

    init: Literal["auto", "reward", "policy"] = "auto"
    """Start from the reward model, or from the policy with values of zero. `auto`: from the reward model, where the
    first reward is one that reads the policy's tokens."""
    learning_rate: PositiveFloat = 3e-5
    """Peak learning rate; a few times the policy's."""
    warmup: NonNegativeInt = 0
    """Updates at the start in which the critic alone learns."""
    clip: NonNegativeFloat = 0.2
    """How far one update may move a value. 0: as far as it likes."""


class Generation(Settings):
    """How answers are sampled: from the whole distribution, nothing cut off."""

    max_new_tokens: PositiveInt = 64
    """Answers are cut after so many tokens."""
    temperature: PositiveFloat = 1.0
    """Divides the logits, in sampling and in everything that is learnt from the samples."""
    unfinished: Literal["replace", "subtract"] = "replace"
    """The score of an answer that was cut becomes minus `penalty`, or `penalty` is taken off it."""
    penalty: NonNegativeFloat = 1.0
    """What an answer that was cut pays; with `subtract` and 0 it pays nothing."""


class RewardShape(Settings):
    """What is done to scores before they are learnt from."""

    clip: NonNegativeFloat = 0.0
    """Scores beyond this, either way, are cut to it. 0: none are."""
    whiten: bool = False
    """Scale the rewards of all tokens of an update to variance 1."""


class PPOSettings(Settings):
    """Settings of `ppo`."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate of the policy; 1e-6 to 3e-6 for billions of weights, 1e-4 for LoRA."""
    updates: PositiveInt = 100
    """How often answers are sampled and learnt from."""
    batch: PositiveInt = 64
    """Answers in an update."""
    epochs: PositiveInt = 4
    """How often each answer is learnt from."""
    minibatches: PositiveInt = 4
    """Optimiser steps in an epoch."""
    clip: PositiveFloat = 0.2
    """How far a token's probability may move in one update before its gradient stops, as a share."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount from token to token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Trust in sampled rewards (1) against the critic (0), by GAE."""
    kl: KL = KL()
    """The pull back to the starting policy."""
    critic: CriticSettings = CriticSettings()
    """The model that learns what an unfinished answer will be worth."""
    generation: Generation = Generation()
    """How answers are sampled."""
    reward: RewardShape = RewardShape()
    """What is done to scores before they are learnt from."""
    optimisation: Optimisation = Optimisation()
    """How weights are stepped; the schedule runs over updates."""
    lora: LoRA | None = None
    """Train small added matrices; the starting policy is then the same model without them. Their dropout must be 0."""
    precision: Precision = "auto"
    """Arithmetic of the models."""
    max_length: PositiveInt | None = None
    """Longest prompt with its answer, in tokens; a prompt that leaves no room for `generation.max_new_tokens` is left
    out. Unset: what the model reads, at most 1024."""
    max_lost: float = Field(default=0.05, ge=0, le=1)
    """Share of the prompts that may be left out for their length; more stops the stage."""
    measured: PositiveInt = 256
    """Held-out prompts, at most, that are answered before and after."""
    samples: NonNegativeInt = 8
    """How many of these answers are shown."""

    @field_validator("lora")
    @classmethod
    def _nothing_is_dropped(cls, lora: LoRA | None) -> LoRA | None:
        if lora and lora.dropout:
            raise ValueError(
                f"dropout {lora.dropout} would do nothing: ppo compares probabilities from pass to pass, and so drops "
                "nothing; set this stage's lora.dropout to 0"
            )
        return lora

    @model_validator(mode="after")
    def _batch_is_cut_evenly(self) -> Self:
        if self.batch % self.minibatches:
            raise ValueError(f"batch {self.batch} cannot be cut into {self.minibatches} minibatches of one size")
        return self


@method("ppo")
def ppo(
    settings: PPOSettings, stage: Stage, *, policy: Policy, rewards: tuple[Reward, ...], prompts: Prompts
) -> Policy:
    """Raise the rewards of a policy's own answers, and keep it close to where it started."""
    from alignkit.learn import data
    from alignkit.learn.held_out import measured, tell
    from alignkit.learn.layouts import open_models
    from alignkit.learn.models import positions
    from alignkit.learn.scores import open_reward
    from alignkit.learn.scoring import Weighted, score_rollout

    if stage.world > 1:
        raise RecipeError("ppo runs in one process", f"stage {stage.name!r}", "choose a machine with one process")
    models, tokenizer = open_models(
        policy,
        rewards,
        critic=settings.critic.init,
        temperature=settings.generation.temperature,
        lora=settings.lora,
        precision=settings.precision,
    )
    opened = [Weighted(reward.name, open_reward(reward), reward.weight) for reward in rewards]
    limit = data.fitting_length(positions(models.policy), settings.max_length)
    room = limit - settings.generation.max_new_tokens
    asked, lengths = data.prompts(prompts.train(), tokenizer, room)
    data.report(stage, "prompts", lengths, settings.max_lost)
    aside, _ = data.prompts(islice(prompts.held_out(), settings.measured), tokenizer, room)

    def score(prompts: Sequence[Prompt], rollout: Rollout) -> Scored:
        return score_rollout(rollout, prompts, tokenizer, opened)

    measure = partial(measured, models, aside, partial(score, aside), settings.generation.max_new_tokens, stage.seed)
    before = train_from_latest(models, asked, partial(score, asked), settings, stage, measure)
    tell(stage, before, measure(), aside, tokenizer, settings.samples)
    return stage.save_policy(models.policy, tokenizer)


def train_from_latest(
    models: Models,
    prompts: Sequence[Prompt],
    score: Callable[[Rollout], Scored],
    settings: PPOSettings,
    stage: Stage,
    measure: Callable[[], Measured | None],
) -> Measured | None:
    """Run PPO from the stage's newest checkpoint, else from its start, and give what was measured at the start."""
    from alignkit.learn.training import CommitTimer, commit_or_leave

    state, latest, timer = start(models, settings), stage.latest(), CommitTimer()
    before = load(state, latest) if latest else measure()

    def log(done: int, figures: Mapping[str, float]) -> None:
        stage.log(done, settings.updates, figures)
        commit_or_leave(stage, done, partial(save, state, before), timer)

    train(models, state, [prompt.ids for prompt in prompts], score, settings, stage.seed, log)
    return before


@dataclass
class State:
    """What one update leaves to the next; what is random in an update depends on the seed and its number alone."""

    actor: Learner
    assessor: Learner
    kl_coef: float
    done: int = 0
    """Updates that were taken."""


def start(models: Models, settings: PPOSettings) -> State:
    """Prepare to train policy and critic."""
    from alignkit.learn.layouts import critic_of
    from alignkit.learn.training import make_learner

    actor = make_learner(models.policy.eval(), settings.learning_rate, settings.optimisation, ADAM_EPS)
    assessor = make_learner(critic_of(models).eval(), settings.critic.learning_rate, settings.optimisation, ADAM_EPS)
    return State(actor, assessor, settings.kl.coef)


def save(state: State, before: Measured | None, folder: Path) -> None:
    """Write a checkpoint: all that the updates to come and the last measurement need."""
    from alignkit.learn.held_out import as_plain
    from alignkit.learn.training import save_learners

    facts = {"done": state.done, "kl_coef": state.kl_coef, "before": before and as_plain(before)}
    save_learners(folder, {"policy": state.actor, "critic": state.assessor}, facts)


def load(state: State, folder: Path) -> Measured | None:
    """Go on where a checkpoint was written, and give what was measured at the start."""
    from alignkit.learn.held_out import from_plain
    from alignkit.learn.training import load_learners

    facts = load_learners(folder, {"policy": state.actor, "critic": state.assessor})
    state.done, state.kl_coef, before = facts["done"], facts["kl_coef"], facts["before"]
    return before and from_plain(before)


def train(
    models: Models,
    state: State,
    prompts: Sequence[Tokens],
    score: Callable[[Rollout], Scored],
    settings: PPOSettings,
    seed: int,
    log: Callable[[int, Mapping[str, float]], None],
) -> None:
    """Take the updates that are left, which change policy and critic in place, and log the figures of each."""
    from alignkit.learn.layouts import check_start, sample
    from alignkit.learn.losses import adapt_kl_coef
    from alignkit.learn.rollouts import generator_for, in_turn
    from alignkit.learn.training import set_learning_rate

    for done in range(state.done, settings.updates):
        started = perf_counter()
        set_learning_rate(state.actor, done, settings.updates)
        set_learning_rate(state.assessor, done, settings.updates)

        chance = generator_for(seed, "update", done)
        rows = in_turn(len(prompts), done * settings.batch, settings.batch, seed)
        rollout = sample(models, prompts, rows, settings.generation.max_new_tokens, chance)
        scored = score(rollout)
        experience, figures = shape(models, rollout, scored, settings, state.kl_coef)
        if done == 0:
            check_start(models, figures["objective/kl_k2"], figures["length"])
        actor = state.actor if done >= settings.critic.warmup else None
        figures |= update(models, actor, state.assessor, experience, settings, chance)

        state.done += 1
        if settings.kl.target:
            kl, target, horizon = figures["objective/kl"], settings.kl.target, settings.kl.horizon
            state.kl_coef = adapt_kl_coef(state.kl_coef, kl, target, horizon, settings.batch)
        figures |= {"lr": state.actor.learning_rate, "episode": state.done * settings.batch}
        figures["steps"] = state.actor.steps
        figures["tokens_per_second"] = int(experience.mask.sum()) / (perf_counter() - started)
        log(state.done, figures)


class Experience(NamedTuple):
    """Answers and what to learn from them; tables are (n, t), right-padded."""

    prompts: Sequence[Tokens]
    answers: Sequence[Tokens]
    mask: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def take(self, rows: Sequence[int]) -> Experience:
        """Take these rows, as wide as the longest of them."""
        answers = [self.answers[row] for row in rows]
        width = max(map(len, answers))
        return Experience([self.prompts[row] for row in rows], answers, *(t[rows, :width] for t in self[2:]))


def shape(
    models: Models, rollout: Rollout, scored: Scored, settings: PPOSettings, kl_coef: float
) -> tuple[Experience, dict[str, float]]:
    """Make rewards of tokens from scores, and advantages from these; second come the figures of the answers."""
    from alignkit.learn import layouts, losses
    from alignkit.learn.rollouts import answer_mask

    logprobs, entropy = layouts.reread(models, rollout)
    reference = layouts.reference_logprobs(models, rollout)
    values = layouts.value_estimates(models, rollout)
    mask = answer_mask(rollout.answers, logprobs.device)

    scores, finished = scored.total.to(mask.device), mask.new_tensor(rollout.finished)
    if settings.reward.clip:
        scores = scores.clamp(-settings.reward.clip, settings.reward.clip)
    scores = losses.penalise_unfinished(scores, finished, settings.generation.penalty, settings.generation.unfinished)
    kl = losses.estimate_kl(logprobs, reference, "k1")
    rewards = losses.token_rewards(scores, kl, mask, kl_coef)
    if settings.reward.whiten:
        rewards = losses.whiten(rewards, mask, shift_mean=False)
    advantages, returns = losses.estimate_advantages(rewards, values, mask, settings.gamma, settings.lam)
    advantages = losses.whiten(advantages, mask)

    answer_kl = kl.sum(dim=1)
    k2, k3 = (losses.estimate_kl(logprobs, reference, name) for name in ("k2", "k3"))
    figures = {
        "objective/kl": answer_kl.mean(),
        "objective/kl_k2": k2.sum(dim=1).mean(),
        "objective/kl_k3": k3.sum(dim=1).mean(),
        "objective/scores": scores.mean(),
        "objective/non_score_reward": -kl_coef * answer_kl.mean(),
        "objective/rlhf_reward": (scores - kl_coef * answer_kl).mean(),
        "objective/entropy": -logprobs.sum(dim=1).mean(),
        "policy/entropy_avg": losses.masked_mean(entropy, mask),
        "val/explained_var": losses.explained_variance(values, returns, mask),
        "eos_rate": finished.float().mean(),
        "length": mask.sum(dim=1).float().mean(),
    } | {f"scores/{name}": part.mean() for name, part in scored.parts.items()}
    experience = Experience(rollout.prompts, rollout.answers, mask, logprobs, values, advantages, returns)
    return experience, {name: float(value) for name, value in figures.items()} | {"kl_coef": kl_coef}


def update(
    models: Models,
    actor: Learner | None,
    assessor: Learner,
    experience: Experience,
    settings: PPOSettings,
    chance: Generator,
) -> dict[str, float]:
    """Take the optimiser steps of one update; without an actor the critic alone learns."""
    from alignkit.learn.layouts import check_first_step, critic_values, passes, policy_logprobs
    from alignkit.learn.losses import clipped_policy_loss, clipped_value_loss, masked_mean
    from alignkit.learn.training import mean_figures, minibatches, take_step

    def policy_objective(part: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs = policy_logprobs(models, part.prompts, part.answers)
        result = clipped_policy_loss(logprobs, part.logprobs, part.advantages, part.mask, settings.clip, tokens)
        ratio = masked_mean(result.ratio, part.mask, tokens)
        return result.loss, {"approxkl": result.approximate_kl, "clipfrac": result.clip_fraction, "ratio": ratio}

    def value_objective(part: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        values = critic_values(models, part.prompts, part.answers)
        result = clipped_value_loss(values, part.values, part.returns, part.mask, settings.critic.clip or None, tokens)
        return result.loss, {"clipfrac": result.clip_fraction}

    policy_steps, value_steps = [], []
    for rows in minibatches(len(experience.answers), settings.epochs, settings.minibatches, chance):
        minibatch = experience.take(rows)
        parts = [minibatch.take(group) for group in passes(models, minibatch.prompts, minibatch.answers)]
        tokens = sum(int(part.mask.sum()) for part in parts)
        if actor is not None:
            policy_steps.append(take_step(actor, parts, policy_objective))
            if len(policy_steps) == 1:
                check_first_step(models, policy_steps[0]["approxkl"])
            if settings.kl.stop and policy_steps[-1]["approxkl"] > settings.kl.stop:
                actor = None
        value_steps.append(take_step(assessor, parts, value_objective))
    return mean_figures(policy_steps, POLICY_FIGURES) | mean_figures(value_steps, VALUE_FIGURES)


@hookimpl
def alignkit_methods() -> list[Method]:
    return [ppo]
