"""The verdict on a run: whether it got better, by how much and how surely, what got worse, and what is alarming.

Sentences are statistics: each names its rows and its 95 % interval, and says so where there are too few rows to tell.
Where other seeds of the same run are kept, intervals count in how far they differ. An alarm is something that makes a
good figure worthless: a reward model no better than its floor, answers that do not end, a reward that is longer answers
by another name, a policy that nothing held to its start, a cost beyond its bound, or a reward that rose while what
judges it from outside fell (Gao et al. 2023, arXiv 2210.10760).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from alignkit.contract.events import Result
from alignkit.noise import over_seeds
from alignkit.show.alarms import LONGER, Alarm, alarms_of
from alignkit.show.metrics import bounds_in_words
from alignkit.show.sentences import MeasuredStage, brief, direction, headline, is_enough, is_measure, sentence
from alignkit.store.runs import KeptRun, KeptStage


@dataclass(frozen=True)
class RunVerdict:
    """The verdict on a run."""

    better: bool | None
    """The last figure that a stage is there for has become better beyond noise, and nothing is alarming; None: it
    cannot be told."""
    lead: str
    """The first sentence."""
    stages: Mapping[str, Sequence[str]]
    """What each stage achieved, a sentence for each figure that has a better and a worse."""
    worse: Sequence[str]
    """What got worse beyond noise."""
    alarms: Sequence[Alarm]
    seeds: int
    """How many seeds of the same run the intervals are over; 1: over the rows alone."""


def verdict_on(run: KeptRun) -> RunVerdict:
    """Return the verdict on a run, as far as it has come."""
    others = run.other_seeds
    stages = [_measured(stage, others) for stage in run.stages if stage.wanted and stage.results]
    return verdict_of(stages, run.state)


def verdict_of(stages: Sequence[MeasuredStage], state: str = "finished") -> RunVerdict:
    """Return the verdict on what stages have come to, in a run of this state."""
    alarms = [alarm for stage in stages for alarm in alarms_of(stage, stages)]
    worse = [f"{stage.name}: {told}" for stage in stages for told in _worse(stage)]
    goal = next(((stage, result) for stage in reversed(stages) if (result := headline(stage))), None)
    told = "Nothing was measured on held-out rows, so nothing can be said." if goal is None else _lead(*goal)
    ended = "" if state in ("finished", "running") else f"The run {_ENDED.get(state, state)}. "
    first = f"{alarms[0].problem[0].upper()}{alarms[0].problem[1:]}. " if alarms else ""
    count = f" {len(alarms)} alarm{'s' if len(alarms) > 1 else ''}." if alarms else " No alarm." if goal else ""
    return RunVerdict(
        better=None if goal is None else _better(goal[1], alarms),
        lead=f"{ended}{first}{told}{_kept_bounds(stages)}{count}",
        stages={stage.name: sentences for stage in stages if (sentences := [*_goals(stage)])},
        worse=worse,
        alarms=alarms,
        seeds=max((stage.seeds for stage in stages), default=1),
    )


_ENDED = {"failed": "failed", "stopped": "was stopped", "died": "ended without a word"}


def _measured(stage: KeptStage, others: Sequence[KeptRun]) -> MeasuredStage:
    """Return what a stage has come to, with what other seeds have come to counted in."""
    told = [{one.name: one for one in other.stage(stage.name).results} for other in others]
    same = {one.name: [by_name[one.name] for by_name in told if one.name in by_name] for one in stage.results}
    results = [_with_seeds(result, same[result.name]) for result in stage.results]
    seeds = 1 + len(others)
    return MeasuredStage(stage.name, results, stage.inputs, stage.makes, stage.rows, stage.settings, seeds)


def _with_seeds(result: Result, others: Sequence[Result]) -> Result:
    several = [one for one in (result, *others) if one.after is not None]
    if result.rows is None or len(several) < 2:
        return result
    afters = [one.after or 0.0 for one in several]
    changes = [(one.after or 0.0) - (one.before or 0.0) for one in several]
    interval = result.interval and over_seeds(result.interval, afters, result.rows)
    change = result.change and over_seeds(result.change, changes, result.rows)
    return replace(result, interval=interval, change=change)


def _better(result: Result, alarms: Sequence[Alarm]) -> bool | None:
    if alarms:
        return False
    way = direction(result)
    return None if way is None or (way == 0 and not is_enough(result)) else way > 0


def _lead(stage: MeasuredStage, result: Result) -> str:
    """Return the headline: the figure, and beside it what it cost in KL and length."""
    beside = dict(_beside(stage, result))
    facts = [f"KL {brief(beside['kl'].after)}"] if "kl" in beside else []
    facts += _attained(stage, result)
    told = sentence(stage, result).removesuffix(".")
    length = beside.get("length")
    lengths = f"; answers {brief(length.before)} -> {brief(length.after)} tokens" if length else ""
    return f"{', '.join([told, *facts])}{lengths}."


def _attained(stage: MeasuredStage, reward: Result) -> list[str]:
    """Return the share of what is attainable that the policy of this reward has, and from which start."""
    head = f"attained {reward.name.removeprefix('reward ')} from "
    shares = [one for one in stage.results if one.name.startswith(head) and one.after is not None]
    return [f"{one.after:.0%} of what is attainable from {one.name.removeprefix(head)}" for one in shares]


def _kept_bounds(stages: Sequence[MeasuredStage]) -> str:
    """Return which bounds hold, in a sentence; those that do not are alarms."""
    held = [(one, one.bounds) for stage in stages for one in stage.results if one.bounds is not None and one.holds]
    facts = [f"{one.name.removeprefix('cost/')} {brief(one.after)}, {bounds_in_words(*bounds)}" for one, bounds in held]
    return f" Bound{'s' if len(facts) > 1 else ''} kept: {'; '.join(facts)}." if facts else ""


def _beside(stage: MeasuredStage, result: Result) -> Iterator[tuple[str, Result]]:
    """Yield what else was measured of the same answers, by its name without the policy's."""
    policy = result.name.removeprefix("reward") if result.name.startswith("reward ") else ""
    for one in stage.results:
        if one is not result and one.name.endswith(policy):
            yield one.name.removesuffix(policy), one


def _goals(stage: MeasuredStage) -> Iterator[str]:
    """Yield a sentence for each figure that has a better and a worse, and something that it is held against, or a
    bound."""
    held = (
        one
        for one in stage.results
        if one.bounds is not None
        or (one.better and (one.before is not None or one.floor is not None))
        or is_measure(one, "attained")
    )
    return (sentence(stage, one) for one in held if one.after is not None)


def _worse(stage: MeasuredStage) -> Iterator[str]:
    """Yield what got worse beyond noise, or is no goal and has moved as no goal should."""
    for result in stage.results:
        if direction(result) == -1:
            yield sentence(stage, result)
        elif _ends_less(result):
            yield f"fewer answers end by themselves: {sentence(stage, result)}"
        elif is_measure(result, "length") and result.before and (result.after or 0) > LONGER * result.before:
            yield f"answers have become longer: {sentence(stage, result)}"


def _ends_less(result: Result) -> bool:
    return is_measure(result, "eos_rate") and result.change is not None and result.change[1] < 0
