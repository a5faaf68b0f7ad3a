"""Online DPO: sample answers, let rewards or a judge choose among them, and learn the choice by DPO at once.

Direct preference alignment from online AI feedback (Guo et al. 2024, arXiv 2402.04792). DPO's pairs come from another
policy and grow stale as it learns; here they are always the policy's own, and what chooses may be anything that scores
or compares answers. With labels that are soft, the optimum is that of E[score] - coef * KL(policy || start), which is
PPO's, without a critic and without a ratio.

1. More than two answers to a prompt make one pair of the best and the worst of them, as rejection sampling does.
2. Judges are asked of every two answers in both orders; the mean counts, so that a place alone wins nothing.
3. A pair of equal scores teaches nothing, and is left out of the loss.
4. `loss = "ipo"` is Online IPO, and with `mixture` above 0 IPO-MD (Calandriello et al. 2024, arXiv 2403.08635); their
   fixed point is the Nash equilibrium of the regularised game that answers play by preference.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from alignkit import Advice, Judge, Paper, Policy, Prompts, Reward, Stage, method, sampling_needs
from alignkit_online.preferring import JUDGED, OwnPairSettings, labelled, pair_loss

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.kit import Loop


OAIF = "Direct Language Model Alignment from Online AI Feedback"
ONLINE_IPO = "Human Alignment of Large Language Models through Online Preference Optimisation"


class OnlineDPOSettings(OwnPairSettings):
    """Settings of `online-dpo`."""

    method: ClassVar[str] = "online-dpo"

    answers: PositiveInt = Field(default=2, ge=2)
    """Answers to each prompt, of which the best and the worst are learnt from; with judges every two are compared."""
    mixture: float = Field(default=0.0, ge=0, lt=1)
    """The start's exponent in what answers, policy^(1 - mixture) * start^mixture at every token. 0: only the policy."""


@method(
    "online-dpo",
    advice=Advice(
        "a judge or a reward compares the policy's own answers, and a critic is not wanted",
        "a judge's taste is exploited; half of the answers are written to be rejected",
    ),
    needs=sampling_needs,
    results=("reward", "reward/{rewards}", "kl", "length", "eos_rate", *JUDGED),
    papers=(
        Paper("online-dpo", OAIF, "arXiv 2402.04792"),
        Paper("oaif", OAIF, "arXiv 2402.04792"),
        Paper("online-ipo", ONLINE_IPO, "arXiv 2403.08635", {"loss": "ipo", "labels": "soft"}),
        Paper("ipo-md", ONLINE_IPO, "arXiv 2403.08635", {"loss": "ipo", "labels": "soft", "mixture": 0.125}),
        Paper(
            "sppo",
            "Self-Play Preference Optimization for Language Model Alignment",
            "arXiv 2405.00675",
            {"loss": "sppo", "labels": "soft", "answers": 2, "kl": {"coef": 1e-3}},
            differs="two answers to a prompt, where the paper samples five; the start is the reference of all updates; "
            "`[repeat]` moves it every round, as the paper does",
        ),
    ),
)
def online_dpo(
    settings: OnlineDPOSettings,
    stage: Stage,
    *,
    policy: Policy,
    rewards: tuple[Reward | Judge, ...],
    prompts: Prompts,
    reference: Policy | None = None,
) -> Policy:
    """Learn from the better and the worse of a policy's own answers, as rewards or a judge choose them."""
    from alignkit.kit import Around, Roles, open_loop

    loop, finish = open_loop(settings, stage, Roles(policy, rewards, prompts, reference=reference), Around())
    train(loop)
    return finish()


def train(loop: Loop[OnlineDPOSettings]) -> None:
    """Sample answers, score, choose two of each group, step; as often as there are updates left."""
    from alignkit.kit import losses, step_policy

    settings = loop.settings
    for update in loop.updates():
        rollout = update.sample(start=settings.mixture)
        seen = update.read(rollout, update.score(rollout))
        rows = best_and_worst(seen.scores, settings.answers)  # (m, 2)
        labels = seen.scores.new_zeros(len(seen.scores))
        best, worst = seen.scores[rows].unbind(dim=1)
        labels[rows] = labelled(best, worst, settings.labels, loop.judged)
        experience = seen.experience(labels).take(rows.flatten().tolist())
        equal = {"val/groups_without_signal": float(losses.share_of_equal_groups(seen.scores, settings.answers))}
        objective = partial(pair_loss, settings, loop.state.kl_coef)
        update.done({**seen.metrics, **equal, **step_policy(update, experience, objective, together=2)})


def best_and_worst(scores: Tensor, answers: int) -> Tensor:
    """Return the rows of the best and the worst of each group of `answers` neighbours (n / answers, 2); scores (n,)."""
    import torch

    groups = scores.view(-1, answers)
    starts = torch.arange(len(groups), device=scores.device) * answers
    return torch.stack([starts + groups.argmax(dim=1), starts + groups.argmin(dim=1)], dim=1)
