"""Leases: one process at a time has something, among all machines that share the folder.

On one machine the system's lock decides, and is free at once when its holder dies. That of another machine which
vanished may never be free, or not be seen at all. So a holder keeps a lease as well: a numbered folder beside the lock,
with a heartbeat in it. One without a beat for long is taken over by the next number, which only one process can make;
whoever had the one before finds that, and stops.
"""

import errno
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.store.durable import read_json, write_json
from alignkit.store.heartbeat import Heartbeat

if TYPE_CHECKING:
    from filelock import FileLock

HOLDER = "holder.json"
QUICKER = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
"""What the system says where another process has made the folder meanwhile, or has cleared this one's away."""


@dataclass(frozen=True)
class Lease:
    """One turn at what a lock stands for."""

    folder: Path

    @property
    def number(self) -> int:
        return int(self.folder.suffix[1:])

    @property
    def beats(self) -> Path:
        """The file that is touched; gone once the holder has let go."""
        return self.folder / HOLDER

    @property
    def holder(self) -> Mapping[str, Any]:
        """Who has it: `pid`, `host` and `system`; empty where nobody has it any more."""
        return read_json(self.beats)

    @property
    def is_taken_over(self) -> bool:
        """Another process has had the next turn, or has it."""
        found = newest(self.folder)
        return found is not None and found.number > self.number


def newest(lock: Path) -> Lease | None:
    """Return the lease beside a lock that counts; None where there was none yet."""
    found = (path for path in lock.parent.glob(f"{lock.stem}.*") if path.suffix[1:].isdigit())
    return max(map(Lease, found), key=lambda lease: lease.number, default=None)


@dataclass(frozen=True)
class Hold:
    """A lease of this process, and from whom it was taken over; empty, where nobody had it."""

    lease: Lease
    lost: Mapping[str, Any]


@contextmanager
def held(
    lock: Path, heartbeat: Heartbeat, *, patience: float, taken_over: Callable[[], None] = lambda: None
) -> Iterator[Hold | None]:
    """Have for this process what a lock stands for; None where another one has it.

    A process of this machine is given `patience` seconds to let go; one of another is waited for until it is heard of,
    or lost. `taken_over` is called, in another thread, where another process has taken what this one held.
    """
    with _free(lock, heartbeat, patience) as free:
        lease = _next(lock, free.number, heartbeat) if free else None
        if not free or not lease:
            yield None
            return
        if not free.system.is_locked:
            lock.unlink(missing_ok=True)  # that of a machine which is gone may stay locked for ever
            free.system.acquire(timeout=patience)
        try:
            with heartbeat.of(lease.beats, lambda: taken_over() if lease.is_taken_over else None):
                yield Hold(lease, free.lost)
        finally:
            lease.beats.unlink(missing_ok=True)


def is_free(lock: Path, heartbeat: Heartbeat, patience: float) -> bool:
    """Return whether no process has what a lock stands for, or the one that had it is lost."""
    with _free(lock, heartbeat, patience) as free:
        return free is not None


def once(lock: Path, is_made: Callable[[], bool], make: Callable[[], None]) -> None:
    """Make something where it is not made, while nobody else does; who comes meanwhile waits for it."""
    while not is_made():
        with held(lock, Heartbeat(), patience=1.0) as hold:
            if hold is None:
                continue
            if not is_made():
                make()
            return


@dataclass(frozen=True)
class _Free:
    """What can be had: by the system's lock, where that is to be had as well, and the number of the next lease."""

    system: "FileLock"
    number: int
    lost: Mapping[str, Any]


@contextmanager
def _free(lock: Path, heartbeat: Heartbeat, patience: float) -> Iterator[_Free | None]:
    from filelock import FileLock, Timeout  # here, since every `alignkit plan` loads this module

    lock.parent.mkdir(parents=True, exist_ok=True)
    system = FileLock(lock)
    try:
        with suppress(Timeout):
            system.acquire(timeout=patience)
        before = newest(lock)
        holder = before.holder if before else {}
        if before and holder and holder["system"] != heartbeat.system:
            lost = heartbeat.ends(before.beats)
            yield _Free(system, before.number + 1, holder) if lost else None
        else:
            yield _Free(system, before.number + 1 if before else 1, {}) if system.is_locked else None
    finally:
        system.release()


def _next(lock: Path, number: int, heartbeat: Heartbeat) -> Lease | None:
    """Make the lease of this number, and remove those before; None where another process was quicker."""
    staged, lease = lock.with_suffix(f".new-{secrets.token_hex(4)}"), Lease(lock.with_suffix(f".{number}"))
    staged.mkdir()
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "system": heartbeat.system}
    try:
        write_json(staged / HOLDER, holder)
        staged.rename(lease.folder)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        if error.errno in QUICKER:
            return None
        raise
    if lease.is_taken_over:
        return None
    for path in lock.parent.glob(f"{lock.stem}.*"):
        if path != lease.folder and (path.suffix[1:].isdigit() or path.suffix.startswith(".new-")):
            shutil.rmtree(path, ignore_errors=True)
    return lease
