"""Every stage of a recipe in small: a few steps of its own batch size, eight rows to measure on, save and load.

It finds what only a run can find, and tells how far this machine is from the estimates: the ratio of the time that the
small run took to what was estimated for it corrects the estimate of the whole.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.contract.events import Metrics
from alignkit.contract.kinds import Text
from alignkit.contract.needs import EvaluationNeeds, RowNeeds, SamplingNeeds
from alignkit.estimate.desk import Desk, desk_for
from alignkit.estimate.preflight import Preflight, preflight
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.plan.planner import plan_recipe
from alignkit.recipe.recipe import dotted, read_recipe
from alignkit.store import rundir
from alignkit.store.durable import read_json
from alignkit.store.journal import read_journal

if TYPE_CHECKING:
    from alignkit.run.run_result import RunResult

STEPS, MEASURED = 2, 8
SECONDS = 3.0
"""More steps are taken where these take less: what starting up takes would hide what a step does."""


def emptied(runs: Path) -> Path:
    """Return the folder in which stages run in small, with nothing in it."""
    place = rundir.smoke_folder(runs.resolve())
    shutil.rmtree(place, ignore_errors=True)
    return place


def small_plan(desk: Desk, needs: Preflight, place: Path) -> Plan:
    """Plan the same stages with few steps and rows, and no gates: what they would guard says nothing here."""
    plan = desk.plan
    given = {dotted(keys): value for keys, value in plan.recipe.overrides.items()}
    needed = {one["stage"]: one for one in needs.stages}
    wanted = [stage for stage in plan.stages if stage.wanted]
    parts = {stage.name: _part(stage, needed.get(stage.name)) for stage in wanted}
    changes = {key: value for stage in wanted for key, value in _settings(stage, parts[stage.name])}
    for name, audit in desk.audits.items():
        changes |= _rows(plan, name, audit.rows + audit.held_out, parts)
    read = read_recipe(plan.recipe.path, given | changes)
    small = plan_recipe(read, plan.plugins, runs=place, files=plan.plugin_files)
    stages = tuple(replace(stage, wanted=stage.name in parts, gates={}) for stage in small.stages)
    return replace(small, stages=stages)


class _Part(NamedTuple):
    """How much of a stage is run."""

    steps: int = STEPS
    share: float = 1.0
    """Of its rows that these steps are."""
    asked: int = MEASURED
    """Prompts, or rows, that it is measured on."""


def _part(stage: PlannedStage, need: Mapping[str, Any] | None) -> _Part:
    """Return how much of a stage a few seconds are, at least a little; without an estimate a little."""
    if not need:
        return _Part()
    few = min(1.0, SECONDS / float(need["seconds"]))
    if isinstance(stage.needs, EvaluationNeeds):
        return _Part(asked=max(MEASURED, math.ceil(few * stage.needs.prompts)))
    steps = max(STEPS, math.ceil(few * float(need["steps"])))
    return _Part(steps, min(1.0, steps / max(1.0, float(need["steps"]))))


def _settings(stage: PlannedStage, part: _Part) -> Iterator[tuple[str, Any]]:
    said = stage.settings.model_dump()
    smallest = {"measured": MEASURED, "prompts": part.asked, "max_lost": 1.0, "updates": part.steps}
    for name, value in smallest.items():
        now = said.get(name)
        if isinstance(now, int | float) and (now > value or name == "max_lost"):
            yield f"{stage.name}.{stage.method.name}.{name}", value
    if "patience" in said:  # a policy that has hardly learnt may answer all alike
        yield f"{stage.name}.{stage.method.name}.patience", 0
    if "epochs" in said and "updates" not in said:
        yield f"{stage.name}.{stage.method.name}.epochs", 1


def _rows(plan: Plan, source: str, rows: int, parts: Mapping[str, _Part]) -> dict[str, object]:
    """Take as many rows as the largest batch needs for its steps, and some to measure on."""
    used = [stage for stage in plan.stages if stage.wanted and source in stage.taken]
    if not used:
        return {}
    if issubclass(plan.sources[source].kind, Text):  # a block takes several texts, or a text several blocks
        wanted = max(math.ceil(rows * parts[stage.name].share) for stage in used)
    else:
        wanted = max(parts[stage.name].steps * _batch(stage) for stage in used)
    options: Any = plan.sources[source].options
    aside = max(parts[stage.name].asked for stage in used)
    few = min(rows, max(wanted, aside) + aside)
    if isinstance(options.held_out, str) or plan.sources[source].how == "builtin":
        return {f"{source}.rows": few}
    return {f"{source}.rows": few, f"{source}.held_out": max(options.held_out, round(min(0.5, aside / few), 3))}


def _batch(stage: PlannedStage) -> int:
    needs = stage.needs
    return needs.batch if isinstance(needs, RowNeeds | SamplingNeeds) else MEASURED


def calibrated(needs: Preflight, small: Plan, result: "RunResult", place: Path, offline: bool) -> list[dict[str, Any]]:
    """Correct what was estimated for each stage by what it took in small; what was not estimated is told as it was."""
    desk, _ = desk_for(small, place, offline)
    expected = {one["stage"]: one for one in preflight(desk).stages}
    estimated = {one["stage"]: one for one in needs.stages}
    return [
        _corrected(stage.name, stage.method, estimated.get(stage.name), expected.get(stage.name), _taken(stage.folder))
        for stage in result.stages
    ]


def _taken(folder: Path) -> dict[str, float]:
    facts = read_json(folder / rundir.STAGE)
    memory = facts["peak_memory"]
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    times = {"seconds": facts["seconds"], **_step(folder)}
    return {**times, "memory": memory.get("gpu", memory["memory"]), "disk": disk}


def _step(folder: Path) -> dict[str, float]:
    """Measure a step, between the first one that was told of and the last, and how long answers were in it.

    `a step` is 0 where fewer than two were told of, `answer` where a method samples none.
    """
    told = [event for event in read_journal("", folder) if isinstance(event, Metrics)]
    if len(told) < 2 or told[-1].step <= told[0].step:
        return {"a step": 0.0, "answer": 0.0}
    seconds = (told[-1].seconds - told[0].seconds) / (told[-1].step - told[0].step)
    return {"a step": seconds, "answer": fmean(event.values.get("length", 0.0) for event in told[1:])}


def _corrected(
    stage: str,
    method: str,
    whole: Mapping[str, Any] | None,
    small: Mapping[str, Any] | None,
    taken: Mapping[str, float],
) -> dict[str, Any]:
    facts = {"stage": stage, "method": method, "measured": dict(taken)}
    if not whole or not small:
        return {**facts, "seconds": taken["seconds"], "memory": taken["memory"], "disk": taken["disk"]}
    return {
        **facts,
        "seconds": extrapolated(whole, small, taken),
        **{name: max(whole[name], taken[name]) for name in ("memory", "disk")},
    }


def extrapolated(whole: Mapping[str, Any], small: Mapping[str, Any], taken: Mapping[str, float]) -> float:
    """Estimate the whole's time from the small run's: what a step takes, and apart from it what a stage does once.

    A policy that has hardly learnt answers at other length than the one that the whole will have.
    """
    stepping = taken["a step"] * float(small["steps"])
    once_small, once_whole = (float(one["seconds"] - one["stepping"]) for one in (small, whole))
    if not small["stepping"] or not 0 < stepping < taken["seconds"]:
        return float(whole["seconds"] * taken["seconds"] / small["seconds"])
    once = once_whole * (taken["seconds"] - stepping) / once_small
    if taken["answer"]:
        stepping *= (small["prompt"] + small["answer"]) / (small["prompt"] + taken["answer"])
    return float(whole["stepping"] * stepping / small["stepping"] + once)
