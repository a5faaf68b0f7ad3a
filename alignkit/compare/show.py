"""A comparison in words: a table for the console, what may be concluded from it, and JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from alignkit.compare.noise import Difference
from alignkit.compare.planning import ComparisonPlan
from alignkit.compare.results import Comparison, Line
from alignkit.plan.tables import table
from alignkit.run.words import duration, number, size

PAIRED = (
    "95 % intervals from standard errors: over the same held-out prompts (paired, prompt by prompt) and over the seeds "
    "(pooled over the variants)"
)
UNPAIRED = (
    "95 % intervals from standard errors over the same held-out prompts (paired, prompt by prompt); with one seed it "
    "is not known how much another seed would change: --seeds 3 tells"
)


def show_comparison(found: Comparison, width: int | None) -> list[str]:
    """Give the lines of the result: the table, then what may be concluded from it."""
    head, *rows = cells_of(found)
    remarks = [("", remark) for remark in remarks_on(found)]
    return [*table(rows, width, head), "", *(line.strip() for line in _wrapped(remarks, width))]


def _wrapped(remarks: list[tuple[str, str]], width: int | None) -> Iterator[str]:
    for _, remark in remarks:
        yield from table([(remark,)], width)


def cells_of(found: Comparison) -> list[tuple[str, ...]]:
    """Give the table as text, its head first: rewards, win rate over the start, KL, and what it cost."""
    beside = [name for name in found.start.rewards if len(found.deciding) > 1 or name not in found.deciding]
    head = ("variant", decided_by(found), *beside, "wins over start", "KL", "length", "distinct-1/2", "frontier")
    rows = [_cells(found, line, beside) for line in (found.start, *found.variants)]
    return [(*head, "time", "memory", "verdict"), *rows]


def _cells(found: Comparison, line: Line, beside: list[str]) -> tuple[str, ...]:
    return (
        line.name,
        f"{line.reward:.3f} ± {line.interval:.3f}",
        *(f"{line.rewards[name]:.3f}" for name in beside),
        _wins(line),
        "-" if line.kl is None else f"{line.kl:.2f}",
        f"{line.length:.1f}",
        f"{line.distinct_1:.2f}/{line.distinct_2:.2f}",
        "yes" if line.frontier else "no",
        "" if line.seconds is None else duration(line.seconds),
        "" if line.memory is None else size(line.memory),
        verdict(found, line),
    )


def _wins(line: Line) -> str:
    if line.win_rate is None or line.win_interval is None:
        return ""
    low, high = line.win_interval
    return f"{line.win_rate:.0%} ({low:.0%} to {high:.0%})"


def decided_by(found: Comparison) -> str:
    """Name what decides: one reward, or the sum of several."""
    return found.deciding[0] if len(found.deciding) == 1 else "sum"


def verdict(found: Comparison, line: Line) -> str:
    """Say where a variant stands: best, level with the best within noise, or behind."""
    if line.gain is None:
        return ""
    unmoved = "; not above the start beyond noise" if line.gain.within_noise or line.gain.value < 0 else ""
    if line.behind is None:
        place = "highest" if len(found.variants) > 1 else f"{signed(line.gain)} over the start"
        return f"{place}{unmoved}"
    noise = ", within noise" if line.behind.within_noise else ""
    return f"{number(line.behind.value)} ± {number(line.behind.half)} behind{noise}{unmoved}"


def signed(found: Difference) -> str:
    return f"{found.value:+.3f} ± {found.half:.3f}"


def remarks_on(found: Comparison) -> list[str]:
    """Say what may be concluded, and what the numbers mean."""
    return [conclusion(found), *_meanings(found)]


def conclusion(found: Comparison) -> str:
    """Say in a sentence which variant is best, or that the data do not tell."""
    best = found.best
    level = [line.name for line in found.variants if line.behind and line.behind.within_noise]
    measure = " + ".join(found.deciding)
    if not best.gain or best.gain.within_noise or best.gain.value < 0:
        return f"No variant is above the start in {measure} beyond noise."
    if len(found.variants) == 1:
        return f"{best.name} is above the start in {measure}: {signed(best.gain)}."
    if level:
        return f"{best.name} is highest in {measure}, and {_listed(level)} cannot be told from it: within noise."
    return f"{best.name} is best in {measure}, beyond noise."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _meanings(found: Comparison) -> Iterator[str]:
    seeds = f"{len(found.seeds)} seeds" if len(found.seeds) > 1 else "one seed"
    yield f"{found.prompts} held-out prompts, {seeds} of {found.stage} ({', '.join(map(str, found.seeds))})."
    others = len(found.variants) - 1
    several = f"; {others} comparisons with the best count together (Bonferroni)" if others > 1 else ""
    yield f"{PAIRED if len(found.seeds) > 1 else UNPAIRED}{several}."
    learnt = [name for name in found.deciding if name in found.trained]
    if learnt:
        yield f"{_listed(learnt)} decides and was learnt from: a variant may have learnt its mistakes, too."


def show_heading(planned: ComparisonPlan) -> str:
    """Say what is compared, before the plan is shown."""
    labels = ", ".join(contender.variant.label for contender in planned.contenders)
    seeds = f"seed{'s' if len(planned.seeds) > 1 else ''} {', '.join(map(str, planned.seeds))}"
    return f"comparing {planned.stage}: {labels}; {seeds}; from {planned.start}, by {' + '.join(planned.deciding)}"


def as_dict(found: Comparison) -> dict[str, Any]:
    """Give a comparison as plain JSON values."""
    facts = {**asdict(found), "folder": str(found.folder), "trained": sorted(found.trained)}
    best = {"best": found.best.name, "conclusion": conclusion(found), "noise": next(iter(remarks_on(found)[2:]))}
    plain: dict[str, Any] = json.loads(json.dumps({**facts, **best}))
    for line, shown in zip(found.variants, plain["variants"], strict=True):
        for key, value in (("gain", line.gain), ("behind", line.behind)):
            shown[key] = None if value is None else {**shown[key], "within_noise": value.within_noise}
    return plain


def plan_as_dict(planned: ComparisonPlan) -> dict[str, Any]:
    """Give what is compared as plain JSON values."""
    return {
        "stage": planned.stage,
        "start": planned.start,
        "seeds": list(planned.seeds),
        "scores": planned.scores,
        "deciding": list(planned.deciding),
        "variants": [
            {"variant": one.variant.label, "method": one.variant.method, "stages": list(one.stages)}
            for one in planned.contenders
        ],
    }
