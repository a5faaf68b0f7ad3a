"""PPO: raise the reward of a policy's own answers, and keep it close to where it started.

Maximises E[score(answer)] - kl_coef * KL(policy || start) by proximal policy optimisation (Schulman et al. 2017,
arXiv 1707.06347), as it was brought to language models by Ziegler et al. (2019, arXiv 1909.08593) and Stiennon et al.
(2020, arXiv 2009.01325). One update is: sample answers, score them, shape a reward for every token, estimate
advantages, and take several epochs of clipped steps.

1. The critic is a model of its own with its own learning rate, so no coefficient weighs its loss.
2. The score stands on an answer's last token, whether it ended by itself or was cut.
3. Log-probabilities are recomputed by a full pass, never taken from decoding; dropout is off throughout.
4. Where costs are bounded, one critic learns the value of what is maximised, reward less what costs take off; Safe RLHF
   (Dai et al. 2023, arXiv 2310.12773) has a second one for costs.
5. Entropy bonus, pretraining loss and sampling tricks (top-k and the like) are left out: the first two are zero in all
   of these papers' chosen settings or need other data, the last makes the ratios wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from alignkit.contract.advice import Advice
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Prompts, Reward
from alignkit.contract.method import Method, method
from alignkit.contract.needs import SamplingNeeds, sampling_needs
from alignkit.contract.paper import Paper
from alignkit.contract.sampling_settings import KL, Generation, RewardShape, SamplingSettings
from alignkit.contract.settings import Settings
from alignkit.contract.stage import Stage
from alignkit.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.training.layouts import Models
    from alignkit.training.seen import Experience, Seen
    from alignkit.training.step import Learner
    from alignkit.training.updates import Loop, Update

__all__ = ["KL", "CriticSettings", "Generation", "PPORewardShape", "PPOSettings", "ppo", "train"]

VALUE_METRICS = {"loss": "loss/value_avg", "clipfrac": "val/clipfrac_avg", "grad_norm": "val/grad_norm"}


class CriticSettings(Settings):
    """The model that learns what an unfinished answer will be worth."""

    init: Literal["auto", "reward", "policy"] = "auto"
    """Start from the reward model, or from the policy with values of zero. `auto`: from the reward model, where the
    first reward is one that reads the policy's tokens."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate. Unset: 3e-5 for a critic with a body of its own, a few times the policy's; for a head on d
    hidden states 1/d, by which a step moves a value by about 1."""
    warmup: NonNegativeInt = 0
    """Updates at the start in which the critic alone learns."""
    clip: NonNegativeFloat = 0.2
    """How far one update may move a value. 0: as far as it likes."""
    weight: PositiveFloat = 0.1
    """Share of its loss, measured in variances of the returns, beside the policy's where both have one body; more makes
    better values of a body that serves the policy less."""


class PPORewardShape(RewardShape):
    """What is done to scores before they are learnt from."""

    whiten: bool = False
    """Scale the rewards of all tokens of an update to variance 1."""


class PPOSettings(SamplingSettings):
    """Settings of `ppo`."""

    method: ClassVar[str] = "ppo"

    clip: PositiveFloat = 0.2
    """How far a token's probability may move in one update before its gradient stops, as a share."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount from token to token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Trust in sampled rewards (1) against the critic (0), by GAE."""
    critic: CriticSettings = CriticSettings()
    """The model that learns what an unfinished answer will be worth."""
    reward: PPORewardShape = PPORewardShape()
    """What is done to scores before they are learnt from."""
    layout: Literal["separate", "shared", "frozen"] = "separate"
    """`separate`: the critic is a model of its own. `shared`: it is a head on the policy; about half the work and
    memory. `frozen`: shared, and only the upper layers learn; a fraction of both, for models that can be cut."""
    trained_layers: PositiveInt = 2
    """How many of the upper layers learn in the layout `frozen`."""

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.layout != "separate" and self.critic.init == "reward":
            raise ValueError(
                'critic.init = "reward" needs a critic with a body of its own; set layout = "separate", or leave it out'
            )
        if self.layout == "frozen" and self.lora:
            raise ValueError('layout = "frozen" trains upper layers and lora added matrices; choose one of them')
        return self


def needs(settings: PPOSettings) -> SamplingNeeds:
    """Return what the loop will do, with a critic."""
    return replace(
        sampling_needs(settings),
        critic="separate" if settings.layout == "separate" else "shared",
        upper_layers=settings.trained_layers if settings.layout == "frozen" else None,
        start=True,
    )


