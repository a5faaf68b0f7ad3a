"""Best of n: learn to imitate the best of a policy's own answers to each prompt.

Several answers are sampled to every prompt, rewards choose the best of them, and the policy is taught these as `sft`
teaches demonstrations; then it answers anew. This is RAFT (Dong et al. 2023, arXiv 2304.06767), and the rejection
sampling of Llama 2 (Touvron et al. 2023, arXiv 2307.09288, section 3.2.3); one update puts into weights what best of
n does at each question (Stiennon et al. 2020, arXiv 2009.01325; Nakano et al. 2021, arXiv 2112.09332).

1. Answers that were not kept teach nothing, so there is no ratio and no clip, and a scale of rewards does not matter:
   only their order within a prompt does.
2. With `kl.coef` answers are ordered by their score less coef times their log-probability's excess over the start's, as
   in RAFT's equation 6; the policy then settles where PPO's does.
3. Only the order within a prompt counts, so that hard prompts are learnt from as easy ones are. ReST (Gulcehre et al.
   2023, arXiv 2308.08998) keeps all answers above a threshold instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from alignkit.contract.advice import Advice
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Prompts, Reward
from alignkit.contract.method import Method, method
from alignkit.contract.needs import sampling_needs
from alignkit.contract.paper import Paper
from alignkit.contract.sampling_settings import KL, SamplingSettings
from alignkit.contract.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.training.losses import Count
    from alignkit.training.seen import Experience
    from alignkit.training.updates import Loop


class BestOfNSettings(SamplingSettings):
    """Settings of `best-of-n`."""

    method: ClassVar[str] = "best-of-n"

    batch: PositiveInt = 256
    """Answers in an update, those that are not kept included."""
    answers: PositiveInt = Field(default=8, ge=2)
    """Answers to each prompt; more make a better best one, and cost more."""
    keep: PositiveInt = 1
    """How many of them are learnt from, the best ones."""
    epochs: PositiveInt = 1
    """How often each answer that is kept is learnt from."""
    kl: KL = KL(coef=0.0)
    """What an answer's distance from the starting policy counts when the best ones are chosen."""

    @model_validator(mode="after")
    def _some_are_left_out(self) -> Self:
        if self.keep >= self.answers:
            raise ValueError(f"keep {self.keep} of {self.answers} answers chooses none; set keep below answers")
        return self


@method(
    "best-of-n",
    advice=Advice(
        "a reward scores any answer, and the simplest thing shall be tried first: imitate the best of several",
        "answers become alike, and nothing says what was bad",
    ),
    needs=sampling_needs,
    results=("reward", "reward/{rewards}", "kl", "length", "eos_rate"),
    papers=(
        Paper("raft", "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment", "arXiv 2304.06767"),
        Paper(
            "rejection-sampling",
            "Llama 2: Open Foundation and Fine-Tuned Chat Models",
            "arXiv 2307.09288",
            differs="its section 3.2.3; best answers of earlier rounds are not kept",
        ),
        Paper(
            "best-of-n",
            "WebGPT: Browser-assisted question-answering with human feedback",
            "arXiv 2112.09332",
            {"answers": 16, "updates": 1},
            differs="the best answers are learnt, where the paper samples anew for every question",
        ),
        Paper(
            "rest",
            "Reinforced Self-Training (ReST) for Language Modeling",
            "arXiv 2308.08998",
            {"epochs": 4},
            differs="keeps the best answers to each prompt, not all above a threshold that rises; its "
            "steps of improvement are epochs",
        ),
    ),
)
def best_of_n(
    settings: BestOfNSettings,
    stage: Stage,
    *,
    policy: Policy,
    rewards: tuple[Reward, ...],
    prompts: Prompts,
    reference: Policy | None = None,
) -> Policy:
    """Learn to imitate the best of a policy's own answers, as rewards choose them."""
    from alignkit.training.layouts import Around
    from alignkit.training.roles import Roles
    from alignkit.training.updates import open_loop

    loop, finish = open_loop(
        settings, stage, Roles(policy, rewards, prompts, reference=reference), Around(start=settings.needs_start)
    )
    train(loop)
    return finish()


def train(loop: Loop[BestOfNSettings]) -> None:
    """Sample groups of answers, score, keep the best of each, imitate them; as often as there are updates left."""
    from alignkit.training import losses
    from alignkit.training.policy_steps import step_policy

    settings = loop.settings
    for update in loop.updates():
        rollout = update.sample()
        seen = update.read(rollout, update.score(rollout))
        worth = seen.scores - loop.state.kl_coef * seen.kl.sum(dim=1)  # (n,)
        best = losses.best_of_groups(worth, settings.answers, settings.keep)
        kept = {
            "objective/scores_kept": float(seen.scores[best].mean()),
            "val/groups_without_signal": float(losses.share_of_equal_groups(seen.scores, settings.answers)),
        }
        experience = seen.experience(seen.scores).take(best.tolist())
        update.done({**seen.metrics, **kept, **step_policy(update, experience, imitation_loss)})


def imitation_loss(part: Experience, logprobs: Tensor, count: Count) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of answers as demonstrations, -log pi of a token in the mean, and metrics, as a step's share."""
    from alignkit.training import losses

    moved = (logprobs - part.logprobs).detach().square() / 2
    return losses.masked_mean(-logprobs, part.mask, count.tokens), {
        "approxkl": losses.masked_mean(moved, part.mask, count.tokens)
    }


@hookimpl
def alignkit_methods() -> list[Method]:
    return [best_of_n]
