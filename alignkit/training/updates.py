"""The loop of methods that learn from a policy's own answers: sample, score, learn, and again.

A method brings `learn`, which takes the optimiser steps of one update. What is equal in all of them is here: opening
what a stage names, the loop, the metrics of answers, checkpoints, and what is measured before and after.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Prompts, Reward
from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.contract.stage import Stage
from alignkit.errors import RecipeError, StageError
from alignkit.training import encoding, held_out, layouts, losses
from alignkit.training.encoding import Prompt
from alignkit.training.held_out import Measured
from alignkit.training.layouts import Models, Reading
from alignkit.training.lengths import UNSET_ANSWER
from alignkit.training.models import positions, taught_length
from alignkit.training.rollouts import Rollout, Tokens, answer_mask, generator_for, in_turn
from alignkit.training.scoring import Scored, Weighted, score_rollout
from alignkit.training.step import (
    CommitTimer,
    Learner,
    commit_or_leave,
    load_learners,
    make_learner,
    save_learners,
    set_learning_rate,
)
from alignkit.training.warning_signs import AnswerBounds, WarningSigns

ADAM_EPS = 1e-5
"""As in lm-human-preferences: with 1e-8 the first updates are too bold."""
POLICY_METRICS = {
    "loss": "loss/policy_avg",
    "approxkl": "policy/approxkl_avg",
    "clipfrac": "policy/clipfrac_avg",
    "ratio": "val/ratio",
    "grad_norm": "policy/grad_norm",
}

SettingsT = TypeVar("SettingsT", bound=SamplingSettings)
SettingsC = TypeVar("SettingsC", bound=SamplingSettings, contravariant=True)
Log = Callable[[int, Mapping[str, float]], None]


@dataclass
class State:
    """What one update leaves to the next; what is random in an update depends on the seed and its number alone."""

    learners: dict[str, Learner]
    """What learns, by name; the policy is called `policy`."""
    kl_coef: float
    done: int = 0
    """Updates that were taken."""
    watch: WarningSigns = field(default_factory=WarningSigns)

    @property
    def actor(self) -> Learner:
        return self.learners["policy"]


class Learn(Protocol[SettingsC]):
    """Takes the optimiser steps of one update, and gives its metrics."""

    def __call__(
        self, models: Models, state: State, rollout: Rollout, scored: Scored, settings: SettingsC, chance: Generator
    ) -> dict[str, float]: ...


class Train(Protocol[SettingsC]):
    """Takes the updates that are left, and logs the metrics of each."""

    def __call__(
        self,
        models: Models,
        state: State,
        prompts: Sequence[Tokens],
        score: Callable[[Rollout], Scored],
        settings: SettingsC,
        seed: int,
        log: Log,
    ) -> None: ...


def only_one_process(stage: Stage, method: str) -> None:
    """Refuse a machine with several processes."""
    if stage.world > 1:
        raise RecipeError(f"{method} runs in one process", remedy="choose a machine with one process")


def start(
    models: Models, settings: SamplingSettings, others: Mapping[str, tuple[nn.Module, float]] | None = None
) -> State:
    """Prepare to train the policy and the others, each with its learning rate."""
    trained = {"policy": (models.policy, settings.learning_rate), **(others or {})}
    learners = {
        name: make_learner(model.eval(), rate, settings.optimisation, ADAM_EPS)
        for name, (model, rate) in trained.items()
    }
    return State(learners, settings.kl.coef)


def train_and_measure(
    train: Train[SettingsT],
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    state: State,
    rewards: Sequence[Reward],
    prompts: Prompts,
    settings: SettingsT,
    stage: Stage,
) -> Callable[[], None]:
    """Train from the stage's newest checkpoint, else from its start; give what then tells what held-out prompts say."""
    new = longest_answer(settings)
    generation = settings.generation
    replaced, taught = generation.unfinished == "replace", taught_length(models.policy)
    limits = AnswerBounds(settings.batch, new, generation.penalty, replaced, taught)
    opened = [Weighted(reward.name, stage.open_reward(reward), reward.weight) for reward in rewards]
    limit = encoding.fitting_length(positions(models.policy), settings.max_length)
    room = limit - new
    asked, lengths = encoding.prompts(prompts.train(), tokenizer, room)
    encoding.report(stage, "prompts", lengths, settings.max_lost)
    aside, _ = encoding.prompts(islice(prompts.held_out(), settings.measured), tokenizer, room)

    def score(prompts: Sequence[Prompt], rollout: Rollout) -> Scored:
        return score_rollout(rollout, prompts, tokenizer, opened)

    def measure() -> Measured | None:
        return held_out.measured(models, aside, partial(score, aside), new, stage.seed)

    def log(done: int, metrics: Mapping[str, float]) -> None:
        stage.log(done, settings.updates, metrics)
        for sign in state.watch.see(metrics, limits):
            stage.warn(f"update {done}: {sign.problem}", sign.remedy)
        if 0 < settings.patience <= state.watch.flat:
            raise without_signal(state.watch, limits)
        commit_or_leave(stage, done, partial(save, state, before), timer)

    latest, timer = stage.latest(), CommitTimer()
    before = load(state, latest) if latest else measure()
    train(models, state, [prompt.ids for prompt in asked], partial(score, asked), settings, stage.seed, log)
    if settings.patience and state.watch.flat == settings.updates:  # too few updates to call it a failure
        sign = state.watch.without_signal(limits)
        stage.warn(sign.problem, sign.remedy)
    return lambda: held_out.tell(stage, before, measure(), aside, tokenizer, settings.samples, limits)


