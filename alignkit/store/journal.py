"""A stage's journal: what it tells while it runs, in `metrics.jsonl` and `events.jsonl`, written and followed.

The files are the only channel between a stage and whoever watches it. Each line has a number `n`, counted over both
files, so that a reader of the two can tell them in one order. What is told never stops a run: a line that cannot be
read is counted, named once, and left out.
"""

import heapq
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alignkit.contract.events import Event, Metrics, Warned, from_json, to_json

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"


class Journal:
    """The writing end. `heard` is told each event as well, where somebody listens in the same process."""

    def __init__(self, folder: Path, marks: Mapping[str, int], heard: Callable[[Event], None] | None = None) -> None:
        """Go on after the given marks (file -> bytes): what was written later belongs to steps that will be redone."""
        self._files: dict[str, int] = {}
        self._heard = heard
        self.lines = 0
        self.cut: dict[str, str] = {}
        """File -> how much of it is there, where something has taken away what was written before."""
        for name in (METRICS, EVENTS):
            descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            mark, size = marks.get(name, 0), os.fstat(descriptor).st_size
            if size < mark:
                self.cut[name] = f"{size} of {mark} bytes"
            os.ftruncate(descriptor, min(mark, size))
            self.lines = max(self.lines, _next_number(folder / name))
            self._files[name] = descriptor
            _end_line(descriptor)

    def tell(self, event: Event) -> None:
        """Append one event as one line."""
        if isinstance(event, Metrics):
            facts = {"step": event.step, "of": event.of, "values": finite(event.values), "seconds": event.seconds}
            self._append(METRICS, facts)
        else:
            self._append(EVENTS, finite({k: v for k, v in to_json(event).items() if k != "stage"}))
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


def _next_number(file: Path) -> int:
    numbers = [read[0] for line in file.read_bytes().split(b"\n") if (read := _read("", file.name, line))]
    return max(numbers, default=-1) + 1


def _end_line(descriptor: int) -> None:
    """Let a line that was cut off not swallow the next one."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")


def finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not have, by null."""
    return {key: _plain(value) for key, value in facts.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return finite(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Follower:
    """The reading end: gives each event once, in the order in which the stage told them, also while it runs."""

    def __init__(self, stage: str, folder: Path) -> None:
        self._stage, self._folder = stage, folder
        self._read = dict.fromkeys((METRICS, EVENTS), 0)
        self._waiting: list[tuple[int, int, Event]] = []
        """A heap by number; the second one settles which of two lines with one number was read first."""
        self._next = self._seen = 0
        self._bad = dict.fromkeys((METRICS, EVENTS), 0)

    def news(self) -> Iterator[Event]:
        """Yield what was told since the last look, as far as no earlier line is missing yet.

        A line that was seen at the last look waits no longer: what was written before it is read by now, or lost.
        """
        seen = max((number for number, _, _ in self._waiting), default=-1)
        for name in self._read:
            self._look(name)
        while self._waiting and self._waiting[0][0] <= max(self._next, seen):
            number, _, event = heapq.heappop(self._waiting)
            self._next = max(self._next, number + 1)
            yield event

    def rest(self, folder: Path) -> Iterator[Event]:
        """Yield all that is left, once nobody writes any more, and what could not be read; the folder may have got
        another name."""
        self._folder = folder
        yield from self.news()
        while self._waiting:
            yield heapq.heappop(self._waiting)[2]
        for name, count in self._bad.items():
            if count := count + bool(self._unread(name)):
                lines = "1 line" if count == 1 else f"{count} lines"
                problem = f"{lines} of {name} cannot be read and {'is' if count == 1 else 'are'} left out"
                yield Warned(self._stage, problem, "the stage's result is not affected; check the disk")

    def _look(self, name: str) -> None:
        text = self._unread(name)
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be half-written
        self._read[name] += len(whole)
        for line in whole.split(b"\n")[:-1]:
            self._take(name, _read(self._stage, name, line))

    def _unread(self, name: str) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(self._read[name])
                return file.read()
        except FileNotFoundError:
            return b""

    def _take(self, name: str, read: tuple[int, Event] | None) -> None:
        if read is None:
            self._bad[name] += 1
            return
        self._seen += 1
        heapq.heappush(self._waiting, (read[0], self._seen, read[1]))


def _read(stage: str, name: str, line: bytes) -> tuple[int, Event] | None:
    """Return the number of a line and what it tells; None where it is damaged."""
    try:
        number, event = _event(stage, name, json.loads(line))
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return (number, event) if type(number) is int and number >= 0 else None


def _event(stage: str, name: str, facts: dict[str, Any]) -> tuple[int, Event]:
    number = facts.pop("n")
    if name == METRICS:
        values = {key: math.nan if value is None else value + 0.0 for key, value in facts.pop("values").items()}
        return number, Metrics(stage=stage, values=values, **facts)
    return number, from_json({**facts, "stage": stage})


def read_journal(stage: str, folder: Path) -> list[Event]:
    """Return all that a stage told, finished or not."""
    return list(Follower(stage, folder).rest(folder))
