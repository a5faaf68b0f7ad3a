"""A comparison in words: a table for the console, what may be concluded from it, and JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from alignkit.compare.measured import Comparison, Line, WayPoint
from alignkit.compare.planning import ComparisonPlan
from alignkit.noise import Difference
from alignkit.recipe.packaged import is_packaged
from alignkit.show.frontier import Ceiling, read_ceiling
from alignkit.text import duration, give_or_take, short, size, table

SEVERAL_SEEDS = (
    "95 % intervals from standard errors: over the same held-out prompts (paired, prompt by prompt) and over the seeds "
    "(pooled over the variants)"
)
ONE_SEED = (
    "95 % intervals from standard errors over the same held-out prompts (paired, prompt by prompt); with one seed it "
    "is not known how much another seed would change: --seeds 3 tells"
)


def show_comparison(found: Comparison, width: int | None) -> list[str]:
    """Return the lines of the result: the table, a verdict on each variant, then what may be concluded.

    Where the lines would be too long, the policies stand side by side instead of one below the other.
    """
    cells = cells_of(found)
    turned = list(zip(*cells, strict=True))
    head, *rows = turned if _fits(turned, width) and not _fits(cells, width) else cells
    verdicts = [(line.name, verdict(found, line)) for line in found.variants]
    best = found.ceiling and best_of_cells(found.ceiling)
    several = ["", *table(best[1:], width, best[0])] if best else []
    remarks = [line for remark in remarks_on(found) for line in table([(remark,)], width)]
    return [*table(rows, width, head), *several, "", *table(verdicts, width), "", *remarks]


def _fits(cells: Sequence[Sequence[str]], width: int | None) -> bool:
    return width is None or max(map(len, table(cells, None))) <= width


def cells_of(found: Comparison) -> list[tuple[str, ...]]:
    """Return the table as text, its head first: rewards, win rate over the start, KL, and what it cost."""
    beside = [name for name in found.start.rewards if len(found.deciding) > 1 or name not in found.deciding]
    attainable = ["of attainable"] if found.ceiling else []
    peak = ["peak"] if any(line.way for line in found.variants) else []
    head = (
        "variant",
        decided_by(found),
        *beside,
        "wins over start",
        "KL",
        *attainable,
        *peak,
        "length",
        "distinct-1/2",
    )
    rows = (_cells(found, line, beside) for line in (found.start, *found.variants))
    return [(*head, "frontier", "time", "memory"), *rows]


def _cells(found: Comparison, line: Line, beside: Sequence[str]) -> tuple[str, ...]:
    return (
        line.name,
        give_or_take(line.reward, line.interval),
        *(f"{line.rewards[name]:.3f}" for name in beside),
        _wins(line),
        "-" if line.kl is None else f"{round(line.kl, 2) + 0.0:.2f}",  # no -0.00
        *([_share(line)] if found.ceiling else ()),
        *([_peak(line)] if any(one.way for one in found.variants) else ()),
        f"{line.length:.1f}",
        f"{line.distinct_1:.2f}/{line.distinct_2:.2f}",
        "yes" if line.frontier else "no",
        "" if line.seconds is None else duration(line.seconds),
        "" if line.memory is None else size(line.memory),
    )


def _wins(line: Line) -> str:
    if line.win_rate is None or line.win_interval is None:
        return ""
    low, high = line.win_interval
    return f"{line.win_rate:.0%} ({low:.0%} to {high:.0%})"


def _share(line: Line) -> str:
    """Return the share of what is attainable, where there is one: the start has gained nothing."""
    if line.attained is None:
        return "" if line.win_rate is None else "-"
    return f"{line.attained.value:.0%} ± {line.attained.half:.0%}"


def _peak(line: Line) -> str:
    """Return the highest reward on the way to a policy, and where that was."""
    if line.peak_reward is None:
        return ""
    return f"{line.peak_reward:.3f}" if line.peak_kl is None else f"{line.peak_reward:.3f} at KL {line.peak_kl:.2f}"


def best_of_cells(ceiling: Ceiling) -> list[tuple[str, ...]]:
    """Return what the best of n gives as text, its head first: by each reward that chooses, and its KL."""
    rows: dict[int, list[str]] = {}
    for one in ceiling.best_of:
        rows.setdefault(one.n, []).append(give_or_take(one.reward, one.interval))
    most = {one.n: f"{one.most_kl:.2f}" for one in ceiling.best_of}
    head = ("best of", *(f"chosen by {name}" for name in ceiling.choosing), "KL at most")
    return [head, *((str(n), *several, most[n]) for n, several in rows.items())]


def decided_by(found: Comparison) -> str:
    """Name what decides: one reward, or the sum of several."""
    return found.deciding[0] if len(found.deciding) == 1 else "sum"


def verdict(found: Comparison, line: Line) -> str:
    """Return where a variant stands: best, level with the best within noise, or behind."""
    if line.gain is None:
        return ""
    unmoved = "; not above the start beyond noise" if line.gain.within_noise or line.gain.value < 0 else ""
    if line.behind is None:
        place = "highest" if len(found.variants) > 1 else f"{_told(line.gain)} over the start"
        return f"{place}{unmoved}"
    noise = ", within noise" if line.behind.within_noise else ""
    return f"{_told(line.behind)} behind{noise}{unmoved}"


def _told(found: Difference) -> str:
    return give_or_take(found.value, found.half)


def remarks_on(found: Comparison) -> list[str]:
    """Return what may be concluded, and what the numbers mean."""
    learnt = _listed([name for name in found.deciding if name in found.trained])
    warning = f"{learnt} decides and was learnt from: a variant may have learnt its mistakes, too."
    told = [warning] if learnt else []
    return [conclusion(found), *mistaken(found), _asked(found), noise(found), *_attainable(found), *told]


def mistaken(found: Comparison) -> list[str]:
    """Return which variants are better than any policy can be: what was measured of them is wrong."""
    return [
        f"ERROR: {line.name} ({_listed(line.above)}) lies above the most that any policy can have at its KL: its "
        "reward or its KL is measured wrongly."
        for line in found.variants
        if line.above
    ]


def _attainable(found: Comparison) -> list[str]:
    if found.ceiling is None:
        return []
    asked = f"{found.ceiling.samples} answers of the start to each of {found.ceiling.prompts} prompts"
    told = (
        "Of attainable: the share that was gained of the most that any policy can gain at the same KL. It follows from"
    )
    return [f"{told} {asked}, which tell it up to a KL of {found.ceiling.reliable_kl:.1f}."]


def conclusion(found: Comparison) -> str:
    """Return in a sentence which variant is best, or that the data do not tell."""
    best = found.best
    level = [line.name for line in found.variants if line.behind and line.behind.within_noise]
    measure = " + ".join(found.deciding)
    if not best.gain or best.gain.within_noise or best.gain.value < 0:
        return f"No variant is above the start in {measure} beyond noise."
    if len(found.variants) == 1:
        return f"{best.name} is above the start in {measure}: {_told(best.gain)}."
    if level:
        return f"{best.name} is highest in {measure}, and {_listed(level)} cannot be told from it: within noise."
    return f"{best.name} is best in {measure}, beyond noise."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _asked(found: Comparison) -> str:
    seeds = f"{len(found.seeds)} seeds" if len(found.seeds) > 1 else "one seed"
    return f"{found.prompts} held-out prompts, {seeds} of {found.stage} ({', '.join(map(str, found.seeds))})."


def noise(found: Comparison) -> str:
    """Return how the intervals were made."""
    others = len(found.variants) - 1
    several = f"; {others} comparisons with the best count together (Bonferroni)" if others > 1 else ""
    return f"{SEVERAL_SEEDS if len(found.seeds) > 1 else ONE_SEED}{several}; of wins Wilson's, over the prompts."


def show_heading(planned: ComparisonPlan, base: Path) -> str:
    """Return what is compared, before the plan is shown; a file's path is relative to `base`."""
    labels = ", ".join(contender.variant.label for contender in planned.contenders)
    seeds = f"seed{'s' if len(planned.seeds) > 1 else ''} {', '.join(map(str, planned.seeds))}"
    path = planned.plan.recipe.path
    place = f"the packaged recipe {path.stem}" if is_packaged(path) else short(path, base)
    deciding = " + ".join(planned.deciding)
    return f"comparing {planned.stage} of {place}: {labels}; {seeds}; from {planned.start}, decided by {deciding}"