def settled(settings: SettingsT, models: Models) -> SettingsT:
    """Say how long answers may be, where the settings leave that to the policy, which was taught by some."""
    if settings.generation.max_new_tokens is not None:
        return settings
    generation = settings.generation.model_copy(update={"max_new_tokens": taught_length(models.policy)})
    return settings.model_copy(update={"generation": generation})


def longest_answer(settings: SamplingSettings) -> int:
    """Give the tokens after which answers are cut."""
    return settings.generation.max_new_tokens or UNSET_ANSWER


def without_signal(watch: WarningSigns, limits: AnswerBounds) -> StageError:
    sign = watch.without_signal(limits)
    return StageError(sign.problem, remedy=sign.remedy)


def save(state: State, before: Measured | None, folder: Path) -> None:
    """Write a checkpoint: all that the updates to come and the last measurement need."""
    measured = before and held_out.as_plain(before)
    facts = {"done": state.done, "kl_coef": state.kl_coef, "watch": asdict(state.watch), "before": measured}
    save_learners(folder, state.learners, facts)


def load(state: State, folder: Path) -> Measured | None:
    """Go on where a checkpoint was written, and give what was measured at the start."""
    facts = load_learners(folder, state.learners)
    state.done, state.kl_coef, before = facts["done"], facts["kl_coef"], facts["before"]
    state.watch = WarningSigns(**facts["watch"])
    return before and held_out.from_plain(before)


def take_updates(
    learn: Learn[SettingsT],
    models: Models,
    state: State,
    prompts: Sequence[Tokens],
    score: Callable[[Rollout], Scored],
    settings: SettingsT,
    seed: int,
    log: Log,
) -> None:
    """Take the updates that are left, which change what learns in place, and log the metrics of each."""
    asked = settings.batch // settings.answers
    for done in range(state.done, settings.updates):
        started = perf_counter()
        for learner in state.learners.values():
            set_learning_rate(learner, done, settings.updates)

        chance = generator_for(seed, "update", done)
        drawn = in_turn(len(prompts), done * asked, asked, seed)
        rows = [row for row in drawn for _ in range(settings.answers)]
        rollout = layouts.sample(models, prompts, rows, longest_answer(settings), chance)
        answered = perf_counter()
        scored = score(rollout)
        judged = perf_counter()
        metrics = learn(models, state, rollout, scored, settings, chance)
        learnt = perf_counter()

        state.done += 1
        if settings.kl.target and "objective/kl" in metrics:
            kl, target, horizon = metrics["objective/kl"], settings.kl.target, settings.kl.horizon
            state.kl_coef = losses.adapt_kl_coef(state.kl_coef, kl, target, horizon, settings.batch)
        metrics |= {"lr": state.actor.learning_rate, "episode": state.done * settings.batch}
        metrics["steps"] = state.actor.steps
        tokens = sum(map(len, rollout.answers))
        phases = {"/sample": answered - started, "/score": judged - answered, "/learn": learnt - judged}
        metrics |= {f"tokens_per_second{name}": tokens / max(seconds, 1e-9) for name, seconds in phases.items()}
        metrics["tokens_per_second"] = tokens / (learnt - started)
        log(state.done, metrics)


