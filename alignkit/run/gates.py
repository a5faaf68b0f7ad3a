"""Gates: bounds of a stage's figures that a recipe sets, held before the next stage wastes anything."""

import math
from collections.abc import Iterator
from pathlib import Path

from alignkit.contract.events import Result
from alignkit.errors import StageError
from alignkit.noise import Interval
from alignkit.plan.plan import PlannedStage
from alignkit.store.results import Finished
from alignkit.text import short


class GateError(StageError):
    """A figure is outside its gate, where the same command would find it again."""


def check_gates(stage: PlannedStage, made: Finished) -> None:
    """Raise GateError where a figure is outside its gate."""
    where, results = f"stage {stage.name!r}", {result.name: result for result in made.results}
    for name, (low, high) in gates_of(stage).items():
        result = results.get(name)
        if result is None or result.after is None:
            known = ", ".join(results) or "none"
            raise GateError(f"gates.{name}: the stage gives no such result", where, f"its results are {known}")
        if not low <= result.after <= high:
            bound = f"below its minimum {low:g}" if result.after < low else f"above its maximum {high:g}"
            problem = f"gates.{name}: {result.after:g}{_around(result)} is {bound}"
            place = short(made.folder, Path.cwd())
            raise GateError(problem, where, f"improve the stage or move the gate; it lies in {place}")


def doubts(stage: PlannedStage, made: Finished) -> Iterator[tuple[str, str]]:
    """Yield a problem and its remedy for each figure that passes its gate by less than other rows might move it."""
    results = {result.name: result for result in made.results}
    for name, bounds in gates_of(stage).items():
        result = results.get(name)
        if result is None or result.after is None or result.interval is None:
            continue
        passed = bounds[0] <= result.after <= bounds[1]
        if passed and any(result.interval[0] < bound < result.interval[1] for bound in bounds):
            told = f"{name} {result.after:g}{_around(result)} passes its gate by less than other rows might move it"
            yield told, f"measure on more rows than {result.rows}, or move the gate"


def gates_of(stage: PlannedStage) -> dict[str, Interval]:
    """Return the lowest and the highest value that each gated figure may have."""
    return {name: (bounds.get("min", -math.inf), bounds.get("max", math.inf)) for name, bounds in stage.gates.items()}


def _around(result: Result) -> str:
    return "" if result.interval is None else f" (95 % {result.interval[0]:.3g} to {result.interval[1]:.3g})"
