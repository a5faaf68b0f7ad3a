"""What models make of sampled answers before anything is learnt from them, and what is then to be learnt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.training import layouts, losses
from alignkit.training.layouts import Models
from alignkit.training.lengths import UNSET_ANSWER
from alignkit.training.rollouts import Rollout, Tokens, learnt_mask, padded_table
from alignkit.training.scoring import Scored


@dataclass(frozen=True)
class Experience:
    """n answers of t tokens at most, and what to learn from them; tables are (n, t), right-padded."""

    prompts: Sequence[Tokens]
    answers: Sequence[Tokens]
    mask: Tensor
    """The tokens that are learnt from: those that the policy sampled."""
    logprobs: Tensor
    """By the policy that sampled them."""
    advantages: Tensor
    """(n,), one for all tokens of an answer, or (n, t)."""
    reference: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None
    states: Sequence[Tensor] | None = None
    """What frozen layers made of each row, where there are some."""
    weights: Tensor | None = None
    """What each token counts for in the policy's gradient, where another policy drew it."""

    def take(self, rows: Sequence[int]) -> "Experience":
        """Return these rows, as wide as the longest of them."""
        answers = [self.answers[row] for row in rows]
        width = max(map(len, answers))

        def part(table: Tensor) -> Tensor:
            return table[rows, :width] if table.ndim == 2 else table[rows]

        return Experience(
            [self.prompts[row] for row in rows],
            answers,
            part(self.mask),
            part(self.logprobs),
            part(self.advantages),
            None if self.reference is None else part(self.reference),
            None if self.values is None else part(self.values),
            None if self.returns is None else part(self.returns),
            None if self.states is None else [self.states[row] for row in rows],
            None if self.weights is None else part(self.weights),
        )

    def alternating(self, other: "Experience") -> "Experience":
        """Return the rows of both, each before the other's of the same place, as pairs are laid out.

        Every token of a pair counts the same, whoever drew it: a comparison is right wherever it is made.
        """
        width = max(self.mask.shape[1], other.mask.shape[1])

        def both(one: Tensor | None, two: Tensor | None) -> Tensor | None:
            if one is None or two is None:
                return None
            wide = [pad(table, (0, width - table.shape[1])) if table.ndim == 2 else table for table in (one, two)]
            return torch.stack(wide, dim=1).flatten(0, 1)

        tables = ("mask", "logprobs", "advantages", "reference", "values", "returns")
        made: dict[str, Any] = {name: both(getattr(self, name), getattr(other, name)) for name in tables}
        for name in ("prompts", "answers", "states"):
            rows = getattr(self, name), getattr(other, name)
            made[name] = None if None in rows else [row for two in zip(*rows, strict=True) for row in two]
        return Experience(**made)


class Seen(NamedTuple):
    """What is known of n answers of t tokens at most; tables are (n, t), zero behind an answer's end."""

    rollout: Rollout
    mask: Tensor
    """The tokens that are learnt from: those that the policy sampled."""
    scores: Tensor
    """Clipped, less the penalty of what was cut, and where costs are bounded less what they take off (n,)."""
    logprobs: Tensor
    reference: Tensor | None
    """Log-probabilities by the starting policy."""
    values: Tensor | None
    """By the critic."""
    states: Sequence[Tensor] | None
    metrics: Mapping[str, float]
    """What people watch of these answers, under the names of all methods."""
    entropy: Tensor
    """Of the distribution that each token was drawn from, in nats."""
    kl_coef: float = 0.0
    """What a nat of KL takes off scores of this size."""
    weights: Tensor | None = None
    """What each token counts for in the policy's gradient, where another policy drew it."""

    @property
    def kl(self) -> Tensor:
        """Return the estimate (k1) that a penalty in the reward takes (n, t); 0 where there is no start."""
        if self.reference is None:
            return torch.zeros_like(self.logprobs)
        return losses.estimate_kl(self.logprobs, self.reference, "k1")

    def experience(self, advantages: Tensor, returns: Tensor | None = None) -> Experience:
        """Return what to learn: advantages (n,) or (n, t), and returns (n, t) where there is a critic."""
        return Experience(
            self.rollout.prompts,
            self.rollout.answers,
            self.mask,
            self.logprobs,
            advantages,
            self.reference,
            self.values,
            returns,
            self.states,
            self.weights,
        )


