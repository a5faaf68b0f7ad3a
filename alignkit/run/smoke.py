"""Every stage of a recipe in small: two steps of its own batch size, eight rows to measure on, save and load.

It finds what only a run can find, and tells how far this machine is from the estimates: the ratio of the time that the
small run took to what was estimated for it corrects the estimate of the whole.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.contract.kinds import Records, Text
from alignkit.plan.make import plan_recipe
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.plan.recipe import dotted, read_recipe
from alignkit.run import rundir
from alignkit.run.durable import read_json
from alignkit.run.preflight import Preflight, preflight

if TYPE_CHECKING:
    from alignkit.run.runner import RunResult

STEPS, MEASURED = 2, 8
SMALLEST = {"updates": STEPS, "measured": MEASURED, "prompts": MEASURED, "max_lost": 1.0}
"""Settings of stages that are set, where a method has them."""


def emptied(runs: Path) -> Path:
    """Give the folder in which stages run in small, with nothing in it."""
    place = rundir.cache_folder(runs).resolve() / "smoke"
    shutil.rmtree(place, ignore_errors=True)
    return place


def small_plan(plan: Plan, place: Path) -> Plan:
    """Plan the same stages with few steps and rows, and no gates: what they would guard says nothing here."""
    given = {dotted(keys): value for keys, value in plan.recipe.overrides.items()}
    changes = {key: value for stage in plan.stages if stage.wanted for key, value in _settings(stage)}
    changes |= {key: value for name in plan.sources for key, value in _rows(plan, name)}
    read = read_recipe(plan.recipe.path, given | changes)
    wanted = {stage.name for stage in plan.stages if stage.wanted}
    small = plan_recipe(read, plan.plugins, runs=place, files=plan.plugin_files)
    stages = tuple(replace(stage, wanted=stage.name in wanted, gates={}) for stage in small.stages)
    return replace(small, stages=stages)


def _settings(stage: PlannedStage) -> Iterator[tuple[str, Any]]:
    known = type(stage.settings).model_fields
    for name, value in SMALLEST.items():
        now = getattr(stage.settings, name, None)
        if name in known and isinstance(now, int | float) and (now > value or name == "max_lost"):
            yield f"{stage.name}.{stage.method.name}.{name}", value
    if "epochs" in known and "updates" not in known:
        yield f"{stage.name}.{stage.method.name}.epochs", 1


def _rows(plan: Plan, source: str) -> Iterator[tuple[str, Any]]:
    """Take as many rows as the largest batch needs for its steps, and some to measure on."""
    if not issubclass(plan.sources[source].kind, Records):
        return
    used = [stage for stage in plan.stages if stage.wanted and any(source in names for names in stage.inputs.values())]
    if not used:
        return
    many = STEPS * max(_batch(stage) for stage in used)
    if issubclass(plan.sources[source].kind, Text):
        many *= 8  # a block may take several texts
    options: Any = plan.sources[source].options
    rows = many + MEASURED
    yield f"{source}.rows", min(rows, options.rows or rows)
    if not isinstance(options.held_out, str) and plan.sources[source].how != "builtin":
        yield f"{source}.held_out", max(options.held_out, math.ceil(1000 * MEASURED / rows) / 1000)


def _batch(stage: PlannedStage) -> int:
    return int(getattr(stage.settings, "batch", MEASURED))


def calibrated(needs: Preflight, small: Plan, result: "RunResult", place: Path, offline: bool) -> list[dict[str, Any]]:
    """Correct what was estimated for each stage by what it took in small; what was not estimated is told as it was."""
    from alignkit.run.fetch import audits

    known, _ = audits([one for one in small.sources.values() if issubclass(one.kind, Records)], place, offline)
    expected = {
        one["stage"]: one for one in preflight(small, {one.source: one for one in known}, place, offline).stages
    }
    estimated = {one["stage"]: one for one in needs.stages}
    return [
        _corrected(stage.name, stage.method, estimated.get(stage.name), expected.get(stage.name), _taken(stage.folder))
        for stage in result.stages
    ]


def _taken(folder: Path) -> dict[str, float]:
    facts = read_json(folder / rundir.STAGE)
    memory = facts["peak_memory"]
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"seconds": facts["seconds"], "memory": memory.get("gpu", memory["memory"]), "disk": disk}


def _corrected(
    stage: str,
    method: str,
    whole: Mapping[str, Any] | None,
    small: Mapping[str, Any] | None,
    taken: Mapping[str, float],
) -> dict[str, Any]:
    facts = {"stage": stage, "method": method, "measured": dict(taken)}
    if not whole or not small:
        return {**facts, **taken}
    right = {name: whole[name] * taken[name] / small[name] for name in ("seconds", "memory")}
    return {**facts, **right, "disk": max(whole["disk"], taken["disk"])}
