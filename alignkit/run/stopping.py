"""Ctrl-C and the scheduler's SIGTERM: noted, and acted upon where it is safe."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from alignkit.errors import INTERRUPTED, TERMINATED


@dataclass
class Stop:
    """The signals that came so far. Whoever works looks at it where it can stop and be resumed."""

    signals: list[int] = field(default_factory=list)

    @property
    def asked(self) -> bool:
        return bool(self.signals)

    @property
    def status(self) -> int:
        """The exit status that the first signal asks for."""
        return TERMINATED if self.signals and self.signals[0] == signal.SIGTERM else INTERRUPTED


@contextmanager
def noting_signals(stop: Stop) -> Iterator[Stop]:
    """Note SIGINT and SIGTERM while inside; a handler that did more could strike in the middle of a save.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
