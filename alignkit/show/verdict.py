"""The verdict on a run: whether it got better, by how much and how surely, what got worse, and what is alarming.

Sentences are statistics: each names its rows and its 95 % interval, and says so where there are too few rows to tell.
An alarm is something that makes a good figure worthless: a reward model no better than its floor, answers that do not
end, a reward that is longer answers by another name, a policy that nothing held to its start, or a reward that rose
while what judges it from outside fell (Gao et al. 2023, arXiv 2210.10760).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import correlation, fmean, linear_regression
from typing import Any

from alignkit.contract.events import Result
from alignkit.noise import ENOUGH_ROWS, Interval, detectable
from alignkit.store.runs import KeptRun, KeptStage
from alignkit.text import give_or_take, number

CUT = 0.5
"""Share of answers that end by themselves, below which what they say is not what was learnt."""
FAR = 10.0
"""Nats by which an answer's log-probability has moved from the start, beyond which the policy is another one."""
LONGER = 1.25
"""Times the length, from which on answers count as having become longer."""
EXPLAINED = 0.5
"""Share of a gain in reward that greater length alone explains, from which on length is what was learnt."""


@dataclass(frozen=True)
class Alarm:
    """What makes a figure worthless."""

    stage: str
    problem: str
    remedy: str


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


def verdict_on(run: KeptRun) -> RunVerdict:
    """Return the verdict on a run, as far as it has come."""
    stages = [stage for stage in run.stages if stage.wanted and stage.results]
    alarms = [alarm for stage in stages for alarm in _alarms(stage, stages)]
    worse = [f"{stage.name}: {told}" for stage in stages for told in _worse(stage)]
    headline = next(((stage, goal) for stage in reversed(stages) if (goal := _headline(stage))), None)
    told = "Nothing was measured on held-out rows, so nothing can be said." if headline is None else _lead(*headline)
    ended = "" if run.state in ("finished", "running") else f"The run {_ENDED.get(run.state, run.state)}. "
    first = f"{alarms[0].problem[0].upper()}{alarms[0].problem[1:]}. " if alarms else ""
    count = f" {len(alarms)} alarm{'s' if len(alarms) > 1 else ''}." if alarms else " No alarm." if headline else ""
    return RunVerdict(
        better=None if headline is None else _better(headline[1], alarms),
        lead=f"{ended}{first}{told}{count}",
        stages={stage.name: sentences for stage in stages if (sentences := [*_goals(stage)])},
        worse=worse,
        alarms=alarms,
    )


_ENDED = {"failed": "failed", "stopped": "was stopped", "died": "ended without a word"}


def as_plain(verdict: RunVerdict) -> dict[str, Any]:
    """Return a verdict as plain JSON values."""
    return asdict(verdict)


def _better(result: Result, alarms: Sequence[Alarm]) -> bool | None:
    if alarms:
        return False
    way = direction(result)
    return None if way is None or (way == 0 and not _enough(result)) else way > 0


def direction(result: Result) -> int | None:
    """Return 1 where a result has become better beyond noise, -1 worse, 0 neither; None where that is not known."""
    if not result.change or not result.better:
        return None
    low, high = result.change if result.better == "higher" else (-result.change[1], -result.change[0])
    return 1 if low > 0 else -1 if high < 0 else 0


def _enough(result: Result) -> bool:
    return result.rows is None or result.rows >= ENOUGH_ROWS


def _headline(stage: KeptStage) -> Result | None:
    """Return the figure that a stage is there for: of several policies side by side the last one's."""
    goals = [result for result in stage.results if result.better and result.before is not None]
    side_by_side = [result for result in goals if result.name.startswith("reward ")]
    chosen = side_by_side or goals[:1]
    return chosen[-1] if chosen else None


def _lead(stage: KeptStage, result: Result) -> str:
    """Return the headline: the figure, and beside it what it cost in KL and length."""
    beside = dict(_beside(stage, result))
    facts = [f"KL {brief(beside['kl'].after)}"] if "kl" in beside else []
    told = sentence(stage, result).removesuffix(".")
    length = beside.get("length")
    lengths = f"; answers {brief(length.before)} -> {brief(length.after)} tokens" if length else ""
    return f"{', '.join([told, *facts])}{lengths}."


def _beside(stage: KeptStage, result: Result) -> Iterator[tuple[str, Result]]:
    """Yield what else was measured of the same answers, by its name without the policy's."""
    policy = result.name.removeprefix("reward") if result.name.startswith("reward ") else ""
    for one in stage.results:
        if one is not result and one.name.endswith(policy):
            yield one.name.removesuffix(policy), one


