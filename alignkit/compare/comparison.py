"""Compare: run every variant under every seed, measure them side by side, and say what differs by more than noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.compare.measured import Comparison, Cost, read_comparison
from alignkit.compare.page import page_of
from alignkit.compare.planning import ComparisonPlan, plan_comparison
from alignkit.compare.tables import as_dict, comparison_of
from alignkit.compare.variants import VariantRequest
from alignkit.contract.kinds import Scores
from alignkit.plan.pin import pin
from alignkit.run.follow import Observer
from alignkit.run.machine import Machine
from alignkit.run.run_result import RunResult, StageResult
from alignkit.run.runner import notebook_views, run_plan
from alignkit.show.index_page import write_index
from alignkit.show.report import write_report
from alignkit.store import rundir
from alignkit.store.durable import read_json, write_json
from alignkit.store.runs import KeptRun


def compare_recipe(
    recipe: str | Path,
    *,
    stage: str | None = None,
    methods: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002  # the word of the command line
    seed: int | None = None,
    runs: str | Path = "runs",
    again: Sequence[str] = (),
    jobs: int = 1,
    inline: bool = False,
    offline: bool = False,
    machine: Machine | None = None,
    plugins: Sequence[str | Path] = (),
    observers: Sequence[Observer] = (),
) -> Comparison:
    """Compare methods or settings of one stage: `compare_recipe("rlhf.toml", methods=["ppo", "grpo"], seeds=3)`.

    `vary` is a grid, such as {"align.ppo.kl.coef": [0.05, 0.1]}; where neither stage, methods nor values are given, the
    recipe's `[compare]` says what is compared. What the variants share runs once; finished stages are
    reused; up to `jobs` stages run at the same time, where none waits for another. Raises RecipeError, DataError or
    PluginError before anything runs, and StageError where a stage fails.
    """
    asked = VariantRequest(stage, tuple(methods), vary or {}, seeds)
    planned = plan_pinned(recipe, asked, set=set, seed=seed, runs=runs, plugins=plugins, offline=offline)
    result = run_plan(
        planned.plan,
        runs=runs,
        observers=[*notebook_views(planned.plan), *observers],
        again=again,
        jobs=jobs,
        inline=inline,
        offline=offline,
        machine=machine,
        check=True,
    )
    return conclude(planned, result)


def plan_pinned(recipe: str | Path, asked: VariantRequest, *, offline: bool, **selection: Any) -> ComparisonPlan:
    """Plan a comparison; where a hub source has no commit yet, ask for it and plan again."""
    planned = plan_comparison(recipe, asked, **selection)
    if not any(stage.wanted and stage.fingerprint is None for stage in planned.plan.stages):
        return planned
    pin(planned.plan, Path(selection["runs"]), offline)
    return plan_comparison(recipe, asked, **selection)


def conclude(planned: ComparisonPlan, result: RunResult) -> Comparison:
    """Read what was measured, and write `comparison.json` and the report."""
    table = result.artifact(planned.scores)
    assert isinstance(table, Scores)
    costs = {stage.name: _cost(stage) for stage in result.stages}
    found = read_comparison(planned, result.folder, table.rows(), costs)
    write_json(rundir.comparison_path(result.folder), as_dict(found))
    kept = KeptRun(result.folder)
    report_comparison(kept)
    write_index(kept.runs)
    return found


def report_comparison(run: KeptRun) -> None:
    """Write the report of a kept comparison, from its files alone."""
    metrics = {stage.name: stage.metrics for stage in run.stages if stage.wanted}
    write_report(run, lead=page_of(comparison_of(run.comparison), metrics))


def _cost(stage: StageResult) -> Cost:
    peak = read_json(stage.folder / rundir.STAGE)["peak_memory"]
    return Cost(stage.seconds, peak.get("gpu", peak["memory"]))
