"""Benchmark: what policies reach on tasks of the LM evaluation harness (Gao et al. 2024, EleutherAI).

The harness is asked by its public `simple_evaluate`, with its own seeds and its own backend around the loaded model, so
that each figure is the one that its command gives for the saved model. The first policy is the start: each other one is
told beside it, before -> after. What alignment costs elsewhere so stands beside what it gains.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from alignkit import Method, Policy, Precision, RecipeError, Scores, Settings, Stage, hookimpl, method

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from lm_eval.tasks import TaskManager

Z = 1.96
"""Standard errors from a figure to either end of its 95 % interval."""
FIGURES = "figures.json"
"""What the policies have reached so far, in a checkpoint."""


class BenchmarkSettings(Settings):
    """Settings of `benchmark`."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks or groups of the harness by name; `lm-eval ls tasks` lists them."""
    include_path: str | None = None
    """A folder with tasks of your own, as the harness has them. Tasks whose rows lie in files need no connection."""
    num_fewshot: NonNegativeInt | None = None
    """Solved examples before each question. Unset: what the task says."""
    limit: PositiveInt | None = None
    """Questions of each task, at most; few make the intervals wide. Unset: all."""
    batch: PositiveInt = 8
    """Rows in a pass through the model; more is faster, as far as memory goes."""
    chat_template: bool = False
    """Ask in the policy's chat template; for policies that were trained on chats."""
    precision: Precision = "auto"
    """Arithmetic of the models."""
    content: str = Field(default="", validate_default=True)
    """Filled in: a hash of what `include_path` holds, so that a stage runs again when a task has changed."""

    @field_validator("content")
    @classmethod
    def hashed(cls, given: str, info: ValidationInfo) -> str:
        """Return the hash of the folder, whatever was given."""
        place = info.data.get("include_path")
        if not place:
            return ""
        folder, digest = Path(place), hashlib.sha256()
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Reached:
    """One figure of one policy."""

    value: float
    error: float | None
    """The standard error, as the harness estimates it."""
    rows: int | None
    higher_is_better: bool | None
    each: list[float] | None
    """Of each row, where the figure is their mean."""


@method("benchmark", results=("{figure} {policies}",))
def benchmark(settings: BenchmarkSettings, stage: Stage, *, policies: tuple[Policy, ...]) -> Scores:
    """Measure policies on tasks of the LM evaluation harness, the first one as the start of the others."""
    if stage.world > 1:
        raise RecipeError("benchmark runs in one process", f"stage {stage.name!r}", "run it without --on")
    reached = measured(settings, stage, policies)
    rows = [
        {"policy": policy.name, **{name: one.value for name, one in figures.items()}}
        for policy, figures in zip(policies, reached, strict=True)
    ]
    made = stage.save_rows(Scores, rows)
    start, *others = zip(policies, reached, strict=True)
    before = start[1] if others else {}
    for policy, figures in others or [start]:
        for name, after in figures.items():
            tell(stage, f"{name} {policy.name}", before.get(name), after)
    return made


def measured(settings: BenchmarkSettings, stage: Stage, policies: Sequence[Policy]) -> list[Mapping[str, Reached]]:
    """Return the figures of each policy by name; a checkpoint keeps those that are through."""
    manager = find_tasks(settings, stage)
    latest = stage.latest()
    kept = json.loads((latest / FIGURES).read_text("utf-8")) if latest else []
    reached: list[Mapping[str, Reached]] = [{name: Reached(**one) for name, one in figures.items()} for figures in kept]
    for number, policy in enumerate(policies[len(reached) :], start=len(reached) + 1):
        if stage.stopping:
            stage.leave()
        reached.append(dict(figures_of(run_harness(settings, policy, manager))))
        stage.log(number, len(policies), {name: one.value for name, one in reached[-1].items()})
        stage.commit(number, partial(write, reached))
    return reached


def write(reached: Sequence[Mapping[str, Reached]], folder: Path) -> None:
    """Keep what was reached so far."""
    found = [{name: asdict(one) for name, one in figures.items()} for figures in reached]
    (folder / FIGURES).write_text(json.dumps(found), "utf-8")


def find_tasks(settings: BenchmarkSettings, stage: Stage) -> TaskManager:
    """Return the harness's tasks. Raise RecipeError where one that is asked for is not among them."""
    from lm_eval.tasks import TaskManager

    if settings.include_path and not Path(settings.include_path).is_dir():
        raise RecipeError("benchmark.include_path is no folder", settings.include_path, "check the path")
    manager = TaskManager(include_path=settings.include_path)
    if unknown := [task for task in settings.tasks if not manager.match_tasks([task])]:
        remedy = "`lm-eval ls tasks` lists those of the harness; a folder of your own is benchmark.include_path"
        raise RecipeError(f"there is no task {unknown[0]!r}", f"stage {stage.name!r}: benchmark.tasks", remedy)
    return manager


def run_harness(settings: BenchmarkSettings, policy: Policy, manager: TaskManager) -> Mapping[str, Any]:
    """Return what the harness says of one policy, which is out of memory then."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from alignkit.kit import load_policy

    model, tokenizer = load_policy(policy, precision=settings.precision, trainable=False)
    found: Mapping[str, Any] = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch),
        tasks=list(settings.tasks),
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        apply_chat_template=settings.chat_template,
        task_manager=manager,
    )
    return found


def figures_of(found: Mapping[str, Any]) -> Iterator[tuple[str, Reached]]:
    """Yield each task's figures by name: `TASK/METRIC`, and the filter of the answers where there are several."""
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            each = rows_of(found.get("samples", {}).get(task, ()), metric, chosen)
            yield (
                f"{task}/{metric}" if chosen == "none" else f"{task}/{metric} {chosen}",
                Reached(
                    value=float(value),
                    error=float(error) if isinstance(error, int | float) else None,
                    rows=found["n-samples"].get(task, {}).get("effective"),
                    higher_is_better=found["higher_is_better"].get(task, {}).get(metric),
                    each=each if each and math.isclose(fmean(each), value, abs_tol=1e-6) else None,
                ),
            )


def rows_of(samples: Sequence[Mapping[str, Any]], metric: str, chosen: str) -> list[float]:
    """Return a metric of each row, in the order of the task's rows; nothing where it is none of single rows."""
    mine = sorted((one for one in samples if one["filter"] == chosen), key=lambda one: one["doc_id"])
    values = [float(value) for one in mine if isinstance(value := one.get(metric), int | float)]
    return values if len(values) == len(mine) else []


def tell(stage: Stage, name: str, before: Reached | None, after: Reached) -> None:
    """Report one figure with the interval that the harness's standard error gives, and its change row by row."""
    changes = [now - was for was, now in zip(before.each or (), after.each or (), strict=False)] if before else []
    error = stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else None
    stage.result(
        name,
        before.value if before else None,
        after.value,
        rows=after.rows,
        interval=around(after.value, after.error),
        change=around(fmean(changes), error) if changes else None,
        better="" if after.higher_is_better is None else "higher" if after.higher_is_better else "lower",
    )


def around(value: float, error: float | None) -> tuple[float, float] | None:
    """Return the 95 % interval around a value; None where its standard error is not known."""
    return None if error is None else (value - Z * error, value + Z * error)


@hookimpl
def alignkit_methods() -> list[Method]:
    return [benchmark]
