"""The lock of a stage: one process at a time works on it, and others are told who."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alignkit.errors import LockedError
from alignkit.store.heartbeat import Heartbeat
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


def busy(partial: Path) -> LockedError:
    """Return who works on a stage."""
    lease = newest(lock_file(partial))
    holder = lease.holder if lease else {}
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return LockedError(f"{who} is working on it", str(finished_folder(partial)), "wait for it, or stop it")
