"""Signs that learning from sampled answers goes wrong, each told once, with what to do about it.

The thresholds are loose: a healthy run crosses none of them, and one that does is worth a look at its answers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

AVERAGED = 4
"""Updates that are averaged, at the start and now."""
PATIENCE = 10
"""Updates that a critic has to become of use."""
FAR = 30.0
"""Nats by which an answer's log-probability may exceed the start's; what people still like lies below 10 or so."""
WATCHED = (
    "objective/kl",
    "length",
    "eos_rate",
    "policy/entropy_avg",
    "val/explained_var",
    "val/length_corr",
    "val/groups_without_signal",
)


class Sign(NamedTuple):
    """What was seen, and what to do."""

    name: str
    problem: str
    remedy: str


@dataclass
class Watch:
    """Remembers figures of the first and the last updates, and what it has told."""

    first: list[dict[str, float]] = field(default_factory=list)
    last: list[dict[str, float]] = field(default_factory=list)
    updates: int = 0
    told: list[str] = field(default_factory=list)

    def see(self, figures: Mapping[str, float]) -> list[Sign]:
        """Take in the figures of one update, and give the signs that are new."""
        seen = {name: figures[name] for name in WATCHED if name in figures}
        self.updates += 1
        self.first = [*self.first, seen][:AVERAGED]
        self.last = [*self.last, seen][-AVERAGED:]
        if self.updates < 2 * AVERAGED:
            return []
        new = [
            sign for sign in signs(_means(self.first), _means(self.last), self.updates) if sign.name not in self.told
        ]
        self.told += [sign.name for sign in new]
        return new


def signs(was: Mapping[str, float], now: Mapping[str, float], updates: int) -> Iterator[Sign]:
    """Give what goes wrong, by mean figures of the first and the last updates."""
    if now.get("objective/kl", 0.0) > FAR:
        problem = f"answers are {now['objective/kl']:.0f} nats from the start's, more than any reward is right about"
        yield Sign("kl", problem, "raise kl.coef, set kl.target = 6, or lower learning_rate")
    longer, length_pays = now["length"] > 1.5 * was["length"], now.get("val/length_corr", 0.0) > 0.5
    if longer and length_pays:
        problem = f"answers grew from {was['length']:.0f} to {now['length']:.0f} tokens, and scores follow their length"
        yield Sign("length", problem, "read the samples: is longer better? Else add a reward that charges for length")
    if now["eos_rate"] < 0.5 * was["eos_rate"]:
        problem = f"only {now['eos_rate']:.0%} of the answers still end by themselves, {was['eos_rate']:.0%} did"
        yield Sign("eos", problem, "raise generation.penalty or generation.max_new_tokens")
    if now["policy/entropy_avg"] < 0.2 * was["policy/entropy_avg"]:
        problem = (
            f"the policy hardly explores any more: its entropy fell from {was['policy/entropy_avg']:.2f} to "
            f"{now['policy/entropy_avg']:.2f} nats a token"
        )
        yield Sign("entropy", problem, "raise kl.coef, lower learning_rate, or stop earlier")
    if updates >= PATIENCE and now.get("val/explained_var", 1.0) < 0.0:
        problem = f"the critic explains nothing of the returns (explained variance {now['val/explained_var']:.2f})"
        yield Sign("critic", problem, "raise critic.learning_rate, or let it learn first with critic.warmup")
    if now.get("val/groups_without_signal", 0.0) > 0.8:
        share = now["val/groups_without_signal"]
        problem = f"in {share:.0%} of the prompts all answers score the same, and nothing is learnt from them"
        yield Sign("groups", problem, "choose other prompts, raise answers, or use a reward that tells more apart")


def _means(updates: list[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(figures[name] for figures in updates) for name in updates[0]}
