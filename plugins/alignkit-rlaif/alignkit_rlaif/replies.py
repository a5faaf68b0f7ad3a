"""Append-only files: replies that were paid for, by what was asked, and what was spent on them."""

import json
import os
from collections import Counter
from pathlib import Path
from threading import Lock
from typing import Any


class Replies:
    """Replies by key. What was added is on the disk when `add` returns; without a file it is in memory alone."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._lock = path, Lock()
        self._replies: dict[str, dict[str, Any]] = {}
        if path and path.is_file():
            self._replies = _read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._replies[key]

    def add(self, key: str, reply: dict[str, Any]) -> None:
        """Keep a reply for good."""
        line = json.dumps({"key": key, "reply": reply}, ensure_ascii=True) + "\n"
        with self._lock:
            if self._path:
                _append(self._path, line)
            self._replies[key] = reply


class Spent:
    """What was spent on a judge, over all attempts of all stages, those that run beside this one among them: each
    request is a line, and so are its tokens."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._read = path, 0
        self._amounts = Counter[str]()

    def __getitem__(self, name: str) -> int:
        if self._path and self._path.is_file():
            with self._path.open("rb") as file:
                file.seek(self._read)
                self._count(file.read())
        return self._amounts[name]

    def _count(self, text: bytes) -> None:
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be half-written
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                self._amounts.update({str(name): int(amount) for name, amount in json.loads(line).items()})
            except (ValueError, TypeError, AttributeError):
                continue

    def add(self, name: str, amount: int) -> None:
        """Count something for good."""
        if self._path:
            _append(self._path, json.dumps({name: amount}) + "\n")
        else:
            self._amounts[name] += amount


def _append(path: Path, line: str) -> None:
    """Write one line in one go, behind a line break where an earlier process died within a line."""
    with path.open("a+b") as file:
        if file.tell() and not _ends_whole(file.fileno(), file.tell()):
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _ends_whole(descriptor: int, size: int) -> bool:
    return os.pread(descriptor, 1, size - 1) == b"\n"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Read what is whole; half a line is what a dying process left."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            found[str(entry["key"])] = dict(entry["reply"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
