"""A terminal for tests: a program runs on it, keys are pressed, and what stands on its screen is read."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PART = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+|\x1b.")
MODES = ("?25", "?1049", "?2026")
"""Private modes that move nothing: the cursor is shown or hidden, and the like."""


@dataclass
class Screen:
    """What stands on a terminal of so many columns, scrolled lines among it."""

    columns: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    overflowed: bool = False
    """A line was longer than the terminal is wide."""

    def show(self, text: str) -> None:
        for part in PART.finditer(text):
            self._take(part.group(), part.group(1), part.group(2))

    def _take(self, part: str, arguments: str | None, command: str | None) -> None:
        if part == "\r":
            self.column = 0
        elif part == "\n":
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif command is None:
            self._write(part)
        elif command == "A":
            self.row = max(0, self.row - int(arguments or 1))
        elif command == "K":
            self.lines[self.row] = self.lines[self.row][: self.column] if arguments in ("", "0") else ""
        elif command != "m" and not (command in "hl" and arguments in MODES):
            raise ValueError(f"a terminal of the tests does not know {part!r}")

    def _write(self, text: str) -> None:
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + text + line[self.column + len(text) :]
        self.column += len(text)
        self.overflowed |= self.column > self.columns


@dataclass
class Terminal:
    """A program on a terminal of its own."""

    process: "subprocess.Popen[bytes]"
    master: int
    screen: Screen
    raw: str = ""
    _bytes: bytes = b""

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read(self, seconds: float) -> bool:
        """Read what comes within so many seconds; False once the terminal is closed."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            self._bytes += os.read(self.master, 65536)
        except OSError:
            return False
        whole = self._bytes[: self._bytes.rfind(b"\n") + 1 or len(self._bytes)]
        self._bytes = self._bytes[len(whole) :]
        text = whole.decode("utf-8", "replace")
        self.raw += text
        self.screen.show(text)
        return True

    def wait_for(self, text: str, seconds: float = 60.0) -> float:
        """Return after how many seconds a text was written. Raise TimeoutError where it does not come."""
        began, seen = time.monotonic(), len(self.raw)
        while text not in self.raw[seen:]:
            if not self.read(0.02) or time.monotonic() > began + seconds:
                raise TimeoutError(f"{text!r} did not come:\n{self.raw[-3000:]}")
        return time.monotonic() - began

    def wait(self, seconds: float = 60.0) -> int:
        """Return the exit status, once the program ends. Raise TimeoutError where it does not."""
        until = time.monotonic() + seconds
        while self.process.poll() is None:
            self.read(0.02)
            if time.monotonic() > until:
                raise TimeoutError(f"it did not end:\n{self.raw[-3000:]}")
        while select.select([self.master], [], [], 0.05)[0] and self.read(0.0):
            pass
        return self.process.returncode

    def mode(self) -> list[object]:
        """Return how the terminal is set."""
        return termios.tcgetattr(self.master)


@contextmanager
def on_terminal(
    command: Sequence[str], columns: int = 80, folder: Path | None = None, **environment: str
) -> Iterator[Terminal]:
    """Run a program on a terminal of its own, as its leading process."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    before = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}

    def lead() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        list(command),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=folder,
        env={**before, "TERM": "xterm-256color", **environment},
        preexec_fn=lead,
    )
    os.close(slave)
    try:
        yield Terminal(process, master, Screen(columns))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(master)