def _goals(stage: KeptStage) -> Iterator[str]:
    """Yield a sentence for each figure that has a better and a worse, and something that it is held against."""
    held = (one for one in stage.results if one.better and (one.before is not None or one.floor is not None))
    return (sentence(stage, one) for one in held if one.after is not None)


def sentence(stage: KeptStage, result: Result) -> str:
    """Return what became of a figure, in a sentence: what it was, is, the interval, the rows, and its floor."""
    name, rows = subject(stage, result), _rows(stage, result)
    floor = _floor(result)
    if result.before is None:
        around = "" if result.interval is None else f"95 % {_ends(result.interval)}"
        return f"{name} is {brief(result.after)}{_listed(around, rows)}{floor}."
    values = f"{brief(result.before)} -> {brief(result.after)}"
    if result.change is None:
        return f"{name} went {values}{_listed(rows)}{floor}."
    by = _change(result)
    way = direction(result)
    if way == 0 or not result.change[0] * result.change[1] > 0:
        few = f"{result.rows} rows are too few to tell" if not _enough(result) else "it cannot be told from before"
        seen = f"a change of {brief(detectable(result.change))} would be seen 4 times of 5"
        return f"{name}: {few}, {values}{_listed(by, rows, seen)}{floor}."
    return f"{name} {'rose' if result.change[0] > 0 else 'fell'} {values}{_listed(by, rows)}{floor}."


def brief(value: float | None) -> str:
    """Write a number with three digits that count, as its interval seldom leaves more."""
    return number(None if value is None else float(f"{value:.3g}"))


def _listed(*facts: str) -> str:
    return f" ({', '.join(filter(None, facts))})" if any(facts) else ""


def _change(result: Result) -> str:
    """Write by how much: `+0.39 ± 0.05`, or the ends where the interval is lopsided."""
    low, high = result.change or (0.0, 0.0)
    value, half = (result.after or 0.0) - (result.before or 0.0), (high - low) / 2
    sign = "+" if value >= 0 else ""
    if half < abs(value) / 1000:
        return f"{sign}{brief(value)}"
    if abs((low + high) / 2 - value) <= half / 10:
        return f"{sign}{give_or_take(value, half)}"
    return f"95 % {low:+.2g} to {high:+.2g}"


def _ends(interval: Interval) -> str:
    return f"{brief(interval[0])} to {brief(interval[1])}"


def _floor(result: Result) -> str:
    if result.floor is None or result.after is None:
        return ""
    if result.after <= result.floor:
        return f", no better than its floor {brief(result.floor)}"
    near = result.interval is not None and result.interval[0] <= result.floor
    return f", above its floor {brief(result.floor)}{' by less than noise' if near else ''}"


def subject(stage: KeptStage, result: Result) -> str:
    """Name a figure as the beginning of a sentence: a reward by what gives it, of which policy."""
    if not result.name.startswith("reward "):
        return result.name[0].upper() + result.name[1:]
    rewards, policy = " + ".join(stage.inputs.get("rewards", ())), result.name.removeprefix("reward ")
    first = next((name for name in stage.inputs.get("policies", ()) if name != policy), "")
    moved = f" from {first} to {policy}" if result.before is not None and first else f" of {policy}"
    return f"{rewards[:1].upper()}{rewards[1:]}{moved}" if rewards else f"Reward{moved}"


def _rows(stage: KeptStage, result: Result) -> str:
    """Say on how many rows a figure was measured, and of what kind."""
    kind = next((role for role in ("prompts", "pairs", "demos", "answers") if role in stage.inputs), "rows")
    word = {"demos": "demonstrations"}.get(kind, kind)
    return "" if result.rows is None else f"{result.rows} {word}"


def _worse(stage: KeptStage) -> Iterator[str]:
    """Yield what got worse beyond noise, or is no goal and has moved as no goal should."""
    for result in stage.results:
        if direction(result) == -1:
            yield sentence(stage, result)
        elif _ends_less(result):
            yield f"fewer answers end by themselves: {sentence(stage, result)}"
        elif _is(result, "length") and result.before and (result.after or 0) > LONGER * result.before:
            yield f"answers have become longer: {sentence(stage, result)}"


def _is(result: Result, measure: str) -> bool:
    return result.name == measure or result.name.startswith(f"{measure} ")


def _ends_less(result: Result) -> bool:
    return _is(result, "eos_rate") and result.change is not None and result.change[1] < 0


def _alarms(stage: KeptStage, stages: Sequence[KeptStage]) -> Iterator[Alarm]:
    """Yield what makes a stage's figures worthless."""
    yield from _at_floor(stage, stages)
    yield from _endless(stage)
    yield from _learnt_length(stage, stages)
    yield from _unheld(stage)
    yield from _over_optimised(stage, stages)
    headline = _headline(stage)
    if headline and direction(headline) == -1:
        yield Alarm(stage.name, f"{stage.name} got worse", "lower the learning rate, or look at its data")