PAPERS = (
    Paper(
        "ppo",
        "Proximal Policy Optimization Algorithms",
        "arXiv 1707.06347",
        differs="no entropy bonus; the pull to the start is that of lm-human-preferences",
    ),
    Paper(
        "gae",
        "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
        "arXiv 1506.02438",
        differs="its estimator of advantages alone",
    ),
    Paper(
        "lm-human-preferences",
        "Fine-Tuning Language Models from Human Preferences",
        "arXiv 1909.08593",
        {
            "layout": "shared",
            "kl": {"coef": 0.15, "target": 6.0, "horizon": 10_000.0},
            "reward": {"whiten": True},
            "minibatches": 1,
        },
        "answers end by themselves; the critic's loss is weighed in variances of the returns",
    ),
    Paper(
        "summarize-from-feedback",
        "Learning to summarize from human feedback",
        "arXiv 2009.01325",
        {"layout": "separate", "critic": {"init": "reward"}, "kl": {"coef": 0.05}},
    ),
    Paper(
        "instructgpt",
        "Training language models to follow instructions with human feedback",
        "arXiv 2203.02155",
        {"layout": "separate", "critic": {"init": "reward"}, "kl": {"coef": 0.02}, "epochs": 1, "minibatches": 8},
        "the loss of pretraining beside it (PPO-ptx) is left out",
    ),
    Paper(
        "n-plus",
        "The N+ Implementation Details of RLHF with PPO: A Case Study on TL;DR Summarization",
        "arXiv 2403.17031",
        {
            "layout": "separate",
            "critic": {"init": "reward"},
            "kl": {"coef": 0.05},
            "minibatches": 1,
            "generation": {"temperature": 0.7},
        },
        "nothing is sampled or learnt behind the end of an answer; log-probabilities are a full pass's, not decoding's",
    ),
    Paper(
        "safe-rlhf",
        "Safe RLHF: Safe Reinforcement Learning from Human Feedback",
        "arXiv 2310.12773",
        differs="a bound under `constraints`; one critic for reward less cost, projected steps of the multiplier, "
        "the whole pull on the reward, no pretraining loss",
    ),
    Paper(
        "ppo-lagrangian",
        "Benchmarking Safe Exploration in Deep Reinforcement Learning",
        "https://cdn.openai.com/safexp-short.pdf",
        differs="a bound under `constraints`, its `gain` 0; one critic for reward less cost",
    ),
    Paper(
        "pid-lagrangian",
        "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods",
        "arXiv 2007.03964",
        differs="a bound under `constraints`; its `learning_rate` is the integral part and its `gain` the "
        "proportional one, the derivative is left out",
    ),
    Paper(
        "rcpo",
        "Reward Constrained Policy Optimization",
        "arXiv 1805.11074",
        differs="a bound under `constraints`; steps of the multiplier have one size, where the paper's fall",
    ),
    Paper(
        "constrained-rlhf",
        "Confronting Reward Model Overoptimization with Constrained RLHF",
        "arXiv 2310.04373",
        differs="bounds under `constraints`, of rewards that are also `rewarded`; where they lie is yours to find",
    ),
)


@method(
    "ppo",
    advice=Advice(
        "a reward scores any answer, and memory allows a critic; the best known of those that sample",
        "the policy exploits what the reward gets wrong: rewards rise with the KL while answers get worse",
    ),
    needs=needs,
    results=("reward", "reward/{rewards}", "cost/{costs}", "kl", "length", "eos_rate"),
    papers=PAPERS,
)
def ppo(
    settings: PPOSettings,
    stage: Stage,
    *,
    policy: Policy,
    rewards: tuple[Reward, ...],
    prompts: Prompts,
    costs: tuple[Reward, ...] = (),
    reference: Policy | None = None,
) -> Policy:
    """Raise the rewards of a policy's own answers, and keep it close to where it started."""
    from alignkit.training.layouts import Around
    from alignkit.training.roles import Roles
    from alignkit.training.updates import open_loop

    around = Around(
        critic=settings.critic.init,
        layout="separate" if settings.layout == "separate" else "shared",
        trained_layers=settings.trained_layers if settings.layout == "frozen" else None,
    )
    loop, finish = open_loop(
        settings, stage, Roles(policy, rewards, prompts, costs, reference), around, settings.critic.learning_rate
    )
    train(loop)
    return finish()


def train(loop: Loop[PPOSettings]) -> None:
    """Sample, score, shape a reward for every token, estimate advantages, step; as often as there are updates left."""
    from alignkit.training import losses

    settings = loop.settings
    for update in loop.updates():
        rollout = update.sample()
        seen = update.read(rollout, update.score(rollout))

        rewards = losses.token_rewards(seen.scores, seen.kl, seen.mask, seen.kl_coef)  # (n, t)
        if settings.reward.whiten:
            rewards = losses.whiten(rewards, seen.mask, shift_mean=False)
        values = values_of(seen)
        advantages, returns = losses.estimate_advantages(rewards, values, seen.mask, settings.gamma, settings.lam)
        explained = {"val/explained_var": float(losses.explained_variance(values, returns, seen.mask))}

        experience = seen.experience(losses.whiten(advantages, seen.mask), returns)
        update.done({**seen.metrics, **explained, **step(update, experience)})


def values_of(seen: Seen) -> Tensor:
    """Return the critic's values (n, t). Raise StageError where there is none."""
    if seen.values is None:
        raise StageError("ppo needs a critic, and none was opened")
    return seen.values


