"""Keys that are pressed while something is shown; Ctrl-C and the like go on to work as ever."""

import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def pressed() -> Iterator[Callable[[], str]]:
    """Yield a function that returns the keys pressed since its last call: none where standard input is no terminal, or
    one that another process reads from. The terminal is left as it was."""
    if sys.stdin is None or not sys.stdin.isatty() or not _is_ours(sys.stdin.fileno()):
        yield str
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal, termios.TCSANOW)
    try:
        yield lambda: _read(terminal)
    finally:
        if _is_ours(terminal):
            termios.tcsetattr(terminal, termios.TCSANOW, before)


def _is_ours(terminal: int) -> bool:
    """Return whether this process is in the foreground: one in the background that touched its terminal would be
    halted."""
    with suppress(OSError):
        return os.tcgetpgrp(terminal) == os.getpgrp()
    return False


def _read(terminal: int) -> str:
    with suppress(OSError):  # the terminal is gone
        if _is_ours(terminal) and select.select([terminal], [], [], 0)[0]:
            return os.read(terminal, 64).decode("ascii", "replace")
    return ""
