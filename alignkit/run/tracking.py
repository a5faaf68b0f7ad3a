"""Sending a run's figures to trackers, each in a thread of its own: whatever a tracker does, the run goes on."""

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import Full, Queue
from types import TracebackType
from typing import Any, NoReturn

from alignkit.contract.events import Event, Metrics, Sample, StageFinished, Warned
from alignkit.contract.tracker import TrackedRun, Tracker, TrackerFunction
from alignkit.errors import one_line
from alignkit.plan.plan import Plan
from alignkit.run.follow import Observer
from alignkit.run.keeping import end_of
from alignkit.store import rundir
from alignkit.store.durable import read_json, write_json
from alignkit.store.runs import KeptRun

LONGEST = 10_000
"""Events that may wait for a tracker."""
PATIENCE = 120.0
"""Seconds that a tracker may take for one call; a server that is asked for a run may be slow."""
NOTED_EVERY = 1.0
"""Seconds between two notes of what a tracker has taken; a run that is killed may repeat so much of it."""
LAST = 10.0
"""Seconds that all trackers together have at the end of a run."""


class TrackerThread:
    """Sends a run's figures to one tracker: an observer, which fails where its tracker does.

    Steps that the tracker has had, from an attempt that was interrupted, are passed over.
    """

    def __init__(self, tracker: TrackerFunction, run: TrackedRun, taken: Path) -> None:
        """Begin; `taken` is the file of what the tracker has had."""
        self.__name__ = f"tracker {tracker.name}"
        self._function, self._run, self._taken = tracker, run, taken
        had = read_json(taken)
        self._steps: dict[str, int] = had.get("steps", {})
        self._finished: list[str] = had.get("finished", [])
        self._samples: dict[str, list[Mapping[str, str | float]]] = {}
        self._waiting: Queue[Event | str] = Queue(LONGEST)
        self._busy_since, self._note_again = math.inf, 0.0
        self._error: BaseException | None = None
        self._left_out = False
        self._thread = threading.Thread(target=self._work, name=self.__name__, daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Put an event on the way. Raise what the tracker has raised, or TimeoutError where it does not keep up."""
        if isinstance(event, Metrics | Sample | StageFinished):
            self._put(event)

    def end(self, state: str, until: float) -> None:
        """Wait for the tracker to take the rest. Raise what it raises, or TimeoutError where it takes longer."""
        if self._left_out:
            return
        self._put(state)
        self._thread.join(max(0.0, until - time.monotonic()))
        self._check()
        if self._thread.is_alive():
            self._give_up(TimeoutError(f"it had not taken all figures {LAST:g} s after the end of the run"))

    def _put(self, what: Event | str) -> None:
        self._check()
        try:
            self._waiting.put_nowait(what)
        except Full:
            self._give_up(TimeoutError(f"{LONGEST} figures and samples wait for it"))

    def _check(self) -> None:
        if self._error:
            self._give_up(self._error)
        if time.monotonic() - self._busy_since > PATIENCE:
            self._give_up(TimeoutError(f"it has not answered for {PATIENCE:g} s"))

    def _give_up(self, error: BaseException) -> NoReturn:
        self._left_out = True
        raise error

    def _work(self) -> None:
        """Take one event after another, until the end of the run."""
        try:
            self._busy_since = time.monotonic()
            tracker = self._function.open(self._run)
            while not isinstance(what := self._next(), str):
                self._pass_on(tracker, what)
            self._note()
            tracker.finish(what)
        except BaseException as error:  # SystemExit of a library among them
            self._error = error

    def _next(self) -> Event | str:
        self._busy_since = math.inf
        what = self._waiting.get()
        self._busy_since = time.monotonic()
        return "stopped" if self._left_out else what

    def _pass_on(self, tracker: Tracker, event: Event) -> None:
        stage, last = event.stage, self._steps.get(event.stage, 0)
        if isinstance(event, Sample):
            self._samples.setdefault(stage, []).append(event.row)
        elif isinstance(event, Metrics) and event.step > last:
            tracker.log(stage, event.step, _named(stage, event.values))
            self._steps[stage] = event.step
            if time.monotonic() >= self._note_again:
                self._note()
        elif isinstance(event, StageFinished) and stage not in self._finished:
            if figures := _results(event):
                tracker.log(stage, last, figures)
            if rows := self._samples.pop(stage, ()):
                names = dict.fromkeys(name for row in rows for name in row)
                tracker.show(stage, {name: [row.get(name) for row in rows] for name in names})
            self._finished.append(stage)

    def _note(self) -> None:
        write_json(self._taken, {"steps": self._steps, "finished": self._finished})
        self._note_again = time.monotonic() + NOTED_EVERY


def _named(stage: str, values: Mapping[str, float | None]) -> dict[str, float]:
    """Return figures by `STAGE/METRIC`; what was no number is not there."""
    return {f"{stage}/{name}": value for name, value in values.items() if value is not None}


def _results(event: StageFinished) -> dict[str, float]:
    ends = [(f"{result.name}/{end}", getattr(result, end)) for result in event.results for end in ("before", "after")]
    return _named(event.stage, dict(ends))


def start_trackers(plan: Plan, run: Path, offline: bool) -> list[TrackerThread]:
    """Start the trackers that a plan names; they go on with those of an earlier run that was interrupted."""
    first = first_attempt(run) if plan.trackers else run
    settings = dict(_settings(plan))
    threads = []
    for tracker in plan.trackers:
        folder, taken = rundir.tracker_folder(first, tracker.name), rundir.tracked_path(first, tracker.name)
        folder.mkdir(parents=True, exist_ok=True)
        told = TrackedRun(plan.recipe.name, first.name, taken.is_file(), settings, folder, offline)
        threads.append(TrackerThread(tracker, told, taken))
    return threads


def end_trackers(
    threads: Sequence[TrackerThread],
    stage: str,
    tell: Observer,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """End all trackers, as an exit of a `with` block; warn of each that fails, or does not end in time."""
    until = time.monotonic() + LAST
    for thread in threads:
        try:
            thread.end(end_of(error)[0], until)
        except (Exception, SystemExit) as failure:
            problem = f"the {thread.__name__} failed at the end of the run ({one_line(failure)})"
            tell(Warned(stage, problem, "figures may be missing there; the report has all of them"))


def first_attempt(run: Path) -> Path:
    """Return the folder of the run that was interrupted and that this one goes on with: the first of several
    attempts at the same stages, itself where there was none."""
    wanted, first = _stages(run), run
    for other in reversed([folder for folder in rundir.run_folders(run.parent) if folder.name < run.name]):
        if _stages(other) != wanted:
            continue
        if KeptRun(other).state == "finished":
            break
        first = other
    return first


def _stages(run: Path) -> Mapping[str, str | None]:
    return {stage.name: stage.fingerprint for stage in KeptRun(run).stages if stage.wanted}


def _settings(plan: Plan) -> Iterator[tuple[str, Any]]:
    yield "seed", plan.recipe.seed
    for stage in plan.stages:
        if stage.wanted:
            given = {"method": stage.method.name, "seed": stage.seed, **stage.settings.model_dump(mode="json")}
            yield from ((f"{stage.name}/{key}", value) for key, value in _flat(given))


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, str | int | float | bool | None]]:
    """Yield the values of nested tables by dotted keys; a list as its text."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", one) for inner, one in _flat(value))
        else:
            yield key, value if value is None or isinstance(value, str | int | float) else json.dumps(value)
