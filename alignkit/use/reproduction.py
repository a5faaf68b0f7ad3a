"""A kept run done again in another folder of results, and whether the same came of it."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.contract.events import Result
from alignkit.errors import RecipeError, StageError
from alignkit.plan.plan import Plan
from alignkit.recipe.packaged import is_packaged
from alignkit.show.run_diff import Circumstance, SourcePair, diff_runs
from alignkit.sources.lock_file import lock_path, write_lock
from alignkit.store.runs import KeptRun, KeptStage
from alignkit.text import number, table
from alignkit.use.run_rewards import plan_again

NEAR = 0.01
"""The share by which a figure without an interval may differ."""
ASIDE = ("recipe", "state", "host")
"""What is otherwise between two runs and has no influence."""
LEARNT = (".safetensors", ".jsonl")
"""Files that hold what a stage has made; others beside them name versions and folders."""


class RepeatedFigure(NamedTuple):
    """A figure and what it has become."""

    stage: str
    name: str
    was: float | None
    now: float | None
    within: str
    """What it is held against: `equal`, or the range that it may lie in."""
    same: bool


class RepeatedStage(NamedTuple):
    """A stage whose result was made again."""

    stage: str
    same: bool
    """Its weights, or rows, are the very same."""
    expected: bool
    """They should be: versions, kind of machine, data and what came before are the same."""


class Reproduction(NamedTuple):
    """What came of doing a run again."""

    stages: Sequence[RepeatedStage]
    figures: Sequence[RepeatedFigure]
    circumstances: Sequence[Circumstance]
    """Versions and facts of the machine that are otherwise."""
    sources: Sequence[SourcePair]
    """Those that hold something else."""

    @property
    def wrong(self) -> list[str]:
        """What did not come out as it should."""
        outside = [
            f"{one.stage}: {one.name} was {number(one.was)} and is {number(one.now)}, not within {one.within}"
            for one in self.figures
            if not one.same
        ]
        others = [
            f"{one.stage}: its weights are others, although versions, machine and data are the same"
            for one in self.stages
            if one.expected and not one.same
        ]
        return outside + others


def plan_reproduction(run: KeptRun, runs: Path) -> Plan:
    """Plan a kept run's recipe for another folder of results, as far as the run went, with what it was changed by.

    Raises RecipeError for a comparison, and where the folder is the run's own.
    """
    if run.comparison:
        raise RecipeError("a comparison is run again by its command", run.id, shlex.join(["alignkit", *run.arguments]))
    if runs.resolve() == run.runs:
        remedy = "name another folder with --runs"
        raise RecipeError("in its own folder of results all stages would be reused", str(runs), remedy)
    path, commits = Path(run.plan["path"]), _commits(run)
    if is_packaged(path) and commits and not lock_path(path, runs).exists():
        runs.mkdir(parents=True, exist_ok=True)
        write_lock(lock_path(path, runs), commits)
    plan, wanted = plan_again(run, runs), [stage.name for stage in run.stages if stage.wanted]
    same = [stage.name for stage in plan.stages if stage.wanted] == wanted
    return plan if same else plan_again(run, runs, until=wanted[-1])


def _commits(run: KeptRun) -> dict[str, str]:
    facts: Mapping[str, Mapping[str, str | None]] = run.plan["sources"]
    return {str(one["address"]): str(one["commit"]) for one in facts.values() if one["commit"]}


def compare_runs(run: KeptRun, again: KeptRun) -> Reproduction:
    """Compare what came of a run with what came of it again. Raises StageError where a stage was not made again."""
    found = diff_runs(run, again)
    circumstances = [one for one in found.circumstances if one.name not in ASIDE]
    sources = [one for one in found.sources if not one.same]
    pairs = [(stage, again.stage(stage.name)) for stage in run.stages if stage.wanted]
    for _, other in pairs:
        if not other.facts:
            raise StageError(f"stage {other.name!r} was not made again ({other.state})", again.id)
    stages = list[RepeatedStage]()
    for one, other in pairs:
        others = {stage.stage for stage in stages if not stage.same}
        alike = not sources and _made_on(one) == _made_on(other)
        taken = {name for names in one.inputs.values() for name in names}
        if one.facts or one.noted:
            expected = alike and not one.remade and not taken & others
            stages.append(RepeatedStage(one.name, _is_same(one, other), expected))
    return Reproduction(stages, [figure for pair in pairs for figure in _figures(*pair)], circumstances, sources)


def _is_same(one: KeptStage, other: KeptStage) -> bool:
    ours = _learnt(one)
    return ours == _learnt(other) if ours else one.noted.get("content") == other.noted.get("content")


def _learnt(stage: KeptStage) -> dict[str, str]:
    """Return the hashes of the files that hold what a stage has made; nothing where its folder is gone or remade."""
    files = {} if stage.remade or not stage.facts else stage.facts["artifact"]["files"]
    return {name: facts["sha256"] for name, facts in files.items() if name.endswith(LEARNT)}


def _made_on(stage: KeptStage) -> list[object]:
    """Return on what a stage was made: numbers are the same only where this is."""
    return [stage.facts.get(key) for key in ("versions", "device", "processes", "sharded")]


def _figures(one: KeptStage, other: KeptStage) -> Iterator[RepeatedFigure]:
    now = {result.name: result.after for result in other.results}
    for result in one.results:
        within, same = _within(result, now.get(result.name))
        yield RepeatedFigure(one.name, result.name, result.after, now.get(result.name), within, same)


def _within(result: Result, now: float | None) -> tuple[str, bool]:
    """Return what a figure is held against, and whether it holds."""
    was = result.after
    if was == now or (was is not None and now is not None and math.isnan(was) and math.isnan(now)):
        return "equal", True
    if was is None or now is None:
        return "equal", False
    if result.interval:
        low, high = result.interval
        return f"{number(low)} to {number(high)} (95 %)", low <= now <= high
    return f"{NEAR:.0%} of it", math.isclose(was, now, rel_tol=NEAR)


def as_dict(found: Reproduction) -> dict[str, Any]:
    """Return what came of doing a run again as plain JSON values."""
    return {
        "wrong": found.wrong,
        "figures": [one._asdict() for one in found.figures],
        "stages": [one._asdict() for one in found.stages],
        "circumstances": [one._asdict() for one in found.circumstances],
        "sources": [one._asdict() for one in found.sources],
    }


def show_reproduction(found: Reproduction, width: int | None) -> list[str]:
    """Return the lines that tell what came out again, and what was otherwise."""
    figures = [
        (one.stage, one.name, number(one.was), number(one.now), one.within if one.same else f"not {one.within}")
        for one in found.figures
    ]
    stages = [(one.stage, "the same" if one.same else "others") for one in found.stages]
    sources = [(one.source, one.a, one.b) for one in found.sources]
    blocks = [
        table(figures, width, ("stage", "figure", "was", "is", "within")),
        table(stages, width, ("stage", "weights or rows")),
        table(found.circumstances, width, ("otherwise", "was", "is")),
        table(sources, width, ("other data", "was", "is")),
    ]
    return [line for block in blocks if block for line in (*block, "")]
