"""A policy beside its teacher: how far apart they are, and what the policy learns of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignkit import Stage
from alignkit_distill.beside_teacher import BesideTeacher, Read
from alignkit_distill.teachers import Teacher, TokenComparison

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.kit import Count, Experience, Opened, Rollout, Update
    from alignkit_distill.distill import DistillSettings


@dataclass(frozen=True)
class Answers:
    """The answers of an update, side by side."""

    rollout: Rollout
    asked: Sequence[Sequence[int]]
    """What the teacher is asked, where the policy is asked the rollout's prompts."""
    own: int
    """So many, the first, are the policy's."""

    @classmethod
    def joined(cls, parts: Sequence[tuple[Rollout, Sequence[Sequence[int]]]], own: int) -> Answers:
        """Put rollouts and what the teacher is asked of each one behind the other."""
        from alignkit.kit import Rollout

        rollouts = [rollout for rollout, _ in parts]
        learnt = [rollout.learnt or [[True] * len(answer) for answer in rollout.answers] for rollout in rollouts]
        both = Rollout(
            [row for rollout in rollouts for row in rollout.rows],
            [prompt for rollout in rollouts for prompt in rollout.prompts],
            [answer for rollout in rollouts for answer in rollout.answers],
            [done for rollout in rollouts for done in rollout.finished],
            learnt=[row for rows in learnt for row in rows],
        )
        return cls(both, [prompt for _, asked in parts for prompt in asked], own)

    @property
    def metrics(self) -> dict[str, float]:
        """Return what people watch of the policy's own answers; nothing where there are none."""
        if not self.own:
            return {}
        lengths = [len(answer) for answer in self.rollout.answers[: self.own]]
        return {"length": fmean(lengths), "eos_rate": fmean(map(float, self.rollout.finished[: self.own]))}


@dataclass(frozen=True)
class Pupil:
    """A policy that learns from a teacher in updates."""

    opened: Opened[Any]
    teacher: Teacher
    settings: DistillSettings

    @property
    def beside(self) -> BesideTeacher:
        models = self.opened.models
        return BesideTeacher(models.policy, self.teacher, models.temperature, self.settings.precision)

    def learn(self, update: Update[Any], answers: Answers) -> dict[str, float]:
        """Take the optimiser steps of an update, and return their metrics."""
        from alignkit.kit import learnt_mask, step_answers, step_policy

        rollout = answers.rollout
        mask = learnt_mask(rollout, update.loop.models.policy.device)  # (n, t)
        if self.settings.loss == "likelihood":
            return step_policy(update, experience(rollout, mask), likelihood)
        read = self.beside.known(Read(rollout.prompts, answers.asked, rollout.answers))
        if self.settings.loss == "policy-gradient":
            return self._follow_gradient(update, rollout, mask, read)
        first, last = self.settings.target, max(self.settings.updates - 1, 1)
        apart = partial(divergence, self.settings, first + (1 - first) * update.number / last)

        def loss(rows: Sequence[int], count: Count) -> tuple[Tensor, Mapping[str, Tensor]]:
            import torch

            from alignkit.kit import losses

            def compute(sides: TokenComparison) -> Tensor:
                return torch.stack([apart(sides.policy, sides.teacher), sides.kl, sides.agree], dim=-1)

            table = self.beside.each_token(read.take(rows), compute)  # (n, t, 3)
            part = mask[list(rows), : table.shape[1]]
            total, kl, agree = (losses.masked_mean(one, part, count.tokens) for one in table.unbind(dim=-1))
            return total, {"teacher_kl": kl, "agreement": agree}

        return step_answers(update, rollout, mask, loss)

    def _follow_gradient(self, update: Update[Any], rollout: Rollout, mask: Tensor, read: Read) -> dict[str, float]:
        """Take the steps of `policy-gradient`: the reward of a token is what the teacher gives it over the policy."""
        from alignkit.kit import losses, step_policy
        from alignkit_distill.divergences import discounted

        kl, agree, ours, theirs = self.beside.every_answer(read).unbind(dim=-1)  # (n, t) each
        advantages = discounted(theirs - ours, mask, self.settings.gamma)
        steps = step_policy(update, experience(rollout, mask, ours, advantages), partial(rewarded, self.settings.clip))
        told = {"policy/teacher_kl_avg": kl, "policy/agreement_avg": agree}
        return {**steps, **{name: float(losses.masked_mean(one, mask)) for name, one in told.items()}}

    def measured(self, seed: int) -> dict[str, Any] | None:
        """Return how far the policy is from its teacher on its own answers to held-out prompts; None without any."""
        rollout = self.opened.answer_held_out(seed)
        if rollout is None:
            return None
        asked = [self.teacher.prompt(prompt.row) for prompt in self.opened.held_out]
        return {
            **self.beside.of_answers(Read(rollout.prompts, asked, rollout.answers)),
            "length": [len(answer) for answer in rollout.answers],
            "eos_rate": [float(done) for done in rollout.finished],
            "text": self.opened.tokenizer.batch_decode(rollout.answers, skip_special_tokens=True),
        }


