"""Trackers that need no library: one that writes what it is told into a file, and some that fail or hang."""

import json
import time
from collections.abc import Mapping, Sequence

from alignkit import TrackedRun, TrackerFunction, hookimpl, tracker


class Notebook:
    """Writes a line for each call."""

    def __init__(self, run: TrackedRun) -> None:
        self._file = run.folder / "notes.jsonl"
        self._write("open", run.id, run.resumed, dict(run.settings))

    def _write(self, *words: object) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(words) + "\n")

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self._write("log", step, figures)

    def show(self, stage: str, samples: Mapping[str, Sequence[str | float | None]]) -> None:
        self._write("show", stage, samples)

    def finish(self, state: str) -> None:
        self._write("finish", state)


class Sleeper(Notebook):
    """Sleeps at each step."""

    seconds = 1000.0

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        time.sleep(self.seconds)


class Slow(Sleeper):
    """Sleeps for a short time."""

    seconds = 0.5


class Liar(Notebook):
    """Fails at the second step."""

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        if step == 2:
            raise SystemExit("no server")


@tracker("notebook")
def notebook(run: TrackedRun) -> Notebook:
    """Write what it is told into a file."""
    return Notebook(run)


@tracker("sleeper")
def sleeper(run: TrackedRun) -> Sleeper:
    """Sleep."""
    return Sleeper(run)


@tracker("slow")
def slow(run: TrackedRun) -> Slow:
    """Be slow."""
    return Slow(run)


@tracker("liar")
def liar(run: TrackedRun) -> Liar:
    """Fail."""
    return Liar(run)


@hookimpl
def alignkit_trackers() -> list[TrackerFunction]:
    return [notebook, sleeper, slow, liar]
