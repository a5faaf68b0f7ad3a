"""Signs that learning from sampled answers goes wrong, each told once, with what to do about it.

The thresholds are loose: a healthy run crosses none of them, and one that does is worth a look at its answers. Answers
that do not end are looked for from the first update on: they are the commonest reason why nothing is learnt.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from alignkit.training.gaming import HELD_OUT, HELD_OUT_STD

AVERAGED = 4
"""Updates that are averaged, at the start and now."""
PATIENCE = 10
"""Updates that a critic has to become of use."""
FAR = 30.0
"""Nats by which an answer's log-probability may exceed the start's; what people still like lies below 10 or so."""
CLIPPED = 0.05
"""Share of the tokens that may count for less than the policy would have it, as another one drew them."""
CUT = 0.5
"""Share of the answers that may be cut before it is told."""
ENDING = 0.1
"""Share of the answers that ended at the start, below which it says nothing that fewer do."""
FLAT = 1e-6
"""The standard deviation of scores below which they are all the same."""
DIFFERING = 1.5
"""How many times as far as at the start the members of an ensemble may differ about an answer while scores rise."""
AGREED = 0.8
"""Share of what tells answers apart on which the members of an ensemble must agree while scores rise."""
FALLEN = 5.0
"""By how many standard errors of a difference a held-out reward may fall from its best while scores rise."""
WATCHED = (
    "objective/scores",
    "objective/scores_std",
    "objective/kl",
    "length",
    "eos_rate",
    "policy/entropy_avg",
    "val/explained_var",
    "val/length_corr",
    "val/groups_without_signal",
    "engine/clipped",
    "objective/spread",
    "objective/agreement",
)


class Sign(NamedTuple):
    """What was seen, and what to do."""

    name: str
    problem: str
    remedy: str


class AnswerBounds(NamedTuple):
    """What answers that do not end are told with."""

    answers: int
    """Answers in an update."""
    longest: int
    """Tokens after which one is cut."""
    penalty: float
    replaced: bool
    """What was cut scores minus the penalty, whatever a reward would say."""
    taught: int | None = None
    """Tokens that the answers needed that the policy was taught by, if that is known."""

    @property
    def remedy(self) -> str:
        """Return what to change; how long answers must be to end is a guess where nobody taught the policy any."""
        raised = "raise generation.max_new_tokens"
        taught = self.taught and self.taught > self.longest
        if taught:
            raised += f" to {self.taught}, what the policy's demonstrations needed"
        if not self.replaced and not self.penalty:
            return raised
        paid = 'set generation.unfinished = "subtract" and generation.penalty = 0, so that the reward counts'
        return f"{raised}, or {paid}" if taught else f"{paid}, or {raised}"

    def told(self, share: float) -> str:
        """Return how many answers are cut, and what becomes of them."""
        cut = f"{round(share * self.answers)} of {self.answers} answers were cut at {self.longest} tokens"
        return f"{cut} and score {-self.penalty:g} instead of by the reward" if self.replaced else cut


@dataclass
class WarningSigns:
    """Remembers metrics of the first and the last updates, and what it has told."""

    first: list[dict[str, float]] = field(default_factory=list)
    last: list[dict[str, float]] = field(default_factory=list)
    updates: int = 0
    told: list[str] = field(default_factory=list)
    flat: int = 0
    """Updates from the start in which all answers scored the same."""
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    """The mean metrics of the updates in which each held-out reward was at its best."""

    def see(self, metrics: Mapping[str, float], limits: AnswerBounds) -> list[Sign]:
        """Take in the metrics of one update, and give the signs that are new."""
        seen = {name: metrics[name] for name in WATCHED if name in metrics}
        seen |= {name: value for name, value in metrics.items() if name.startswith((HELD_OUT, HELD_OUT_STD))}
        if self.flat == self.updates and seen["objective/scores_std"] < FLAT:
            self.flat += 1
        self.updates += 1
        self.first = [*self.first, seen][:AVERAGED]
        self.last = [*self.last, seen][-AVERAGED:]
        found = list(of_answers(_means(self.last), limits))
        if self.updates >= 2 * AVERAGED:
            found += signs(_means(self.first), _means(self.last), self.updates)
        if self.updates >= AVERAGED:
            found += self._of_held_out(_means(self.last), limits.answers)
        new = [sign for sign in found if sign.name not in self.told]
        self.told += [sign.name for sign in new]
        return new

    def _of_held_out(self, now: dict[str, float], answers: int) -> Iterator[Sign]:
        """Yield the held-out rewards that have fallen from their best, beyond what is chance among so many answers,
        while what is learnt from has risen."""
        for metric in (name for name in now if name.startswith(HELD_OUT)):
            name = metric.removeprefix(HELD_OUT)
            best = self.best.setdefault(name, now)
            if now[metric] >= best[metric]:
                best = self.best[name] = now
            fall, scores, scores_then = best[metric] - now[metric], now["objective/scores"], best["objective/scores"]
            variances = [means[f"{HELD_OUT_STD}{name}"] ** 2 for means in (best, now)]
            if fall > FALLEN * (sum(variances) / (AVERAGED * answers)) ** 0.5 and scores > scores_then:
                problem = (
                    f"the held-out reward {name!r} falls ({best[metric]:.3g} at its best, {now[metric]:.3g} now) while "
                    f"what is learnt from rises ({scores_then:.3g} to {scores:.3g}), so that no longer tells which "
                    "answers are good"
                )
                yield Sign("held out", problem, "stop earlier, raise kl.coef, or learn the reward from more pairs")

    def without_signal(self, limits: AnswerBounds) -> Sign:
        """Return why nothing was learnt: all answers of all updates have scored the same."""
        last = _means(self.last)
        updates = "the update" if self.updates == 1 else f"each of {self.updates} updates"
        problem = f"all answers of {updates} score the same ({last['objective/scores']:.4g}), so nothing is learnt"
        if limits.replaced and (cut := 1 - last["eos_rate"]) >= CUT:
            return Sign("flat", f"{problem}: {limits.told(cut)}", limits.remedy)
        return Sign("flat", problem, "use a reward that tells answers apart, or set patience = 0 to go on all the same")


def of_answers(now: Mapping[str, float], limits: AnswerBounds) -> Iterator[Sign]:
    """Yield what goes wrong with answers from the first update on."""
    cut = 1 - now["eos_rate"]
    if cut > CUT and (limits.replaced or limits.penalty):  # else it is meant so
        yield Sign("cut", limits.told(cut), limits.remedy)


def signs(was: Mapping[str, float], now: Mapping[str, float], updates: int) -> Iterator[Sign]:
    """Yield what goes wrong, by mean metrics of the first and the last updates."""
    if now.get("objective/kl", 0.0) > FAR:
        told = "far outside the region in which a reward can be trusted"
        problem = f"answers are {now['objective/kl']:.0f} nats from the start's, {told}"
        yield Sign("kl", problem, "raise kl.coef, set kl.target = 6, or lower learning_rate")
    longer, length_pays = now["length"] > 1.5 * was["length"], now.get("val/length_corr", 0.0) > 0.5
    if longer and length_pays:
        problem = f"answers grew from {was['length']:.0f} to {now['length']:.0f} tokens, and scores follow their length"
        yield Sign("length", problem, "read the samples: is longer better? Else add a reward that charges for length")
    if now["eos_rate"] < 0.5 * was["eos_rate"] and was["eos_rate"] > ENDING:
        problem = f"only {now['eos_rate']:.0%} of the answers still end by themselves, {was['eos_rate']:.0%} did"
        yield Sign("eos", problem, "raise generation.penalty or generation.max_new_tokens")
    if now["policy/entropy_avg"] < 0.2 * was["policy/entropy_avg"]:
        problem = (
            f"the policy hardly explores any more: its entropy fell from {was['policy/entropy_avg']:.2f} to "
            f"{now['policy/entropy_avg']:.2f} nats a token"
        )
        yield Sign("entropy", problem, "raise kl.coef, lower learning_rate, or stop earlier")
    if now["objective/scores"] > was["objective/scores"]:
        yield from _of_ensemble(was, now)
    if updates >= PATIENCE and now.get("val/explained_var", 1.0) < 0.0:
        problem = f"the critic explains nothing of the returns (explained variance {now['val/explained_var']:.2f})"
        yield Sign("critic", problem, "raise critic.learning_rate, or let it learn first with critic.warmup")
    if (share := now.get("engine/clipped", 0.0)) > CLIPPED:
        problem = (
            f"{share:.0%} of the tokens were so unlikely for what drew them that their weight is cut (engine.correct)"
        )
        yield Sign("engine", problem, "lower learning_rate or epochs, or set engine.ahead = 0")
    if now.get("val/groups_without_signal", 0.0) > 0.8:
        share = now["val/groups_without_signal"]
        problem = f"in {share:.0%} of the prompts all answers score the same, and nothing is learnt from them"
        yield Sign("groups", problem, "choose other prompts, raise answers, or use a reward that tells more apart")


def _of_ensemble(was: Mapping[str, float], now: Mapping[str, float]) -> Iterator[Sign]:
    """Yield what the members of an ensemble say of scores that have risen."""
    remedy = 'stop earlier, raise kl.coef, or set reward.combine = "conservative"'
    if now.get("objective/spread", 0.0) > DIFFERING * was.get("objective/spread", 0.0):
        then, spread = was["objective/spread"], now["objective/spread"]
        problem = f"the members of the reward ensemble differ about an answer by {spread:.3g}, by {then:.3g} at the "
        yield Sign("spread", f"{problem}start, while scores rise: their pairs say little of such answers", remedy)
    if (agreed := now.get("objective/agreement", 1.0)) < AGREED < was.get("objective/agreement", 0.0):
        problem = f"the members of the reward ensemble agree on {agreed:.0%} of what tells answers apart, on "
        yield Sign("agreement", f"{problem}{was['objective/agreement']:.0%} at the start: the rest is chance", remedy)


def _means(updates: list[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(metrics[name] for metrics in updates) for name in updates[0]}
