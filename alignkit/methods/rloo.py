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

from alignkit.contract.advice import Advice
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Prompts, Reward
from alignkit.contract.method import Method, method
from alignkit.contract.needs import group_needs
from alignkit.contract.paper import Paper
from alignkit.contract.sampling_settings import GroupSettings
from alignkit.contract.stage import Stage

if TYPE_CHECKING:
    from alignkit.training.updates import Loop


class RLOOSettings(GroupSettings):
    """Settings of `rloo`."""

    method: ClassVar[str] = "rloo"

    answers: PositiveInt = 4
    """Answers to each prompt, which are compared with each other; more make a steadier comparison. At least 2."""
    clip: PositiveFloat = 0.2
    """How far a whole answer's probability may move in one update before its gradient stops, as a share."""


PAPERS = (
    Paper(
        "rloo",
        "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
        "arXiv 2402.14740",
        {"answers": 4, "epochs": 1, "minibatches": 1, "kl": {"coef": 0.03}},
        "scores are not whitened",
    ),
    Paper(
        "leave-one-out",
        "Buy 4 REINFORCE Samples, Get a Baseline for Free!",
        "https://openreview.net/forum?id=r1lgTGL5DE",
        {"answers": 4, "epochs": 1, "minibatches": 1},
        "there for routes of a travelling salesman; its sampling without replacement is left out",
    ),
)


@method(
    "rloo",
    advice=Advice(
        "as for grpo, with an unbiased estimate and answers that are short",
        "with few answers to a prompt the estimate is noisy",
    ),
    needs=group_needs,
    results=("reward", "reward/{rewards}", "cost/{costs}", "kl", "length", "eos_rate"),
    papers=PAPERS,
)
def rloo(
    settings: RLOOSettings,
    stage: Stage,
    *,
    policy: Policy,
    rewards: tuple[Reward, ...],
    prompts: Prompts,
    costs: tuple[Reward, ...] = (),
    reference: Policy | None = None,
) -> Policy:
    """Raise the rewards of a policy's own answers, each judged by the mean of the others to its prompt."""
    from alignkit.training.layouts import Around
    from alignkit.training.roles import Roles
    from alignkit.training.updates import open_loop

    around = Around(trained_layers=settings.trained_layers, start=settings.needs_start)
    loop, finish = open_loop(settings, stage, Roles(policy, rewards, prompts, costs, reference), around)
    train(loop)
    return finish()


def train(loop: Loop[RLOOSettings]) -> None:
    """Sample groups of answers, score, compare each reward with the others of its group, step; as often as is left."""
    from alignkit.training import losses
    from alignkit.training.policy_steps import step_policy, whole_answer_loss

    settings = loop.settings
    for update in loop.updates():
        rollout = update.sample()
        seen = update.read(rollout, update.score(rollout))
        rewards = seen.scores - seen.kl_coef * seen.kl.sum(dim=1)  # (n,)
        advantages = losses.leave_one_out_advantages(rewards, settings.answers)
        equal = {"val/groups_without_signal": float(losses.share_of_equal_groups(seen.scores, settings.answers))}
        objective = partial(whole_answer_loss, settings.clip)
        update.done({**seen.metrics, **equal, **step_policy(update, seen.experience(advantages), objective)})


@hookimpl
def alignkit_methods() -> list[Method]:
    return [rloo]
