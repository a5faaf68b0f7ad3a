"""Which of two answers is better, what is learnt from it, and the two answers themselves.

Legend: n pairs, t tokens of the longest answer. An answer's gain is log pi(y) - log pi_ref(y), in nats; a pair's margin
is the first answer's gain less the second one's; p is how likely the first answer is the better one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import PositiveFloat, PositiveInt

from alignkit import KL, SamplingSettings

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.kit import Count, Experience, Rollout, Scored, Update

Loss = Literal["sigmoid", "ipo", "hinge", "sppo"]
Labels = Literal["hard", "soft"]

JUDGED = ("win_rate", "requests", "tokens", "retries", "remembered")
"""Results that a method tells besides where judges are asked."""


class PairKL(KL):
    """The pull back to the starting policy."""

    coef: PositiveFloat = 0.1
    """DPO's beta: the smaller, the further the policy may go."""


class OwnPairSettings(SamplingSettings):
    """What is equal in the methods that learn from pairs of sampled answers."""

    method: ClassVar[str]

    epochs: PositiveInt = 1
    """How often each pair is learnt from."""
    kl: PairKL = PairKL()
    """The pull back to the starting policy."""
    loss: Loss = "sigmoid"
    """`sigmoid`: DPO's. `ipo`: towards a margin of 1/(2 coef) (arXiv 2310.12036). `hinge`: until the margin is 1/coef
    (SLiC, arXiv 2305.10425). `sppo`: each answer's gain towards its win rate less one half, over coef (arXiv
    2405.00675)."""
    labels: Labels = "hard"
    """`hard`: the better answer of a pair is taken for certain. `soft`: by the probability that judges say, or that
    Bradley and Terry's model makes of scores."""


class TwoSides(NamedTuple):
    """Two answers to each prompt, as they were scored side by side."""

    own: tuple[Rollout, Scored]
    """The policy's."""
    other: tuple[Rollout, Scored]


def preference_loss(gains: Tensor, p: Tensor, beta: float, loss: Loss) -> Tensor:
    """Compute the loss of each pair (n,), from the gains of its answers (n, 2) and p (n,).

    p l(m) + (1 - p) l(-m) for a margin m, with l(m) = -log sigmoid(beta m) (Rafailov et al. 2023, arXiv 2305.18290,
    equation 7), (m - 1/(2 beta))^2 (Azar et al. 2023, arXiv 2310.12036, equation 17) or max(0, 1 - beta m) (Zhao et
    al. 2023, arXiv 2305.10425, with DPO's gains as Guo et al. 2024, arXiv 2402.04792, have it). `sppo`: the squared
    distance of either gain from (win rate - 1/2) / beta (Wu et al. 2024, arXiv 2405.00675, equation 4.4).
    """
    from torch.nn.functional import logsigmoid

    if gains.ndim != 2 or gains.shape[1] != 2 or p.shape != gains.shape[:1]:
        raise ValueError(f"gains {tuple(gains.shape)} must be two for each of p {tuple(p.shape)}")
    if loss == "sppo":
        aim = (p - 0.5) / beta
        return (gains[:, 0] - aim).square() + (gains[:, 1] + aim).square()

    def preferring(margin: Tensor) -> Tensor:
        if loss == "ipo":
            return (margin - 1 / (2 * beta)).square()
        return (1 - beta * margin).relu() if loss == "hinge" else -logsigmoid(beta * margin)

    margin = gains[:, 0] - gains[:, 1]
    return p * preferring(margin) + (1 - p) * preferring(-margin)


def chance_of(one: Tensor, other: Tensor, judged: bool) -> Tensor:
    """Return how likely one of two scored answers is better (n,): by judges as they say, else by Bradley and Terry.

    A judge's score of an answer is its chance against the other, so that the two differ by 2 p - 1.
    """
    return ((1 + one - other) / 2).clamp(0, 1) if judged else (one - other).sigmoid()


def labelled(one: Tensor, other: Tensor, labels: Labels, judged: bool) -> Tensor:
    """Return p and 1 - p of each pair of scores (n, 2); 0 and 0 where they are equal and teach nothing."""
    import torch

    p = (one > other).to(one) if labels == "hard" else chance_of(one, other, judged)
    return torch.stack([p, 1 - p], dim=1).masked_fill((one == other)[:, None], 0.0)


def pair_loss(
    settings: OwnPairSettings, beta: float, part: Experience, logprobs: Tensor, count: Count
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of neighbours that are pairs, labelled by their advantages, as their share of a whole step."""
    from alignkit.kit import losses

    assert part.reference is not None  # coef is positive, so there is a start
    gains = (logprobs - part.reference).masked_fill(~part.mask, 0.0).sum(dim=1).view(-1, 2)
    labels, pairs = part.advantages.view(-1, 2), count.answers / 2
    loss = preference_loss(gains, labels[:, 0], beta, settings.loss) * labels.sum(dim=1)
    margins = (gains[:, 0] - gains[:, 1]).detach() * (labels[:, 0] - labels[:, 1]).sign()
    moved = (logprobs - part.logprobs).detach().square() / 2
    return loss.sum() / pairs, {
        "margin": margins.sum() / pairs,
        "approxkl": losses.masked_mean(moved, part.mask, count.tokens),
    }


def two_sides(update: Update[SamplingSettings], start: float) -> TwoSides:
    """Let the policy answer once, and its mixture with the start once; score both answers to a prompt together."""
    from alignkit.kit import Rollout

    own, other = update.sample(1), update.sample(1, start=start)
    both = Rollout(
        [row for row in own.rows for _ in range(2)],
        [prompt for prompt in own.prompts for _ in range(2)],
        [answer for two in zip(own.answers, other.answers, strict=True) for answer in two],
        [ended for two in zip(own.finished, other.finished, strict=True) for ended in two],
        together=2,
    )
    scored = update.score(both)
    return TwoSides((own, scored.every(2)), (other, scored.every(2, start=1)))
