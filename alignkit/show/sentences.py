"""Figures in sentences: what a figure was and is, its 95 % interval, its rows and seeds, and its floor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alignkit.contract.events import Result
from alignkit.noise import ENOUGH_ROWS, Interval, detectable
from alignkit.show.metrics import bounds_in_words
from alignkit.store.runs import KeptSetting
from alignkit.text import give_or_take, number


@dataclass(frozen=True)
class MeasuredStage:
    """What a stage has come to."""

    name: str
    results: Sequence[Result]
    """The intervals count other seeds in, where there are some."""
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Role -> the sources and stages that it takes."""
    makes: str = "Policy"
    rows: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What was measured of each held-out row."""
    settings: Sequence[KeptSetting] = ()
    seeds: int = 1
    """How many seeds of the same run the intervals are over."""


def direction(result: Result) -> int | None:
    """Return 1 where a result has become better beyond noise, -1 worse, 0 neither; None where that is not known."""
    if not result.change or not result.better:
        return None
    low, high = result.change if result.better == "higher" else (-result.change[1], -result.change[0])
    return 1 if low > 0 else -1 if high < 0 else 0


def is_enough(result: Result) -> bool:
    """Return whether it was measured on rows enough to tell anything."""
    return result.rows is None or result.rows >= ENOUGH_ROWS


def is_measure(result: Result, measure: str) -> bool:
    """Return whether it is this measure, of whichever policy."""
    return result.name == measure or result.name.startswith(f"{measure} ")


def headline(stage: MeasuredStage) -> Result | None:
    """Return the figure that a stage is there for: of several policies side by side the last one's."""
    goals = [result for result in stage.results if result.better and result.before is not None]
    side_by_side = [result for result in goals if result.name.startswith("reward ")]
    chosen = side_by_side or goals[:1]
    return chosen[-1] if chosen else None


def sentence(stage: MeasuredStage, result: Result) -> str:
    """Return what became of a figure, in a sentence: what it was, is, the interval, the rows, and its floor."""
    name, rows = subject(stage, result), _rows(stage, result)
    floor = f"{_floor(result)}{_bound(result)}"
    if result.before is None:
        around = "" if result.interval is None else f"95 % {_ends(result.interval)}"
        return f"{name} is {brief(result.after)}{_listed(around, rows)}{floor}."
    values = f"{brief(result.before)} -> {brief(result.after)}"
    if result.change is None:
        return f"{name} went {values}{_listed(rows)}{floor}."
    by = _change(result)
    way = direction(result)
    if way == 0 or not result.change[0] * result.change[1] > 0:
        few = f"{result.rows} rows are too few to tell" if not is_enough(result) else "it cannot be told from before"
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


def _bound(result: Result) -> str:
    if result.bounds is None:
        return ""
    return f", {'within' if result.holds else 'beyond'} its bound ({bounds_in_words(*result.bounds)})"


def subject(stage: MeasuredStage, result: Result) -> str:
    """Name a figure as the beginning of a sentence: a reward by what gives it, of which policy."""
    if result.name.startswith("cost/"):
        return f"Mean {result.name.removeprefix('cost/')}"
    if is_measure(result, "attained"):
        return f"Share of the attainable gain of {result.name.removeprefix('attained ')}"
    if not result.name.startswith("reward "):
        return result.name[0].upper() + result.name[1:]
    rewards, policy = " + ".join(stage.inputs.get("rewards", ())), result.name.removeprefix("reward ")
    first = next((name for name in stage.inputs.get("policies", ()) if name != policy), "")
    moved = f" from {first} to {policy}" if result.before is not None and first else f" of {policy}"
    return f"{rewards[:1].upper()}{rewards[1:]}{moved}" if rewards else f"Reward{moved}"


def _rows(stage: MeasuredStage, result: Result) -> str:
    """Say on how many rows a figure was measured, and of what kind."""
    kind = next((role for role in ("prompts", "pairs", "demos", "answers") if role in stage.inputs), "rows")
    word = {"demos": "demonstrations"}.get(kind, kind)
    seeds = f", {stage.seeds} seeds" if stage.seeds > 1 else ""
    return "" if result.rows is None else f"{result.rows} {word}{seeds}"
