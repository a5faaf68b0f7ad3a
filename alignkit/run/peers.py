"""The other processes of a stage on this machine: where one fails or is gone, the rest must not wait for it.

A process that waits for another in a collective hears nothing: gloo notices a closed connection, NCCL nothing for half
an hour. So each leaves its number in a folder, and watches those of the others.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir

from alignkit.run.failures import lost, tell_failure, told_failure
from alignkit.run.order import Order
from alignkit.store.durable import write_text

POLL = 0.5
"""Seconds between two looks."""
GRACE = 5.0
"""Seconds in which a process that has lost another may still end by itself, and say more of it."""


@contextmanager
def watched(partial: Path, order: Order, rank: int) -> Iterator[None]:
    """Be one of the processes of a stage, which all end within seconds where one fails or is killed."""
    folder = Path(gettempdir()) / f"alignkit-{order.attempt}"
    folder.mkdir(exist_ok=True)
    own, over = folder / str(rank), threading.Event()
    write_text(own, str(os.getpid()))
    threading.Thread(target=_watch, args=(partial, order, folder, own, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        own.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # the last one does


def _watch(partial: Path, order: Order, folder: Path, own: Path, over: threading.Event) -> None:
    while not over.wait(POLL):
        if told_failure(order, partial) or _one_is_gone(folder, own):
            break
    if over.wait(GRACE):
        return
    os._exit(tell_failure(order, partial, lost(order)).status)


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
