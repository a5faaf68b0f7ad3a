"""Heartbeats: files that are touched every few seconds, by which other machines know that a process is still there.

No two clocks are compared: the time of a file is set by the file system that it lies on, which both machines share, and
who looks compares it with the time of a file of its own.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event, Thread

BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_system() -> str:
    """Return a word for the running system, which other machines do not have, also where they have the same name."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()


@dataclass(frozen=True)
class Heartbeat:
    """How often processes are heard of, and how those of other systems are told from those of this one."""

    every: float = 5.0
    """Seconds between two beats."""
    lost_after: float = 60.0
    """Seconds without a beat after which a process of another system is taken to be gone."""
    system: str = field(default_factory=this_system)

    @contextmanager
    def of(self, file: Path, look: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Touch a file while inside; `look` is called after each beat."""
        over = Event()
        thread = Thread(target=self._beat, args=(file, look, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _beat(self, file: Path, look: Callable[[], None], over: Event) -> None:
        while not over.wait(self.every):
            with suppress(OSError):  # the disk may be back at the next beat
                os.utime(file)
            with suppress(OSError):
                look()

    def is_lost(self, file: Path) -> bool:
        """Return whether the file is there, and its process has not been heard of for long."""
        return bool(self.lost([file]))

    def lost(self, files: Sequence[Path]) -> list[Path]:
        """Return those of a folder's files whose processes have not been heard of for long."""
        if not files:
            return []
        beats = [(file, beat_of(file)) for file in files]
        now = _now(files[0].parent)
        return [file for file, beat in beats if beat is not None and now - beat > self.lost_after]

    def ends(self, file: Path) -> bool:
        """Wait until the file's process is heard of again, is lost, or has removed it; return whether it has ended.

        Of one that has been silent for long two more beats are awaited: the disk may have been gone for all.
        """
        last, until = beat_of(file), time.monotonic() + 2 * self.every
        while last is not None and (not self.is_lost(file) or time.monotonic() < until):
            time.sleep(self.every / 10)
            if (beat := beat_of(file)) != last:
                return beat is None
        return True


def beat_of(file: Path) -> float | None:
    """Return when a file was touched last, None where it is gone. A file system of a network looks anew at what is
    opened, and only then."""
    try:
        with file.open("rb") as opened:
            return os.fstat(opened.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _now(folder: Path) -> float:
    """Return the time as a folder's file system has it; where it may only be read, as this machine has it."""
    try:
        with TemporaryFile(dir=folder) as own:
            os.utime(own.fileno())
            return os.fstat(own.fileno()).st_mtime
    except OSError:
        return time.time()
