"""The other processes of a stage: where one fails, is gone or does not see the folder, the rest must not wait for it.

A process that waits for another in a collective hears nothing: gloo notices a closed connection, NCCL nothing for half
an hour. So each leaves its number in a folder of its machine, and watches those of the others there. Of several nodes
one process each is heard of by a heartbeat in the stage's folder.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir

from alignkit.errors import StageError
from alignkit.run.failures import Failure, lost, silent, tell_failure, told_failure
from alignkit.run.order import Order
from alignkit.store.durable import read_json, write_json, write_text
from alignkit.store.heartbeat import Heartbeat
from alignkit.store.rundir import FIRST, NODES, STARTED

POLL = 0.5
"""Seconds between two looks."""
GRACE = 5.0
"""Seconds in which a process that has lost another may still end by itself, and say more of it."""
SEEN = 150.0
"""Seconds in which other nodes see what the first process writes: it may wait for a minute for one that was lost, and a
file system of a network may show a new file after another."""


def be_seen(partial: Path, order: Order) -> None:
    """Let the processes on other nodes see that the first one is there."""
    if order.machine.nodes > 1:
        write_json(partial / FIRST, {"attempt": order.attempt})


def first_is_on(partial: Path, order: Order, patience: float = SEEN) -> bool:
    """Wait until the first of several processes has the folder ready; False where it found nothing to do.

    Raises StageError where this node does not see what it writes.
    """
    until = time.monotonic() + patience if order.machine.nodes > 1 else float("inf")
    while partial.is_dir():
        if read_json(partial / STARTED).get("attempt") == order.attempt:
            return True
        if time.monotonic() > until and read_json(partial / FIRST).get("attempt") != order.attempt:
            problem = f"{socket.gethostname()} does not see what the stage's first process has written"
            raise StageError(problem, str(partial), "let all nodes see one folder for runs, at one path (--runs)")
        time.sleep(0.05)
    return False


@contextmanager
def watched(partial: Path, order: Order, rank: int, heartbeat: Heartbeat | None = None) -> Iterator[None]:
    """Be one of the processes of a stage, which all end within seconds where one fails or is killed; within a minute
    where a node is gone."""
    folder = Path(gettempdir()) / f"alignkit-{order.attempt}"
    folder.mkdir(exist_ok=True)
    own, over = folder / str(rank), threading.Event()
    write_text(own, str(os.getpid()))
    leads = order.machine.nodes > 1 and os.environ["LOCAL_RANK"] == "0"
    with ExitStack() as resources:
        gone = resources.enter_context(_heard(partial, order, heartbeat or Heartbeat())) if leads else []

        def missing() -> Failure | None:
            if gone:
                return silent(order, gone[0])
            return lost(order) if _one_is_gone(folder, own) else None

        threading.Thread(target=_watch, args=(partial, order, missing, over), daemon=True).start()
        try:
            yield
        finally:
            over.set()
            own.unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()  # the last one does


@contextmanager
def _heard(partial: Path, order: Order, heartbeat: Heartbeat) -> Iterator[list[str]]:
    """Be heard of by a stage's other nodes. What is yielded gets the names of those that are not heard of any more."""
    (partial / NODES).mkdir(exist_ok=True)
    own, gone = partial / NODES / f"{order.attempt}-{os.environ['GROUP_RANK']}", list[str]()
    write_text(own, socket.gethostname())

    def look() -> None:
        others = [file for file in own.parent.glob(f"{order.attempt}-*") if file != own]
        gone.extend(file.read_text() for file in heartbeat.lost(others))

    try:
        with heartbeat.of(own, look):
            yield gone
    finally:
        own.unlink(missing_ok=True)


def _watch(partial: Path, order: Order, missing: Callable[[], Failure | None], over: threading.Event) -> None:
    found: Failure | None = None
    while not over.wait(POLL) and not told_failure(order, partial) and found is None:
        found = missing()
    if over.wait(GRACE):
        return
    os._exit(tell_failure(order, partial, found or lost(order)).status)


def _one_is_gone(folder: Path, own: Path) -> bool:
    return any(_is_gone(file) for file in folder.glob("*") if file != own)


def _is_gone(file: Path) -> bool:
    """Return whether the process of this number is no longer there, though it has not said that it ended."""
    try:
        os.kill(int(file.read_text()), 0)
    except ProcessLookupError:
        return file.exists()
    except (OSError, ValueError):
        return False
    return False
