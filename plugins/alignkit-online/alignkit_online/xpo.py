"""XPO: online DPO that is paid for exploring, by making answers of its start less likely.

Exploratory preference optimisation (Xie et al. 2024, arXiv 2405.21046). The policy and its start answer each prompt
once; the pair is learnt by DPO, and alpha * log pi(answer of the start) is added to the loss. It moves probability away
from where the start already is, so that answers are tried which online DPO would hardly ever sample.

1. With alpha 0 it is online DPO on pairs of the policy's and the start's answers.
2. The paper trains anew on all pairs so far in every round; here, as in its experiments, each update learns its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat

from alignkit import Advice, Judge, Paper, Policy, Prompts, Reward, Stage, method, sampling_needs
from alignkit_online.preferring import JUDGED, OwnPairSettings, labelled, pair_loss, two_sides

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.kit import Count, Experience, Loop


class XPOSettings(OwnPairSettings):
    """Settings of `xpo`."""

    method: ClassVar[str] = "xpo"

    answers: Literal[2] = 2
    """To each prompt, one of the policy and one of its start."""
    alpha: NonNegativeFloat = 1e-5
    """What is paid for exploring: the weight of the log-probability of the start's answer in the loss."""


@method(
    "xpo",
    advice=Advice(
        "as for online-dpo, where the policy must find answers that it would seldom give",
        "what explores may also wander: look at the KL",
    ),
    needs=sampling_needs,
    results=("reward", "reward/{rewards}", "kl", "length", "eos_rate", *JUDGED),
    papers=(
        Paper(
            "xpo",
            "Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for Sample-Efficient RLHF",
            "arXiv 2405.21046",
            differs="each update learns its own pairs, not all that there were",
        ),
    ),
)
def xpo(
    settings: XPOSettings,
    stage: Stage,
    *,
    policy: Policy,
    rewards: tuple[Reward | Judge, ...],
    prompts: Prompts,
    reference: Policy | None = None,
) -> Policy:
    """Learn from a policy's answers beside its start's by DPO, and explore where the start would not."""
    from alignkit.kit import Around, Roles, open_loop

    loop, finish = open_loop(settings, stage, Roles(policy, rewards, prompts, reference=reference), Around())
    train(loop)
    return finish()


def train(loop: Loop[XPOSettings]) -> None:
    """Let policy and start answer, score both, step on the pairs; as often as there are updates left."""
    from alignkit.kit import step_policy

    settings = loop.settings
    for update in loop.updates():
        own, other = two_sides(update, start=1.0)
        seen, beside = update.read(*own), update.read(*other)
        labels = labelled(seen.scores, beside.scores, settings.labels, loop.judged)  # (m, 2)
        experience = seen.experience(labels[:, 0]).alternating(beside.experience(labels[:, 1]))
        won = {"val/wins_over_start": float((0.5 + (labels[:, 0] - labels[:, 1]) / 2).mean())}  # a tie is half a win
        objective = partial(exploring_loss, settings, loop.state.kl_coef)
        update.done({**seen.metrics, **won, **step_policy(update, experience, objective, together=2)})


def exploring_loss(
    settings: XPOSettings, beta: float, part: Experience, logprobs: Tensor, count: Count
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute DPO's loss and alpha times the start's answers' log-probability, a mean over pairs (Algorithm 1, line 8).

    Of each two neighbours the second is the start's answer.
    """
    loss, metrics = pair_loss(settings, beta, part, logprobs, count)
    of_start = logprobs.masked_fill(~part.mask, 0.0).sum(dim=1)[1::2].sum() / (count.answers / 2)
    return loss + settings.alpha * of_start, {**metrics, "logp_of_start": of_start.detach()}