def divergence(settings: DistillSettings, share: float, policy: Tensor, teacher: Tensor) -> Tensor:
    """Compute how far the policy is from its teacher, or from `share` of the way there, at m places (m,)."""
    from alignkit_distill.divergences import generalised_jsd, on_the_way, skewed_kl, total_variation

    wanted = teacher if share == 1 else on_the_way(policy, teacher, share)
    if settings.loss == "total-variation":
        return total_variation(policy, wanted)
    if settings.loss == "skew":
        return skewed_kl(policy, wanted, settings.beta, settings.skew)
    return generalised_jsd(policy, wanted, settings.beta)


def experience(
    rollout: Rollout, mask: Tensor, logprobs: Tensor | None = None, advantages: Tensor | None = None
) -> Experience:
    """Return answers as `step_policy` takes them; what is not given is 0."""
    from alignkit.kit import Experience

    nothing = mask.float() * 0
    ours, gains = (nothing if table is None else table for table in (logprobs, advantages))
    return Experience(rollout.prompts, rollout.answers, mask, ours, gains)


def likelihood(part: Experience, logprobs: Tensor, count: Count) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Compute the loss of answers as they stand, -log q (n, t)."""
    from alignkit.kit import losses

    return losses.masked_mean(-logprobs, part.mask, count.tokens), {}


def rewarded(clip: float, part: Experience, logprobs: Tensor, count: Count) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Compute PPO's clipped loss of tokens that have rewards for advantages."""
    from alignkit.kit import losses

    found = losses.clipped_policy_loss(logprobs, part.logprobs, part.advantages, part.mask, clip, count.tokens)
    return found.loss, {
        "approxkl": found.approximate_kl,
        "clipfrac": found.clip_fraction,
        "ratio": losses.masked_mean(found.ratio, part.mask, count.tokens),
    }


def tell(
    stage: Stage, opened: Opened[Any], before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, samples: int
) -> None:
    """Report how far the policy was and is from its teacher on held-out prompts, and show answers."""
    from alignkit.kit import picked_samples

    if before is None or after is None:
        stage.warn("no prompts are held out, so nothing is measured", "raise the source's held_out")
        return
    stage.measure("teacher_kl", before["teacher_kl"], after["teacher_kl"], better="lower")
    stage.measure("agreement", before["agreement"], after["agreement"])
    for name in ("length", "eos_rate"):
        stage.measure(name, before[name], after[name], better="")
    was, now = fmean(before["teacher_kl"]), fmean(after["teacher_kl"])
    if now >= was:
        problem = f"the policy has not come nearer to its teacher on held-out prompts (KL {was:.4g} -> {now:.4g})"
        stage.warn(problem, "take more updates or a higher learning rate")
    gains = [old - new for old, new in zip(before["teacher_kl"], after["teacher_kl"], strict=True)]
    for row, kind in picked_samples(gains, samples):
        stage.sample(
            {
                "prompt": opened.held_out[row].text,
                "before": before["text"][row],
                "after": after["text"][row],
                "teacher_kl before": before["teacher_kl"][row],
                "teacher_kl after": after["teacher_kl"][row],
            },
            kind,
        )
