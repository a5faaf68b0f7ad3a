"""Kept runs: what was asked, what became of it and what its stages told, read from files alone.

A run's folder says what was asked and how the run ended; its stages' folders say what came of each. Nothing here needs
torch, a plugin or the recipe.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from alignkit.contract.events import Event, Metrics, Result, Rows, Sample, Warned, result_of
from alignkit.contract.kinds import Artifact, kinds_by_name
from alignkit.errors import LockedError, RecipeError, StageError
from alignkit.store import rundir
from alignkit.store.durable import read_json
from alignkit.store.heartbeat import Heartbeat, this_system
from alignkit.store.journal import read_journal
from alignkit.store.results import latest, read_finished, told_facts

if TYPE_CHECKING:
    from pandas import DataFrame

EARLIER = "earlier"
"""What the run is called whose files lie in its recipe's own folder, as those of versions before did."""

CLOCK = 60.0
"""Seconds by which two readings of when a process began may differ."""


class KeptSetting(NamedTuple):
    """A setting of a stage as it was, with its value and its default as TOML would have them."""

    key: str
    value: str
    default: str
    summary: str

    @property
    def changed(self) -> bool:
        return self.value != self.default


class KeptRound(NamedTuple):
    """Which round of which stage of the recipe a stage was."""

    stage: str
    number: int
    """From 1."""
    of: int


class KeptSource(NamedTuple):
    """A source of a run."""

    name: str
    kind: str
    shown: str
    """Where it comes from, in words."""
    fingerprint: str | None