def see(models: Models, rollout: Rollout, scored: Scored, settings: SamplingSettings, kl_coef: float) -> Seen:
    """Return what all models make of the answers, with scores as they are learnt from."""
    reading = layouts.read(models, rollout)
    mask = learnt_mask(rollout, reading.logprobs.device)  # (n, t)
    logprobs, entropy = reading.logprobs * mask, reading.entropy
    reference = None if reading.reference is None else reading.reference * mask
    finished = mask.new_tensor(rollout.finished)
    scores = shaped(rollout, scored, settings).to(mask.device)
    metrics = {
        "objective/scores": scores.mean(),
        "objective/scores_std": scores.std(unbiased=False),
        "objective/entropy": -logprobs.sum(dim=1).mean(),
        "policy/entropy_avg": losses.masked_mean(entropy, mask),
        "eos_rate": finished.float().mean(),
        "length": mask.sum(dim=1).float().mean(),
        "val/length_corr": _correlation(scores, mask.sum(dim=1)),
    } | _by_reward(scored)
    if rollout.logprobs:
        sampler = padded_table(rollout.logprobs, mask)
        metrics["val/sampler_kl"] = losses.masked_mean((logprobs - sampler).square() / 2, mask)
    if reference is not None:
        metrics |= _distances(logprobs, reference, scores, kl_coef)
    plain = {name: float(value) for name, value in metrics.items()} | {"kl_coef": kl_coef}
    learnt = mask & finished[:, None] if settings.generation.unfinished == "mask" else mask
    return Seen(rollout, learnt, scores, logprobs, reference, reading.values, reading.states, plain, entropy, kl_coef)


def shaped(rollout: Rollout, scored: Scored, settings: SamplingSettings) -> Tensor:
    """Return scores (n,) of members combined, clipped, and less the penalty of answers that were cut, or nearly so."""
    generation, scores = settings.generation, scored.total
    if scored.ensemble:
        scores = scores - scored.ensemble.doubt(settings.reward.combine, settings.reward.spread)
    if settings.reward.clip:
        scores = scores.clamp(-settings.reward.clip, settings.reward.clip)
    if generation.unfinished == "mask":
        return scores
    if generation.overlong:
        longest, lengths = generation.max_new_tokens or UNSET_ANSWER, [*map(len, rollout.answers)]
        return scores - generation.penalty * losses.overlong(scores.new_tensor(lengths), longest, generation.overlong)
    finished = torch.tensor(rollout.finished, device=scores.device)
    return losses.penalise_unfinished(scores, finished, generation.penalty, generation.unfinished)


def _by_reward(scored: Scored) -> dict[str, Tensor]:
    """Return the mean score by each reward, and where there are members by each of them, and how they differ."""
    found = {f"scores/{name}": part.mean() for name, part in scored.parts.items()}
    if scored.ensemble:
        means = scored.ensemble.scores.mean(dim=0)
        found |= {f"scores/{name}": mean for name, mean in zip(scored.ensemble.names, means, strict=True)}
        found["objective/spread"] = scored.ensemble.spread().mean()
        found["objective/agreement"] = scored.ensemble.agreement()
    for name in scored.held_out:
        found |= {f"held_out/{name}": scored.parts[name].mean()}
        found |= {f"held_out_std/{name}": scored.parts[name].std(unbiased=False)}
    return found


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return the correlation of two series (n,); 0 where one does not vary."""
    one, other = (series.float() - series.float().mean() for series in (one, other))
    return (one * other).mean() / (one.square().mean() * other.square().mean()).sqrt().clamp(min=1e-8)


def _distances(logprobs: Tensor, reference: Tensor, scores: Tensor, kl_coef: float) -> dict[str, Tensor]:
    """Return how far the answers are from the start's, and what that leaves of their scores."""
    kl, k2, k3 = (losses.estimate_kl(logprobs, reference, name).sum(dim=1) for name in ("k1", "k2", "k3"))
    return {
        "objective/kl": kl.mean(),
        "objective/kl_k2": k2.mean(),
        "objective/kl_k3": k3.mean(),
        "objective/non_score_reward": -kl_coef * kl.mean(),
        "objective/rlhf_reward": (scores - kl_coef * kl).mean(),
    }
