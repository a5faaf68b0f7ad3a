"""Kept runs for people: all of them in a list, and one in detail."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from alignkit.contract.events import plain
from alignkit.show.by_round import as_plain, figures_by_round, table_by_round
from alignkit.show.metrics import achieved
from alignkit.store.rundir import SHORT
from alignkit.store.runs import KeptRun, KeptStage
from alignkit.text import duration, number, size, table

FIGURES = 3
"""Figures of a run that are shown where there are many runs."""


def list_runs(runs: Sequence[KeptRun], width: int | None) -> list[str]:
    """Return a line for each run."""
    now = datetime.now(UTC)
    rows = [(*run.id.split("/"), f"{age(run, now)} ago", run.state, *_made(run)) for run in runs]
    return table(rows, width, ("recipe", "run", "began", "state", "size", "methods", "figures"))


def _made(run: KeptRun) -> tuple[str, str, str]:
    return size(run.size), " ".join(run.methods.values()), key_figures(run)


def age(run: KeptRun, now: datetime) -> str:
    """Return how long ago a run began, in its largest unit."""
    seconds = max(0.0, (now - datetime.fromisoformat(run.began)).total_seconds())
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def key_figures(run: KeptRun) -> str:
    """Return what a run came to, in a line: how many figures are where they were expected, which variant is best, or
    the first figures of the last stage with any."""
    if figures := run.expected.get("figures"):
        return f"as expected: {sum(one['holds'] for one in figures)} of {len(figures)}"
    if run.comparison:
        return f"best: {run.comparison['best']}"
    told = [f"{result.name} {number(result.after)}" for result in run.last_results[:FIGURES]]
    return f"{run.last_results[0].stage}: {', '.join(told)}" if told else ""


def as_dict(run: KeptRun) -> dict[str, Any]:
    """Return what is kept of a run in short, as plain JSON values."""
    return {
        "id": run.id,
        "recipe": run.recipe,
        "began": run.began,
        "ended": run.ended,
        "state": run.state,
        "status": run.facts.get("status"),
        "problem": run.problem,
        "arguments": list(run.arguments),
        "methods": dict(run.methods),
        "results": [plain(result) for result in run.last_results],
        "bytes": run.size,
        "folder": str(run.folder),
    }


def in_detail(run: KeptRun) -> dict[str, Any]:
    """Return all that is kept of a run but what its stages' journals tell, as plain JSON values."""
    return {
        **as_dict(run),
        "seed": run.seed,
        "overrides": dict(run.overrides),
        "versions": run.facts.get("versions", {}),
        "machine": run.facts.get("machine", {}),
        "sources": [{**one._asdict(), **_counted(run, one.name)} for one in run.sources],
        "stages": [_stage_dict(stage) for stage in run.stages],
        "expected": dict(run.expected),
        "rounds": as_plain(figures_by_round(run)),
        "warnings": [plain(warning) for warning in run.warnings],
    }


def _stage_dict(stage: KeptStage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "method": stage.method,
        "state": stage.state,
        "folder": str(stage.folder) if stage.folder else None,
        "fingerprint": stage.fingerprint,
        "seed": stage.seed,
        "inputs": dict(stage.inputs),
        "settings": [{**setting._asdict(), "changed": setting.changed} for setting in stage.settings],
        "results": [plain(result) for result in stage.results],
    }


def _counted(run: KeptRun, source: str) -> dict[str, Any]:
    audit = run.audits.get(source, {})
    return {"rows": audit.get("rows"), "held_out": audit.get("held_out")}


def show_run(run: KeptRun, width: int | None) -> list[str]:
    """Return the lines of one run: how it went, its stages, what was changed, and what it read."""
    by_round = table_by_round(figures_by_round(run))
    blocks = [
        table(list(_course(run)), width),
        table([_stage_row(stage) for stage in run.stages], width, ("stage", "method", "state", "time", "results")),
        table(by_round[1:], width, by_round[0]) if by_round else [],
        table([("warning:", f"{one.stage}: {one.problem}; {one.remedy}") for one in run.warnings], width),
        table(_changed(run), width, ("stage", "setting", "value", "default")),
        table([source_row(run, one.name) for one in run.sources], width, SOURCE_HEAD),
    ]
    return [line for block in blocks if block for line in (*block, "")][:-1]


def _course(run: KeptRun) -> Iterator[tuple[str, str]]:
    yield "run", run.id
    yield "state", run.state
    yield "began", run.began
    if run.ended:
        seconds = datetime.fromisoformat(run.ended) - datetime.fromisoformat(run.began)
        yield "took", duration(seconds.total_seconds())
    if run.problem:
        yield "problem", run.problem
    if run.arguments:
        yield "command", " ".join(["alignkit", *run.arguments])
    yield "seed", str(run.seed)
    for key, value in run.overrides.items():
        yield "set", f"{key} = {value}"
    if run.facts:
        yield "machine", ", ".join(f"{name} {value}" for name, value in run.facts["machine"].items())
        yield "versions", ", ".join(f"{name} {value}" for name, value in run.facts["versions"].items())
    yield "report", str(run.report)


def _stage_row(stage: KeptStage) -> tuple[str, str, str, str, str]:
    seconds = duration(stage.noted["seconds"]) if stage.noted else ""
    return stage.name, stage.method, stage.state, seconds, "\n".join(map(achieved, stage.results))


def _changed(run: KeptRun) -> list[tuple[str, str, str, str]]:
    return [
        (stage.name, setting.key, setting.value, setting.default)
        for stage in run.stages
        if stage.wanted
        for setting in stage.settings
        if setting.changed
    ]


SOURCE_HEAD = ("source", "rows", "held out", "fingerprint", "from")


def source_row(run: KeptRun, name: str) -> tuple[str, str, str, str, str]:
    """Return a source's row: how many rows it has, where they were counted, and where it comes from."""
    source = next(one for one in run.sources if one.name == name)
    rows, held_out = ("" if count is None else str(count) for count in _counted(run, name).values())
    return name, rows, held_out, (source.fingerprint or "")[:SHORT], source.shown