def as_dict(found: Comparison) -> dict[str, Any]:
    """Return a comparison as plain JSON values."""
    facts = {**asdict(found), "folder": str(found.folder), "trained": sorted(found.trained)}
    best = {"best": found.best.name, "conclusion": conclusion(found), "noise": noise(found)}
    plain: dict[str, Any] = json.loads(json.dumps({**facts, **best}))
    for line, shown in zip(found.variants, plain["variants"], strict=True):
        for key, value in (("gain", line.gain), ("behind", line.behind)):
            shown[key] = None if value is None else {**shown[key], "within_noise": value.within_noise}
    return plain


def comparison_of(facts: Mapping[str, Any]) -> Comparison:
    """Read a comparison back from what `as_dict` gave, from JSON, too."""
    known = {field.name: facts[field.name] for field in fields(Comparison) if field.name in facts}
    known |= {"folder": Path(facts["folder"]), "trained": frozenset(facts["trained"])}
    known |= {name: tuple(facts[name]) for name in ("deciding", "seeds")}
    known |= {"ceiling": read_ceiling(facts["ceiling"])} if facts.get("ceiling") else {}
    return Comparison(
        **known | {"start": _line_of(facts["start"]), "variants": tuple(map(_line_of, facts["variants"]))}
    )


def _line_of(facts: Mapping[str, Any]) -> Line:
    wins = facts["win_interval"]
    known = {**facts, "win_interval": wins and tuple(wins)}
    known |= {name: tuple(facts.get(name, ())) for name in ("stages", "by_seed", "above")}
    known["way"] = tuple(WayPoint(**point) for point in facts.get("way", ()))
    return Line(**known | {name: _difference(facts.get(name)) for name in ("gain", "behind", "attained")})


def _difference(facts: Mapping[str, Any] | None) -> Difference | None:
    return Difference(facts["value"], facts["half"]) if facts else None


def plan_as_dict(planned: ComparisonPlan) -> dict[str, Any]:
    """Return what is compared as plain JSON values."""
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