class Known(NamedTuple):
    """What is known of n answers, of at most t tokens, before anything is learnt from them."""

    reading: Reading
    mask: Tensor
    """(n, t)."""
    scores: Tensor
    """Clipped, and less the penalty of what was cut (n,)."""

    @property
    def kl(self) -> Tensor:
        """Give the estimate (k1) that a penalty in the reward takes (n, t); 0 where there is no start."""
        if self.reading.reference is None:
            return torch.zeros_like(self.reading.logprobs)
        return losses.estimate_kl(self.reading.logprobs, self.reading.reference, "k1")


def look(
    models: Models, state: State, rollout: Rollout, scored: Scored, settings: SamplingSettings
) -> tuple[Known, dict[str, float]]:
    """Let all models read the answers, and shape scores; second come the answers' metrics.

    Raises StageError where nothing was learnt yet and the policy is not its start, or where there is a pull but no
    start.
    """
    if settings.kl.coef and not models.can_compare:
        raise StageError("a policy without adapters needs a model of its own as reference")
    reading = layouts.read(models, rollout)
    logprobs, reference = reading.logprobs, reading.reference
    mask = answer_mask(rollout.answers, logprobs.device)
    scores, finished = scored.total.to(mask.device), mask.new_tensor(rollout.finished)
    if settings.reward.clip:
        scores = scores.clamp(-settings.reward.clip, settings.reward.clip)
    scores = losses.penalise_unfinished(scores, finished, settings.generation.penalty, settings.generation.unfinished)
    metrics = {
        "objective/scores": scores.mean(),
        "objective/scores_std": scores.std(unbiased=False),
        "objective/entropy": -logprobs.sum(dim=1).mean(),
        "policy/entropy_avg": losses.masked_mean(reading.entropy, mask),
        "eos_rate": finished.float().mean(),
        "length": mask.sum(dim=1).float().mean(),
        "val/length_corr": _correlation(scores, mask.sum(dim=1)),
    } | {f"scores/{name}": part.mean() for name, part in scored.parts.items()}
    if reference is not None:
        metrics |= _distances(logprobs, reference, scores, state.kl_coef)
    told = {name: float(value) for name, value in metrics.items()} | {"kl_coef": state.kl_coef}
    if reference is not None and not state.done:
        layouts.check_start(models, told["objective/kl_k2"], told["length"])
    return Known(reading, mask, scores), told


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Compute the correlation of two series (n,); 0 where one does not vary."""
    one, other = (series.float() - series.float().mean() for series in (one, other))
    return (one * other).mean() / (one.square().mean() * other.square().mean()).sqrt().clamp(min=1e-8)


def _distances(logprobs: Tensor, reference: Tensor, scores: Tensor, kl_coef: float) -> dict[str, Tensor]:
    """Tell how far the answers are from the start's, and what that leaves of their scores; zero outside of answers."""
    kl, k2, k3 = (losses.estimate_kl(logprobs, reference, name).sum(dim=1) for name in ("k1", "k2", "k3"))
    return {
        "objective/kl": kl.mean(),
        "objective/kl_k2": k2.mean(),
        "objective/kl_k3": k3.mean(),
        "objective/non_score_reward": -kl_coef * kl.mean(),
        "objective/rlhf_reward": (scores - kl_coef * kl).mean(),
    }
