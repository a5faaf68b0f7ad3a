"""Signals that ask for an end: noted, and acted upon where it is safe, or where waiting for that takes too long.

Ctrl-C, a scheduler's SIGTERM, its SIGUSR1 before a time limit, and the SIGHUP of a terminal that is closed.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from alignkit.errors import INTERRUPTED, TERMINATED

GRACE = 30.0
"""Seconds that a stage which takes steps has, at least, to end the one that it is in and to keep what it has learnt."""

SHUTDOWN = 3600
"""Seconds that torchrun lets processes keep what they have learnt in, once they are asked to end."""

NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
INSISTING = (signal.SIGINT, signal.SIGTERM)
"""Two of these mean: at once. A closed terminal sends SIGHUP twice, and a scheduler SIGUSR1 and then SIGTERM."""


class Left(BaseException):
    """Work was left early, to be resumed. No Exception, so that no method takes it for a failure of its own."""


@dataclass
class Stop:
    """The signals that came so far. Whoever works looks at it where it can stop and be resumed."""

    signals: list[int] = field(default_factory=list)
    grace: float | None = None
    """Seconds after which a signal raises Left in the main thread, wherever that is; None: it is noted, and no more."""
    once: bool = False
    """Only the first signal counts, as in a stage's own process: where a person insists, the runner kills it."""
    _stepped: float = 0.0

    @property
    def asked(self) -> bool:
        return bool(self.signals)

    @property
    def insisted(self) -> bool:
        """It was asked for twice."""
        return not self.once and sum(number in INSISTING for number in self.signals) > 1

    @property
    def status(self) -> int:
        """The exit status that the first signal asks for."""
        terminated = self.signals and self.signals[0] in (signal.SIGTERM, signal.SIGHUP)
        return TERMINATED if terminated else INTERRUPTED

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Leave where it is, when a signal comes or has come: work inside is redone, and loses nothing by that."""
        with self.within(0.0):
            if self.asked:
                raise Left
            yield

    @contextmanager
    def only_noted(self) -> Iterator[None]:
        """Only note signals: work inside looks at them by itself."""
        with self.within(None):
            yield

    @contextmanager
    def within(self, grace: float | None) -> Iterator[None]:
        """Leave so many seconds after a signal that comes inside."""
        before, self.grace = self.grace, grace
        try:
            yield
        finally:
            self.grace = before

    def step_taken(self) -> None:
        """Give the next step as long as two of the last kind, as it ends in a place where nothing is lost."""
        now = time.monotonic()
        took = now - self._stepped if self._stepped else 0.0
        self.grace, self._stepped = max(GRACE, 2 * took), now


@contextmanager
def noting_signals(stop: Stop) -> Iterator[Stop]:
    """Note the signals that ask for an end while inside; a handler that did more could strike in the middle of a save.

    Outside the main thread, where Python allows no handlers, nothing is changed. SIGHUP stays ignored under `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    over, late = threading.Event(), threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if not late.is_set():
            stop.signals.append(number)
        if stop.grace is not None and (stop.grace == 0 or stop.insisted or late.is_set()):
            raise Left
        if stop.grace and len(stop.signals) == 1:
            threading.Thread(target=_wake, args=(number, stop.grace, over, late), daemon=True).start()
        late.clear()

    kept = [number for number in NOTED if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in kept}
    try:
        with stop.only_noted():
            yield stop
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wake(number: int, grace: float, over: threading.Event, late: threading.Event) -> None:
    """Send the main thread the signal again once the time is up, which also ends a call that waits."""
    if not over.wait(grace):
        late.set()
        signal.pthread_kill(threading.main_thread().ident or 0, number)
