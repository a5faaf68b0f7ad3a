"""An append-only file of replies that were paid for, by what was asked."""

import json
import os
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
