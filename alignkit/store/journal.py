"""A stage's journal: what it tells while it runs, in `metrics.jsonl` and `events.jsonl`, written and followed.

The files are the only channel between a stage and whoever watches it. Each line has a number `n`, counted over both
files, so that a reader of the two can tell them in one order.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alignkit.contract.events import Event, Metrics, from_json, to_json

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"


class Journal:
    """The writing end. `heard` is told each event as well, where somebody listens in the same process."""

    def __init__(self, folder: Path, marks: Mapping[str, int], heard: Callable[[Event], None] | None = None) -> None:
        """Go on after the given marks (file -> bytes): what was written later belongs to steps that will be redone."""
        self._files: dict[str, int] = {}
        self._heard = heard
        self.lines = 0
        for name in (METRICS, EVENTS):
            descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(descriptor, min(marks.get(name, 0), os.fstat(descriptor).st_size))
            self.lines += (folder / name).read_bytes().count(b"\n")
            self._files[name] = descriptor

    def tell(self, event: Event) -> None:
        """Append one event as one line."""
        if isinstance(event, Metrics):
            facts = {"step": event.step, "of": event.of, "values": _finite(event.values), "seconds": event.seconds}
            self._append(METRICS, facts)
        else:
            self._append(EVENTS, _finite({k: v for k, v in to_json(event).items() if k != "stage"}))
        if self._heard:
            self._heard(event)

    def _append(self, name: str, facts: Mapping[str, Any]) -> None:
        line = json.dumps({"n": self.lines, **facts}, ensure_ascii=False, allow_nan=False)
        os.write(self._files[name], line.encode("utf-8", "backslashreplace") + b"\n")
        self.lines += 1

    def marks(self) -> dict[str, int]:
        """Make durable what is written, and say how far that is, for a checkpoint's manifest."""
        for descriptor in self._files.values():
            os.fsync(descriptor)
        return {name: os.fstat(descriptor).st_size for name, descriptor in self._files.items()}

    def close(self) -> None:
        self.marks()
        for descriptor in self._files.values():
            os.close(descriptor)


def _finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not have, by null."""
    return {key: _plain(value) for key, value in facts.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _finite(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Follower:
    """The reading end: gives each event once, in the order in which the stage told them, also while it runs."""

    def __init__(self, stage: str, folder: Path) -> None:
        self._stage, self._folder = stage, folder
        self._read = dict.fromkeys((METRICS, EVENTS), 0)
        self._waiting: dict[int, Event] = {}
        self._next = 0

    def news(self) -> Iterator[Event]:
        """Give what was told since the last look, as far as no earlier line is missing yet."""
        for name in self._read:
            self._look(name)
        while self._next in self._waiting:
            yield self._waiting.pop(self._next)
            self._next += 1

    def rest(self, folder: Path) -> Iterator[Event]:
        """Give all that is left, once nobody writes any more; the folder may have got another name."""
        self._folder = folder
        yield from self.news()
        for number in sorted(self._waiting):
            yield self._waiting.pop(number)

    def _look(self, name: str) -> None:
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(self._read[name])
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be half-written
        self._read[name] += len(whole)
        for line in whole.splitlines():
            number, event = _event(self._stage, name, line)
            self._waiting[number] = event


def _event(stage: str, name: str, line: bytes) -> tuple[int, Event]:
    facts = json.loads(line)
    number = facts.pop("n")
    if name == METRICS:
        values = {key: math.nan if value is None else value for key, value in facts.pop("values").items()}
        return number, Metrics(stage=stage, values=values, **facts)
    return number, from_json({**facts, "stage": stage})


def read_journal(stage: str, folder: Path) -> list[Event]:
    """Give all that a stage told, finished or not."""
    return list(Follower(stage, folder).rest(folder))