@dataclass(frozen=True)
class KeptStage:
    """A stage of a kept run: what was planned, and what its folder tells."""

    name: str
    planned: Mapping[str, Any]
    """What `plan.json` says of it."""
    noted: Mapping[str, Any]
    """What `run.json` says of it; empty where the run did not come so far."""
    runs: Path

    @property
    def method(self) -> str:
        return str(self.planned["method"])

    @property
    def summary(self) -> str:
        """What its method does."""
        return str(self.planned.get("summary", ""))

    @property
    def origin(self) -> str:
        """Which package offers its method."""
        return str(self.planned["from"])

    @property
    def makes(self) -> str:
        """The kind of its artifact."""
        return str(self.planned["makes"])

    @property
    def wanted(self) -> bool:
        return bool(self.planned["wanted"])

    @property
    def fingerprint(self) -> str | None:
        """None where the commit of a source was not known."""
        found: str | None = self.planned["fingerprint"]
        return found

    @property
    def seed(self) -> int:
        return int(self.planned["seed"])

    @property
    def round(self) -> KeptRound | None:
        """Which round it was; None where the recipe does not repeat it."""
        told = self.planned.get("round")
        return KeptRound(**told) if told else None

    @property
    def inputs(self) -> Mapping[str, Sequence[str]]:
        """Role -> the sources and stages that it takes."""
        return dict(self.planned["inputs"])

    @property
    def standing_by(self) -> Sequence[str]:
        """Settings, roles and gates that only another method of this stage has."""
        return list(self.planned["standing_by"])

    @property
    def gates(self) -> Mapping[str, Mapping[str, float]]:
        """Result -> {"min": x, "max": y}."""
        return dict(self.planned["gates"])

    @property
    def bounds(self) -> Mapping[str, float]:
        """Metric -> the bound that a constraint sets it."""
        table = self.planned.get("constraints", {})
        return {f"cost/{name}": one["max"] if one["min"] is None else one["min"] for name, one in table.items()}

    @cached_property
    def settings(self) -> tuple[KeptSetting, ...]:
        return tuple(KeptSetting(**one) for one in self.planned.get("described", ()))

    @cached_property
    def folder(self) -> Path | None:
        """Where it lies, finished or not; None where it does not."""
        if not self.wanted or self.fingerprint is None:
            return None
        working = rundir.partial_folder(self.runs, self.name, self.fingerprint)
        finished = rundir.stage_folder(self.runs, self.name, self.fingerprint)
        return next((folder for folder in (finished, working) if folder.is_dir()), None)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What its `stage.json` says; empty while it is not finished."""
        return told_facts(self.folder) if self.folder else {}

    @cached_property
    def events(self) -> Sequence[Event]:
        """What it has told so far."""
        return read_journal(self.name, self.folder) if self.folder else []

    @property
    def remade(self) -> bool:
        """Another run has made it again since, and it came out otherwise."""
        return bool(self.noted and self.facts) and self.noted["content"] != self.facts["artifact"]["content"]

    @property
    def results(self) -> tuple[Result, ...]:
        """What it achieved in this run."""
        if self.noted and (self.remade or not self.facts):
            return tuple(map(result_of, self.noted["results"]))
        return latest(event for event in self.events if isinstance(event, Result))

    @property
    def metrics(self) -> list[Metrics]:
        """Figures of its steps."""
        return [event for event in self.events if isinstance(event, Metrics)]

    @property
    def rows(self) -> Mapping[str, Sequence[float]]:
        """What was measured of each held-out row, a column for each measure."""
        told = [event.columns for event in self.events if isinstance(event, Rows)]
        return {name: values for columns in told for name, values in columns.items()}

    @property
    def samples(self) -> list[Mapping[str, str | float]]:
        """Rows that it showed."""
        return [event.row for event in self.events if isinstance(event, Sample)]

    @property
    def warnings(self) -> list[Warned]:
        return [event for event in self.events if isinstance(event, Warned)]

    def artifact(self, load: Callable[[], object]) -> Artifact:
        """Return what it made; `load` is called where a plugin must define its kind.

        Raises StageError where it is not finished, damaged, or has been made again and came out otherwise.
        """
        where = f"stage {self.name!r}"
        if not self.facts or self.remade or self.folder is None:
            raise StageError(f"its artifact is not there ({self.state})", where, "run the recipe again")
        finished = read_finished(self.folder)
        finished.check()
        if finished.made not in kinds_by_name():
            load()
        return finished.artifact

    @property
    def state(self) -> str:
        """What became of it, in a word or two."""
        if not self.wanted:
            return "not needed"
        if self.facts:
            state = "reused" if self.noted.get("reused") else "finished"
            return f"{state}, made again since" if self.remade else state
        if self.folder is None:
            return "finished, removed since" if self.noted else "not begun"
        return "not finished" if self.folder.suffix == ".partial" else "damaged"


@dataclass(frozen=True)
class KeptRun:
    """A run as its folder tells it. Each file is read when it is first asked for."""

    folder: Path
    load_plugins: Callable[[Sequence[Path]], object] = tuple
    """Loads installed plugins and these files, where an artifact needs one; `tuple` loads nothing."""

    @property
    def id(self) -> str:
        """Its recipe and its folder, by which commands name it."""
        if rundir.TIMED.fullmatch(self.folder.name):
            return f"{self.folder.parent.name}/{self.folder.name}"
        return f"{self.folder.name}/{EARLIER}"

    @property
    def runs(self) -> Path:
        """Under which folder of results it is kept."""
        return rundir.runs_around(self.folder)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What `run.json` says; versions before wrote none."""
        return read_json(self.folder / rundir.RUN)

    @cached_property
    def plan(self) -> Mapping[str, Any]:
        """What `plan.json` says."""
        return read_json(self.folder / rundir.PLAN)

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """What was found in its sources, as `data.json` says it."""
        return read_json(self.folder / rundir.DATA)

    @cached_property
    def comparison(self) -> Mapping[str, Any]:
        """What it has compared; empty where it is no comparison, or not through."""
        return read_json(rundir.comparison_path(self.folder))

    @cached_property
    def expected(self) -> Mapping[str, Any]:
        """Which figures were expected of it, and what they are; empty where nothing was, or nobody looked."""
        return read_json(rundir.expected_path(self.folder))

    @property
    def report(self) -> Path:
        """Where its report lies."""
        return rundir.report_path(self.folder)

    @property
    def recipe(self) -> str:
        """The name of its recipe."""
        return self.id.partition("/")[0]

    @property
    def recipe_file(self) -> str:
        """The name of the file that the recipe was read from."""
        return Path(self.plan.get("path", "")).name

    @cached_property
    def recipe_text(self) -> str:
        """The recipe as it was."""
        file = self.folder / rundir.RECIPE
        return file.read_text("utf-8") if file.is_file() else ""

    @property
    def seed(self) -> int:
        return int(self.plan.get("seed", 0))

    @property
    def overrides(self) -> Mapping[str, Any]:
        """What was changed by `--set`, by dotted key."""
        return dict(self.plan.get("overrides", {}))

    @property
    def arguments(self) -> Sequence[str]:
        """Of the command that began it; empty where a script did."""
        return list(self.facts.get("arguments", ()))

    @property
    def began(self) -> str:
        """When it began, as ISO 8601 has it."""
        if self.facts:
            return str(self.facts["began"])
        written = next(path for path in (self.folder / rundir.RECIPE, self.folder) if path.exists())
        return datetime.fromtimestamp(written.stat().st_mtime, UTC).isoformat(timespec="seconds")

    @property
    def ended(self) -> str | None:
        """When it ended; None where it has not, or nothing tells."""
        return self.facts.get("ended")

    @property
    def problem(self) -> str:
        """Why it ended early; empty where it did not."""
        return str(self.facts.get("problem", ""))

    @property
    def state(self) -> str:
        """`running`, `finished`, `failed`, `stopped` (by a signal), or `died`: its process is gone without a word."""
        if not self.facts:
            whole = all(stage.facts for stage in self.stages if stage.wanted)
            return "finished" if whole else "stopped"
        if self.facts["state"] == "running" and not _alive(self.facts["process"], self.folder / rundir.RUN):
            return "died"
        return str(self.facts["state"])

    @property
    def methods(self) -> Mapping[str, str]:
        """The method of each stage that is wanted, in order."""
        told: Mapping[str, str] | None = self.facts.get("methods")
        return told or {stage.name: stage.method for stage in self.stages if stage.wanted}

    @property
    def last_results(self) -> tuple[Result, ...]:
        """What the last stage achieved that is through and told a result."""
        if not self.facts:
            return next((stage.results for stage in reversed(self.stages) if stage.results), ())
        told = [noted["results"] for noted in self.facts["stages"].values() if noted["results"]]
        return tuple(map(result_of, told[-1])) if told else ()

    @property
    def size(self) -> int:
        """Bytes of what its stages made; a stage of several runs counts in each of them."""
        if not self.facts:
            made = [stage.facts["artifact"]["files"] for stage in self.stages if stage.facts]
            return sum(file["bytes"] for files in made for file in files.values())
        return sum(noted["bytes"] for noted in self.facts["stages"].values())

    @cached_property
    def sources(self) -> tuple[KeptSource, ...]:
        return tuple(
            KeptSource(name, one["kind"], one.get("shown", one["address"]), one["fingerprint"])
            for name, one in self.plan.get("sources", {}).items()
        )

    @cached_property
    def stages(self) -> tuple[KeptStage, ...]:
        """Its stages in order, wanted or not."""
        noted = self.facts.get("stages", {})
        return tuple(
            KeptStage(name, planned, noted.get(name, {}), self.runs)
            for name, planned in self.plan.get("stages", {}).items()
        )

    @property
    def made_of(self) -> str:
        """A hash of what decides what comes of it, but for the seed."""
        return str(self.facts.get("made_of") or hash_but_seed(self.plan))

    @property
    def other_seeds(self) -> list["KeptRun"]:
        """The finished runs of the same recipe that differ from it by their seed alone, one for each seed."""
        others = [KeptRun(folder) for folder in rundir.run_folders(self.folder.parent) if folder != self.folder]
        same = [one for one in others if one.made_of == self.made_of and one.state == "finished"]
        by_seed = {one.seed: one for one in same if one.seed != self.seed}
        return list(by_seed.values())

    @property
    def audits(self) -> Mapping[str, Mapping[str, Any]]:
        """What is in the sources of rows that were looked at, by name."""
        return dict(self.data.get("audits", {}))

    @property
    def previews(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """What each stage gets of each source of rows, as far as that was counted."""
        return dict(self.data.get("previews", {}))

    @property
    def mixes(self) -> Mapping[str, str]:
        """Stage -> what it reads of the sources that it mixes, in words."""
        return dict(self.data.get("mixes", {}))

    def stage(self, name: str) -> KeptStage:
        """Return one of its stages; the name of one that repeats means its last round.

        Raises StageError where it has none of that name.
        """
        return stage_called(self.last_round(name), self.stages)

    def last_round(self, name: str) -> str:
        """Return the stage that a name means: of one that repeats, its last round."""
        rounds = ((stage.name, stage.round) for stage in self.stages)
        return next((last for last, one in rounds if one and one.stage == name and one.number == one.of), name)

    def artifact(self, name: str) -> Artifact:
        """Return what a stage made, as `load_policy` takes it. Raises StageError where that is not there."""
        files = [Path(file) for file in self.plan["plugin_files"]]
        return self.stage(name).artifact(lambda: self.load_plugins(files))

    @property
    def figures(self) -> "DataFrame":
        """What each stage achieved: a row for each result; `low` and `high` are the ends of its 95 % interval."""
        from pandas import DataFrame

        columns = ["stage", "method", "name", "before", "after", "low", "high", "floor", "rows"]
        rows = [_figure(stage, result) for stage in self.stages for result in stage.results]
        return DataFrame(rows, columns=columns)

    def metrics(self, name: str) -> "DataFrame":
        """Return the figures of a stage's steps: a row for each step, a column for each metric and for the seconds."""
        from pandas import DataFrame, Index

        told = self.stage(name).metrics
        rows = [{**event.values, "seconds": event.seconds} for event in told]
        return DataFrame(rows, index=Index([event.step for event in told], name="step"))

    def samples(self, name: str) -> "DataFrame":
        """Return the rows that a stage showed."""
        from pandas import DataFrame

        return DataFrame(self.stage(name).samples)

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """What a person should act on, stage by stage."""
        return tuple(warning for stage in self.stages for warning in stage.warnings)


class Named(Protocol):
    """Whatever has a name."""

    @property
    def name(self) -> str: ...


NamedT = TypeVar("NamedT", bound=Named)


def stage_called(name: str, stages: Sequence[NamedT]) -> NamedT:
    """Return the stage of a run that has this name. Raises StageError where none has."""
    for stage in stages:
        if stage.name == name:
            return stage
    raise StageError(f"this run has no stage {name!r}", remedy=f"it has {', '.join(stage.name for stage in stages)}")


def _figure(stage: KeptStage, result: Result) -> dict[str, Any]:
    low, high = result.interval or (None, None)
    return {**asdict(result), "method": stage.method, "low": low, "high": high}


def hash_but_seed(plan: Mapping[str, Any]) -> str:
    """Return a hash of a kept plan's stages with their settings, and of what its sources hold."""
    keys = ("method", "settings", "inputs", "wanted")
    stages = {name: [one.get(key) for key in keys] for name, one in plan.get("stages", {}).items()}
    sources = {name: one["fingerprint"] for name, one in plan.get("sources", {}).items()}
    return hashlib.sha256(json.dumps([stages, sources], sort_keys=True).encode()).hexdigest()


def _alive(process: Mapping[str, Any], beats: Path) -> bool:
    """Return whether a process runs; of another machine, whether it has been heard of by its file."""
    import psutil  # here, since only what says that it runs needs it

    heartbeat = Heartbeat()
    if process.get("system") != heartbeat.system:
        return not heartbeat.is_lost(beats)
    try:
        found = psutil.Process(process["pid"])
        same = abs(found.create_time() - process["began"]) < CLOCK
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others, also from a later one of the same number."""
    import psutil

    here = {"pid": os.getpid(), "host": socket.gethostname(), "system": this_system()}
    return {**here, "began": psutil.Process().create_time()}


def open_run(path: str | Path) -> KeptRun:
    """Open a kept run: its folder, its report, or the folder of a recipe, for the run of it that began last.

    Raises RecipeError where there is none.
    """
    place = Path(path).resolve()
    folder = place.parent if place.name == rundir.REPORT else place
    if not (folder / rundir.RUN).is_file() and place == folder:
        folder = rundir.latest_run(folder) or folder
    if not any((folder / name).is_file() for name in (rundir.RUN, rundir.PLAN)):
        raise RecipeError("no run is kept here", str(path), "name the folder of a run, or of a recipe under runs/")
    return KeptRun(folder)


def kept_runs(runs: Path) -> list[KeptRun]:
    """Return all runs that are kept, the first first."""
    folders = (folder for recipe in rundir.recipe_folders(runs.resolve()) for folder in rundir.run_folders(recipe))
    return sorted(map(KeptRun, folders), key=lambda run: run.began)


def find_run(name: str, runs: Path) -> KeptRun:
    """Find a run under `runs` by its recipe (the last run of it) or by a beginning of its id, with or without the
    recipe, or anywhere by its path; of an empty name the one that began last.

    Raises RecipeError where there is none, or several.
    """
    kept = kept_runs(runs)
    if not name and not kept:
        raise RecipeError("no run is kept here", str(runs), "run a recipe first, or name another folder with --runs")
    recipe = rundir.recipe_folder(runs.resolve(), name.removesuffix(f"/{rundir.LATEST}"))
    if name and recipe in rundir.recipe_folders(runs.resolve()) and (folder := rundir.latest_run(recipe)):
        return KeptRun(folder)
    exact = [run for run in kept if name in (run.id, run.folder.name)]
    found = exact or [run for run in kept if run.id.startswith(name) or run.folder.name.startswith(name)]
    if len(found) > 1 and name:
        raise RecipeError(f"{len(found)} runs begin so", name, f"write more of it: {found[-1].id}")
    if found:
        return found[-1]
    if Path(name).exists():
        return open_run(name)
    raise RecipeError("no run is called so", name, f"`alignkit runs` lists those in {runs}")


def remove_run(run: KeptRun) -> None:
    """Remove what is kept of a run, and let `latest` name the one before; its stages stay.

    Raises LockedError where it runs.
    """
    if run.state == "running":
        process = run.facts["process"]
        problem = f"process {process['pid']} on {process['host']} runs it"
        raise LockedError(problem, run.id, "wait for it, or stop it")
    rundir.remove_run(run.folder)
