"""The lock of a stage: one process at a time works on it, and others are told who."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignkit.errors import LockedError
from alignkit.store.durable import read_json, write_json
from alignkit.store.rundir import finished_folder, lock_file

PATIENCE = 0.3
"""Seconds to wait for a lock: another runner's glance at it takes less, a stage more."""


@contextmanager
def hold(partial: Path) -> Iterator[None]:
    """Hold a stage's lock: its folder belongs to nobody else meanwhile.

    The system frees it when its holder dies. Raises LockedError naming the holder.
    """
    with _locked(partial):
        write_json(_holder(partial), {"pid": os.getpid(), "host": socket.gethostname()})
        yield


def check_free(partial: Path) -> None:
    """Raise LockedError where somebody works on a stage at the moment."""
    with _locked(partial):
        pass


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout  # here, since every `alignkit plan` loads this module

    lock = FileLock(lock_file(partial))
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise busy(partial) from error
    try:
        yield
    finally:
        lock.release()


def _holder(partial: Path) -> Path:
    return lock_file(partial).with_suffix(".json")


def busy(partial: Path) -> LockedError:
    """Return who works on a stage."""
    holder = read_json(_holder(partial))
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return LockedError(f"{who} is working on it", str(finished_folder(partial)), "wait for it, or stop it")