def _at_floor(stage: KeptStage, stages: Sequence[KeptStage]) -> Iterator[Alarm]:
    for result in stage.results:
        if result.floor is None or result.after is None or result.after > result.floor:
            continue
        users = [one.name for one in stages if stage.name in (name for names in one.inputs.values() for name in names)]
        learnt = f", and {' and '.join(users)} learnt from it" if users and stage.makes == "RewardModel" else ""
        problem = f"{stage.name} is no better than its floor ({result.name} {brief(result.after)}, floor "
        remedy = "give it more or better rows, or train it longer, before anything is made of it"
        yield Alarm(stage.name, f"{problem}{brief(result.floor)}){learnt}", remedy)


def _endless(stage: KeptStage) -> Iterator[Alarm]:
    for result in stage.results:
        if _is(result, "eos_rate") and result.after is not None and result.after < CUT:
            policy = result.name.removeprefix("eos_rate").strip() or stage.name
            problem = f"answers of {policy} do not end: {result.after:.0%} end by themselves, the others are cut"
            yield Alarm(stage.name, problem, "allow more new tokens, or teach it first when to stop")


def _learnt_length(stage: KeptStage, stages: Sequence[KeptStage]) -> Iterator[Alarm]:
    """Look whether longer answers explain what was gained, where no reward from outside has risen as well."""
    columns, named = stage.rows, {result.name: result for result in stage.results}
    told, length = named.get("reward"), named.get("length")
    if not told or not length or direction(told) != 1 or not {*PAIRED} <= columns.keys():
        return
    if not length.before or not length.after or length.after < LONGER * length.before:
        return
    share = explained_by_length(columns)
    if share < EXPLAINED or any(direction(one) == 1 for one in _from_outside(stage, stages)):
        return
    problem = (
        f"what {stage.name} learnt is length: answers grew {brief(length.before)} -> {brief(length.after)} tokens, "
        f"which explains {min(1.0, share):.0%} of what it gained in reward"
    )
    yield Alarm(stage.name, problem, "take a reward that does not pay for length, or measure by one that does not")


PAIRED = ("reward", "length", "reward before", "length before")


def explained_by_length(columns: Mapping[str, Sequence[float]]) -> float:
    """Return the share of a gain in reward that greater length explains: the slope of reward on length among answers
    of one policy, times what length has grown. 0 where reward and length do not go together."""
    rewards = [columns["reward before"], columns["reward"]]
    lengths = [columns["length before"], columns["length"]]
    centred = [[[x - fmean(part) for x in part] for part in parts] for parts in (lengths, rewards)]
    x, y = ([value for part in parts for value in part] for parts in centred)
    gain, growth = (fmean(parts[1]) - fmean(parts[0]) for parts in (rewards, lengths))
    if len({*x}) < 2 or len({*y}) < 2 or not gain or correlation(x, y) <= 0:
        return 0.0
    return linear_regression(x, y).slope * growth / gain


def _from_outside(stage: KeptStage, stages: Sequence[KeptStage]) -> list[Result]:
    """Return what rewards say of its policy that it has not learnt from."""
    learnt = {*stage.inputs.get("rewards", ())}
    return [
        result
        for one in stages
        if not learnt & {*one.inputs.get("rewards", ())} and stage.name in one.inputs.get("policies", ())
        for result in one.results
        if result.name == f"reward {stage.name}"
    ]


def _unheld(stage: KeptStage) -> Iterator[Alarm]:
    """Look whether a policy has gone far from its start, and what should have held it."""
    named = {result.name: result for result in stage.results}
    kl = named.get("kl")
    if kl is None or kl.after is None or kl.after <= FAR:
        return
    coefficients = [one for one in stage.settings if one.key.endswith("kl.coef")]
    free = any(float(one.value) == 0 for one in coefficients)
    held = f"nothing holds {stage.name} to its start (kl.coef is 0)" if free else f"{stage.name} is far from its start"
    problem = f"{held}: KL {brief(kl.after)} nats an answer"
    yield Alarm(stage.name, problem, "raise kl.coef, lower the learning rate, or take fewer updates")


def _over_optimised(stage: KeptStage, stages: Sequence[KeptStage]) -> Iterator[Alarm]:
    reward = next((result for result in stage.results if result.name == "reward"), None)
    if reward is None or direction(reward) != 1:
        return
    for result in _from_outside(stage, stages):
        if direction(result) == -1:
            problem = f"{stage.name} is over-optimised: the reward that it learnt from rose, and the one outside fell"
            yield Alarm(stage.name, problem, "raise kl.coef, take fewer updates, or train the reward model on more")
