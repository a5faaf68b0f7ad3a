"""A run's events as its folder has them: written while it runs, and followed by whoever watches from elsewhere."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from alignkit.contract.events import Event, from_json, to_json
from alignkit.errors import StageError
from alignkit.store import rundir
from alignkit.store.journal import finite
from alignkit.store.runs import KeptRun

POLL = 0.2
"""Seconds between two looks at a run."""


class Dated(NamedTuple):
    """An event, and when it was told."""

    at: float
    """In seconds, as `time.time` has them."""
    event: Event


class EventLog:
    """Appends each event to a file of the run's folder."""

    def __init__(self, run: Path) -> None:
        self._file = run / rundir.EVENTS

    def __call__(self, event: Event) -> None:
        """Write an event as a line; numbers that JSON does not have become null."""
        line = json.dumps({"at": time.time(), **finite(to_json(event))}, ensure_ascii=False)
        with self._file.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")


class RunClock:
    """Shows the time of what is told last, else that of this machine."""

    def __init__(self) -> None:
        self._at: float | None = None

    def __call__(self) -> float:
        return time.time() if self._at is None else self._at

    @contextmanager
    def at(self, seconds: float) -> Iterator[None]:
        """Stand still at a time."""
        self._at = seconds
        try:
            yield
        finally:
            self._at = None


def followed(run: Path) -> Iterator[Dated]:
    """Yield the events of a run, those that were told before first, until it ends, however it does."""
    read = 0
    over = False
    while not over:
        over = KeptRun(run).state != "running"  # before the last look, so that nothing is missed
        text = _unread(run / rundir.EVENTS, read)
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be half-written
        read += len(whole)
        for line in whole.splitlines():
            if dated := _read(line):
                yield dated
        if not over:
            time.sleep(POLL)


def _unread(file: Path, read: int) -> bytes:
    try:
        with file.open("rb") as lines:
            lines.seek(read)
            return lines.read()
    except FileNotFoundError:
        return b""


def check_end(run: KeptRun) -> None:
    """Raise StageError with its exit status where a run ended without its result."""
    if run.state == "died":
        remedy = "the command that began it goes on from here"
        raise StageError("the run died: its process is gone", str(run.folder), remedy)
    if run.state != "finished":
        error = StageError(run.problem or run.state)
        error.status = int(run.facts.get("status", error.status))
        raise error


def _read(line: bytes) -> Dated | None:
    """Read a line; None where it is damaged, or of another version."""
    try:
        facts = json.loads(line)
        at = float(facts.pop("at"))
        if "values" in facts:
            facts["values"] = {key: math.nan if one is None else one for key, one in facts["values"].items()}
        return Dated(at, from_json(facts))
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
