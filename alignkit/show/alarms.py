"""Alarms: what makes a good figure of a stage worthless."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, fmean, linear_regression

from alignkit.contract.events import Result
from alignkit.show.metrics import bounds_in_words
from alignkit.show.sentences import MeasuredStage, brief, direction, headline, is_measure

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


def alarms_of(stage: MeasuredStage, stages: Sequence[MeasuredStage]) -> Iterator[Alarm]:
    """Yield what makes a stage's figures worthless."""
    yield from _at_floor(stage, stages)
    yield from _endless(stage)
    yield from _learnt_length(stage, stages)
    yield from _unheld(stage)
    yield from _beyond_bounds(stage)
    yield from _over_optimised(stage, stages)
    yield from _above_ceiling(stage)
    goal = headline(stage)
    if goal and direction(goal) == -1:
        yield Alarm(stage.name, f"{stage.name} got worse", "lower the learning rate, or look at its data")


def _at_floor(stage: MeasuredStage, stages: Sequence[MeasuredStage]) -> Iterator[Alarm]:
    for result in stage.results:
        if result.floor is None or result.after is None or result.after > result.floor:
            continue
        users = [one.name for one in stages if stage.name in (name for names in one.inputs.values() for name in names)]
        learnt = f", and {' and '.join(users)} learnt from it" if users and stage.makes == "RewardModel" else ""
        problem = f"{stage.name} is no better than its floor ({result.name} {brief(result.after)}, floor "
        remedy = "give it more or better rows, or train it longer, before anything is made of it"
        yield Alarm(stage.name, f"{problem}{brief(result.floor)}){learnt}", remedy)


def _endless(stage: MeasuredStage) -> Iterator[Alarm]:
    for result in stage.results:
        if is_measure(result, "eos_rate") and result.after is not None and result.after < CUT:
            policy = result.name.removeprefix("eos_rate").strip() or stage.name
            problem = f"answers of {policy} do not end: {result.after:.0%} end by themselves, the others are cut"
            yield Alarm(stage.name, problem, "allow more new tokens, or teach it first when to stop")


def _learnt_length(stage: MeasuredStage, stages: Sequence[MeasuredStage]) -> Iterator[Alarm]:
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


def _from_outside(stage: MeasuredStage, stages: Sequence[MeasuredStage]) -> list[Result]:
    """Return what rewards say of its policy that it has not learnt from."""
    learnt = {*stage.inputs.get("rewards", ())}
    return [
        result
        for one in stages
        if not learnt & {*one.inputs.get("rewards", ())} and stage.name in one.inputs.get("policies", ())
        for result in one.results
        if result.name == f"reward {stage.name}"
    ]


def _unheld(stage: MeasuredStage) -> Iterator[Alarm]:
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


def _beyond_bounds(stage: MeasuredStage) -> Iterator[Alarm]:
    for result in stage.results:
        if result.bounds is None or result.holds is not False:
            continue
        cost, ends = result.name.removeprefix("cost/"), result.interval
        around = f" (95 % {brief(ends[0])} to {brief(ends[1])})" if ends else ""
        must = f"must be {bounds_in_words(*result.bounds)}"
        problem = f"{stage.name} breaks a bound: mean {cost} is {brief(result.after)}{around}, and {must}"
        remedy = f"take more updates, raise learning_rate or start of constraints.{cost}, or move the bound"
        yield Alarm(stage.name, problem, remedy)


def _above_ceiling(stage: MeasuredStage) -> Iterator[Alarm]:
    """Look whether a policy is better than any can be at its KL."""
    for result in stage.results:
        if is_measure(result, "above ceiling") and result.after is not None and result.interval:
            policy, ends = result.name.removeprefix("above ceiling").strip(), result.interval
            around = f"{brief(result.after)} (95 % {brief(ends[0])} to {brief(ends[1])})"
            problem = f"{policy} lies above the most that any policy can have at its KL, by {around}"
            remedy = "its reward or its KL is measured wrongly, so trust neither until you know which"
            yield Alarm(stage.name, problem, remedy)


def _over_optimised(stage: MeasuredStage, stages: Sequence[MeasuredStage]) -> Iterator[Alarm]:
    reward = next((result for result in stage.results if result.name == "reward"), None)
    if reward is None or direction(reward) != 1:
        return
    for result in _from_outside(stage, stages):
        if direction(result) == -1:
            problem = f"{stage.name} is over-optimised: the reward that it learnt from rose, and the one outside fell"
            yield Alarm(stage.name, problem, "raise kl.coef, take fewer updates, or train the reward model on more")