def step(update: Update[PPOSettings], experience: Experience) -> dict[str, float]:
    """Take the optimiser steps of one update; during the critic's warm-up it learns alone."""
    from alignkit.training.layouts import ValueHead, check_first_step, passes
    from alignkit.training.step import mean_metrics, minibatches
    from alignkit.training.updates import POLICY_METRICS

    models, settings, learning = update.loop.models, update.loop.settings, dict(update.loop.state.learners)
    if update.number < settings.critic.warmup:
        del learning["policy"]
    shared = isinstance(models.critic, ValueHead)
    take = partial(joint_step, scale=spread(experience)) if shared else separate_steps
    steps: dict[str, list[dict[str, float]]] = {"policy": [], "critic": []}
    for rows in minibatches(len(experience.answers), settings.epochs, settings.minibatches, update.chance):
        minibatch = experience.take(rows)
        parts = [minibatch.take(group) for group in passes(models, minibatch.prompts, minibatch.answers)]
        for name, metrics in take(models, learning, parts, settings).items():
            steps[name].append(metrics)
        if "policy" in learning and len(steps["policy"]) == 1:
            check_first_step(models, steps["policy"][0]["approxkl"])
        if settings.kl.stop and "policy" in learning and steps["policy"][-1]["approxkl"] > settings.kl.stop:
            if shared:
                break  # Its steps would move the policy on.
            del learning["policy"]
    return mean_metrics(steps["policy"], POLICY_METRICS) | mean_metrics(steps["critic"], VALUE_METRICS)


def separate_steps(
    models: Models, learners: Mapping[str, Learner], parts: Sequence[Experience], settings: PPOSettings
) -> dict[str, dict[str, float]]:
    """Take one step of the policy and one of a critic with a body of its own, and give the metrics of each."""
    from alignkit.training.layouts import critic_values, policy_logprobs
    from alignkit.training.losses import weighted
    from alignkit.training.step import take_step

    tokens = sum(int(part.mask.sum()) for part in parts)

    def policy(part: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs = weighted(policy_logprobs(models, part.prompts, part.answers), part.weights)
        return policy_loss(logprobs, part, settings, tokens)

    def critic(part: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        return value_loss(critic_values(models, part.prompts, part.answers), part, settings, tokens)

    objectives = {"policy": policy, "critic": critic}
    return {name: take_step(learner, parts, objectives[name]) for name, learner in learners.items()}


def joint_step(
    models: Models, learners: Mapping[str, Learner], parts: Sequence[Experience], settings: PPOSettings, scale: float
) -> dict[str, dict[str, float]]:
    """Take one step of a policy that carries the critic's head, and give the metrics of each.

    The critic's loss is divided by `scale`, so that rewards of any size leave the policy its share of the body.
    """
    from alignkit.training.layouts import logprobs_and_values
    from alignkit.training.losses import weighted
    from alignkit.training.step import take_joint_step

    tokens = sum(int(part.mask.sum()) for part in parts)
    alone = "policy" not in learners

    def both(part: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, values = logprobs_and_values(models, part.prompts, part.answers, part.states, head_alone=alone)
        ours, told = policy_loss(weighted(logprobs, part.weights), part, settings, tokens)
        theirs, also = value_loss(values, part, settings, tokens)
        metrics = {f"policy/{name}": value for name, value in {"loss": ours, **told}.items()}
        metrics |= {f"critic/{name}": value for name, value in {"loss": theirs, **also}.items()}
        return theirs * (settings.critic.weight / scale) + (0.0 if alone else ours), metrics

    sums = take_joint_step(learners, parts, both)
    return {
        learner: {name.removeprefix(f"{learner}/"): value for name, value in sums.items() if name.startswith(learner)}
        for learner in learners
    }


def spread(experience: Experience) -> float:
    """Compute the variance of an update's returns."""
    from alignkit.training.losses import masked_mean

    assert experience.returns is not None
    mean = masked_mean(experience.returns, experience.mask)
    return max(float(masked_mean((experience.returns - mean).square(), experience.mask)), 1e-4)


def policy_loss(
    logprobs: Tensor, part: Experience, settings: PPOSettings, tokens: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the policy's loss and its metrics as their share of a step that has so many answer tokens."""
    from alignkit.training.losses import clipped_policy_loss, masked_mean

    result = clipped_policy_loss(logprobs, part.logprobs, part.advantages, part.mask, settings.clip, tokens)
    ratio = masked_mean(result.ratio, part.mask, tokens)
    return result.loss, {"approxkl": result.approximate_kl, "clipfrac": result.clip_fraction, "ratio": ratio}


def value_loss(
    values: Tensor, part: Experience, settings: PPOSettings, tokens: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the critic's loss and its metrics, likewise."""
    from alignkit.training.losses import clipped_value_loss

    assert part.values is not None
    assert part.returns is not None
    result = clipped_value_loss(values, part.values, part.returns, part.mask, settings.critic.clip or None, tokens)
    return result.loss, {"clipfrac": result.clip_fraction}


@hookimpl
def alignkit_methods() -> list[Method]:
    return [ppo]
