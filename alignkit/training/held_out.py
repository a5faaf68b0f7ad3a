"""A policy's answers to held-out prompts, before and after it was trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from alignkit.contract.constraint import Constraint
from alignkit.contract.stage import Stage
from alignkit.training import layouts
from alignkit.training.encoding import Prompt
from alignkit.training.layouts import Models
from alignkit.training.picking import picked_samples
from alignkit.training.rollouts import Rollout, generator_for
from alignkit.training.scoring import Scored
from alignkit.training.warning_signs import CUT, AnswerBounds


class Measured(NamedTuple):
    """How a policy does on held-out prompts."""

    rollout: Rollout
    scored: Scored
    kl: list[float] | None
    """From the starting policy, in nats, by each answer; None where that is not at hand."""
    wins: list[float] | None = None
    """How likely each answer is better than the one before, by judges; None where there are none."""


def measured(
    models: Models, prompts: Sequence[Prompt], score: Callable[[Rollout], Scored], longest: int, seed: int
) -> Measured | None:
    """Answer the held-out prompts, and score the answers; None where there are none."""
    rollout = answered(models, prompts, longest, seed)
    if rollout is None:
        return None
    return Measured(rollout, score(rollout), layouts.answer_kl(models, rollout) if models.can_compare else None)


def answered(models: Models, prompts: Sequence[Prompt], longest: int, seed: int) -> Rollout | None:
    """Answer the held-out prompts, each time with the same random numbers; None where there are none."""
    if not prompts:
        return None
    chance, rows = generator_for(seed, "held out"), list(range(len(prompts)))
    return layouts.sample(models, [prompt.ids for prompt in prompts], rows, longest, chance)


def as_plain(what: Measured) -> dict[str, Any]:
    """Return a measurement as JSON can hold it, every number exactly."""
    return {
        "rollout": asdict(what.rollout),
        "total": what.scored.total.tolist(),
        "parts": {name: part.tolist() for name, part in what.scored.parts.items()},
        "costs": {name: cost.tolist() for name, cost in what.scored.costs.items()},
        "kl": what.kl,
    }


def from_plain(plain: Mapping[str, Any]) -> Measured:
    """Return the measurement that `as_plain` told."""
    parts, costs = ({name: torch.tensor(part) for name, part in plain[key].items()} for key in ("parts", "costs"))
    return Measured(Rollout(**plain["rollout"]), Scored(torch.tensor(plain["total"]), parts, costs), plain["kl"])


def tell_costs(
    stage: Stage, before: Measured | None, after: Measured | None, constraints: Mapping[str, Constraint]
) -> None:
    """Report the mean of each cost on held-out prompts, beside its bound."""
    if before is None or after is None:
        return
    for name, constraint in constraints.items():
        old, new = (measure.scored.costs[name].tolist() for measure in (before, after))
        stage.measure(f"cost/{name}", old, new, better="", bounds=(constraint.min, constraint.max))


class Shown(NamedTuple):
    """What is shown of answers to held-out prompts."""

    prompts: Sequence[Prompt]
    tokenizer: PreTrainedTokenizerBase
    samples: int
    """How many."""


def tell(stage: Stage, before: Measured | None, after: Measured | None, shown: Shown, limits: AnswerBounds) -> None:
    """Report what was reached on held-out prompts, and show answers from before and after."""
    prompts, tokenizer, samples = shown
    if before is None or after is None:
        stage.warn("no prompts are held out, so nothing is measured", "raise the source's held_out")
        return
    if after.wins is not None:
        stage.measure("win_rate", None, after.wins, 0.5)
    if after.scored.parts:
        _tell_reward(stage, before, after, limits)
    for name in after.scored.parts if len(after.scored.parts) > 1 else ():
        old, new = (m.scored.parts[name].tolist() for m in (before, after))
        stage.measure(f"reward/{name}", old, new)
    if after.kl is not None:
        stage.measure("kl", before.kl, after.kl, better="")
    length, new_length = ([len(answer) for answer in m.rollout.answers] for m in (before, after))
    stage.measure("length", length, new_length, better="")
    ended, ends = (list(map(float, m.rollout.finished)) for m in (before, after))
    stage.measure("eos_rate", ended, ends, better="")
    rewards = {"reward before": before.scored.total.tolist(), "reward": after.scored.total.tolist()}
    stage.rows({**(rewards if after.scored.parts else {}), "length before": length, "length": new_length})
    texts = [tokenizer.batch_decode(m.rollout.answers, skip_special_tokens=True) for m in (before, after)]
    gains = (after.scored.total - before.scored.total).tolist() if after.scored.parts else after.wins or []
    for row, kind in picked_samples(gains, samples):
        sample: dict[str, str | float] = {
            "prompt": prompts[row].text,
            "before": texts[0][row],
            "after": texts[1][row],
        }
        if after.scored.parts:
            sample |= {
                "reward before": float(before.scored.total[row]),
                "reward after": float(after.scored.total[row]),
            }
        if after.wins is not None:
            sample["better"] = after.wins[row]
        stage.sample(sample, kind)


def _tell_reward(stage: Stage, before: Measured, after: Measured, limits: AnswerBounds) -> None:
    was, now = float(before.scored.total.mean()), float(after.scored.total.mean())
    stage.measure("reward", before.scored.total.tolist(), after.scored.total.tolist())
    if now <= was:
        problem = f"the reward of answers to held-out prompts has not risen ({was:.4g} -> {now:.4g})"
        cut = 1 - fmean(after.rollout.finished)
        if cut > CUT:
            answers = limits._replace(answers=len(after.rollout.finished))
            stage.warn(f"{problem}; {answers.told(cut)}", limits.remedy)
        else:
            stage.warn(problem, "take more updates or a higher learning rate, or look at the reward")
