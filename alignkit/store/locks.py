"""The lock of a stage: one process at a time works on it, and others are told who."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignkit.errors import LockedError
from alignkit.store.heartbeat import Heartbeat, this_system
from alignkit.store.leases import Hold, held, is_free, newest
from alignkit.store.rundir import finished_folder, lock_file

PATIENCE = 0.3
"""Seconds to wait for a lock: another runner's glance at it takes less, a stage more."""


@contextmanager
def hold(
    partial: Path, heartbeat: Heartbeat | None = None, taken_over: Callable[[], None] = lambda: None
) -> Iterator[Hold]:
    """Hold a stage's lock: its folder belongs to nobody else meanwhile.

    It is free when its holder dies: at once on the same machine, else once the holder has not been heard of for a
    minute. `taken_over` is called, in another thread, where that was so of this process, and another has the stage.
    Raises LockedError naming the holder.
    """
    with held(lock_file(partial), heartbeat or Heartbeat(), patience=PATIENCE, taken_over=taken_over) as found:
        if found is None:
            raise busy(partial)
        yield found


def check_free(partial: Path, heartbeat: Heartbeat | None = None) -> None:
    """Raise LockedError where somebody works on a stage at the moment."""
    if not is_free(lock_file(partial), heartbeat or Heartbeat(), PATIENCE):
        raise busy(partial)


def holder_elsewhere(partial: Path) -> str:
    """Return which process of another machine works on a stage, or did when it was lost; empty where none does."""
    holder = _holder(partial)
    return _named(holder) if holder and holder["system"] != this_system() else ""


def busy(partial: Path) -> LockedError:
    """Return who works on a stage."""
    problem = f"{_named(_holder(partial))} is working on it"
    return LockedError(problem, str(finished_folder(partial)), "wait for it, or stop it")


def _holder(partial: Path) -> Mapping[str, Any]:
    lease = newest(lock_file(partial))
    return lease.holder if lease else {}


def _named(holder: Mapping[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}" if holder else "another process"
