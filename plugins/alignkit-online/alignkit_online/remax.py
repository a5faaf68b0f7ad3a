"""ReMax: raise the rewards of a policy's own answers, each judged by that of its likeliest answer to the same prompt.

Li et al. 2023 (arXiv 2310.10505): REINFORCE, whose baseline is the score of the answer that takes the likeliest token
each time. No critic, and one answer a prompt is enough; the likeliest answer costs one more, which is not learnt from.
The baseline does not depend on the answer that it judges, so the gradient of E[score] - coef * KL stays unbiased.

1. The pull stands in the reward of a whole answer, its log-probability's excess over the start's, as in RLOO; the
   baseline is the score alone.
2. With several steps on the same answers a clipped ratio of whole answers keeps them in bounds; in the first step it is
   1, and the gradient the paper's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat, PositiveInt

from alignkit import Advice, Paper, Policy, Prompts, Reward, SamplingSettings, Stage, method, sampling_needs

if TYPE_CHECKING:
    from alignkit.kit import Loop


class ReMaxSettings(SamplingSettings):
    """Settings of `remax`."""

    method: ClassVar[str] = "remax"

    epochs: PositiveInt = 1
    """How often each answer is learnt from."""
    clip: PositiveFloat = 0.2
    """How far a whole answer's probability may move in one update before its gradient stops, as a share."""


@method(
    "remax",
    advice=Advice(
        "as for ppo, with half of its memory: a greedy answer stands for the critic",
        "each prompt is answered twice, and greedy answers that never change teach little",
    ),
    needs=sampling_needs,
    results=("reward", "reward/{rewards}", "kl", "length", "eos_rate"),
    papers=(
        Paper(
            "remax",
            "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language "
            "Models",
            "arXiv 2310.10505",
            {"minibatches": 1},
        ),
    ),
)
def remax(
    settings: ReMaxSettings,
    stage: Stage,
    *,
    policy: Policy,
    rewards: tuple[Reward, ...],
    prompts: Prompts,
    reference: Policy | None = None,
) -> Policy:
    """Raise the rewards of a policy's own answers, each judged by its likeliest answer to the same prompt."""
    from alignkit.kit import Around, Roles, open_loop

    loop, finish = open_loop(
        settings, stage, Roles(policy, rewards, prompts, reference=reference), Around(start=settings.needs_start)
    )
    train(loop)
    return finish()


def train(loop: Loop[ReMaxSettings]) -> None:
    """Sample answers and the likeliest one, score, compare, step; as often as there are updates left."""
    from alignkit.kit import shaped, step_policy, whole_answer_loss

    settings = loop.settings
    for update in loop.updates():
        rollout, likeliest = update.sample(), update.sample(1, greedy=True)
        seen = update.read(rollout, update.score(rollout))
        greedy = shaped(likeliest, update.score(likeliest), settings).to(seen.scores)  # (n / answers,)
        baseline = greedy.repeat_interleave(settings.answers)  # (n,)
        advantages = seen.scores - baseline - loop.state.kl_coef * seen.kl.sum(dim=1)
        told = {"objective/scores_of_likeliest": float(greedy.mean())}
        objective = partial(whole_answer_loss, settings.clip)
        update.done({**seen.metrics, **told, **step_policy(update, seen.experience(advantages), objective)})
