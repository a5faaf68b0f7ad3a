"""Nash-MD: raise the chance that a policy's answer is preferred to one of its own mixture with the start.

Nash learning from human feedback (Munos et al. 2023, arXiv 2312.00886). Preferences need no score behind them: A may be
better than B, B than C and C than A, and what is then sought is the policy that no other one beats, the Nash
equilibrium of the game of answers, pulled to the start. The opponent answers by the geometric mixture of policy and
start, which the paper shows to converge in the last iterate.

1. Its gradient is grad log pi(y) * (P(y better than y') - 1/2 - coef * log(pi(y) / pi_ref(y))), y' of the opponent
   (section 7); in several steps on the same answers a clipped ratio of whole answers keeps them in bounds, as in RLOO.
2. P is a judge's, asked in both orders, or the one that Bradley and Terry's model makes of two scores.
3. The mixture is made token by token, as in the paper's experiments; as a distribution of answers it is not normalised
   the same way.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from alignkit import (
    Advice,
    Judge,
    Paper,
    Policy,
    Prompts,
    Reward,
    SamplingNeeds,
    SamplingSettings,
    Stage,
    method,
    sampling_needs,
)
from alignkit_online.preferring import JUDGED, chance_of, two_sides

if TYPE_CHECKING:
    from alignkit.kit import Loop


class NashMDSettings(SamplingSettings):
    """Settings of `nash-md`."""

    method: ClassVar[str] = "nash-md"

    answers: Literal[2] = 2
    """To each prompt, one of the policy, which is learnt from, and one of its opponent."""
    epochs: PositiveInt = 1
    """How often each answer is learnt from."""
    clip: PositiveFloat = 0.2
    """How far a whole answer's probability may move in one update before its gradient stops, as a share."""
    mixture: float = Field(default=0.5, ge=0, le=1)
    """The start's exponent in the opponent, policy^(1 - mixture) * start^mixture at every token. 0: the policy plays
    against itself; 1: against its start."""


def needs(settings: NashMDSettings) -> SamplingNeeds:
    """Return what the loop will do; the start is there for the pull or as a part of the opponent."""
    return replace(sampling_needs(settings), start=settings.needs_start or settings.mixture > 0)


@method(
    "nash-md",
    advice=Advice(
        "preferences are not transitive, and the policy shall hold against itself",
        "answers of the mixture cost as much again; gains are slow",
    ),
    needs=needs,
    results=("reward", "reward/{rewards}", "kl", "length", "eos_rate", *JUDGED),
    papers=(
        Paper("nash-md", "Nash Learning from Human Feedback", "arXiv 2312.00886", {"mixture": 0.125}),
        Paper(
            "self-play",
            "Nash Learning from Human Feedback",
            "arXiv 2312.00886",
            {"mixture": 0.0},
            differs="the baseline of the paper's comparisons: the policy plays against itself",
        ),
    ),
)
def nash_md(
    settings: NashMDSettings,
    stage: Stage,
    *,
    policy: Policy,
    rewards: tuple[Reward | Judge, ...],
    prompts: Prompts,
    reference: Policy | None = None,
) -> Policy:
    """Raise the chance that a policy's answer is preferred to one of its own mixture with its start."""
    from alignkit.kit import Around, Roles, open_loop

    loop, finish = open_loop(
        settings, stage, Roles(policy, rewards, prompts, reference=reference), Around(start=needs(settings).start)
    )
    train(loop)
    return finish()


def train(loop: Loop[NashMDSettings]) -> None:
    """Let policy and opponent answer, ask which is better, step on the policy's; as often as there are updates left."""
    from alignkit.kit import shaped, step_policy, whole_answer_loss

    settings = loop.settings
    for update in loop.updates():
        own, (rollout, scored) = two_sides(update, start=settings.mixture)
        seen = update.read(*own)
        theirs = shaped(rollout, scored, settings).to(seen.scores)
        chances = chance_of(seen.scores, theirs, loop.judged)  # (m,)
        advantages = chances - 0.5 - loop.state.kl_coef * seen.kl.sum(dim=1)
        won = {"val/wins_over_opponent": float(chances.mean())}
        objective = partial(whole_answer_loss, settings.clip)
        update.done({**seen.metrics, **won, **step_policy(update, seen.experience(advantages), objective)})
