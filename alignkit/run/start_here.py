"""Stages on this machine, the runner's end of the zygote: start a stage, ask how it does, signal it."""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from alignkit.environment import ENVIRONMENT
from alignkit.errors import StageError
from alignkit.run.launch import IMPORTING


class LocalLauncher:
    """Starts stages one after another; the process behind it is only started when the first one is."""

    def __init__(self, log: Path, *, fork: bool, processes: int, offline: bool) -> None:
        self._log, self._fork, self._processes, self._offline = log, fork, processes, offline
        self._zygote: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._folder = Path()
        self._models = True
        self._pid = 0
        self._imported = False
        """What starts stages has imported the heavy libraries."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs."""
        self._close()

    def _close(self) -> None:
        if self._zygote:
            assert self._zygote.stdin
            assert self._zygote.stdout
            self._zygote.stdin.close()
            if not self.started:
                self._zygote.kill()  # while it imports, it would not notice the end of its input
            self._zygote.wait()
            self._zygote.stdout.close()
            self._zygote = None

    def start(self, partial: Path, *, models: bool = True) -> None:
        """Start the stage whose order lies in this folder; one without models needs none of the heavy libraries."""
        self._folder, self._models, self._pid = partial, models, 0
        self._zygote = self._zygote or self._start_zygote()
        assert self._zygote.stdin
        self._zygote.stdin.write((b"models " if models else b"rows ") + os.fsencode(partial) + b"\n")

    def _start_zygote(self) -> "subprocess.Popen[bytes]":
        self._log.parent.mkdir(parents=True, exist_ok=True)
        options = ["--fork"] if self._fork and self._processes == 1 else ["--processes", str(self._processes)]
        offline = {"HF_HUB_OFFLINE": "1"} if self._offline else {}
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "alignkit.run.zygote", *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env=ENVIRONMENT | dict(os.environ) | offline,
                start_new_session=True,
            )

    def status(self, wait: float) -> int | None:
        """Return the exit status of the stage if it ends within so many seconds; negative: a signal's number."""
        assert self._zygote
        assert self._zygote.stdout
        readable, _, _ = select.select([self._zygote.stdout], [], [], wait)
        if not readable:
            return None
        read = self._zygote.stdout.read(65536)
        if not read:
            return self._without_zygote()
        *lines, self._unread = (self._unread + read).split(b"\n")
        for line in lines:
            word, pid, rest = line.split(b" ", 2)
            if word == b"started":
                self._pid = int(pid)
                self._imported |= self._models and self._fork and self._processes == 1
            elif int(pid) == self._pid:
                return int(rest)
        return None

    def _without_zygote(self) -> int | None:
        """Go on where the zygote has died: a stage that it had started died with it, one that waits starts afresh."""
        if self.started:
            return -signal.SIGKILL
        if not self._fork:
            raise StageError("no process can be started", str(self._log), "this log may tell why")
        self._close()
        self._fork = False
        self.start(self._folder, models=self._models)
        return None

    @property
    def doing(self) -> str:
        return IMPORTING if self._models and not self._imported else ""

    @property
    def interrupted(self) -> str:
        return ""  # who signals this machine's processes signals the runner, too

    @property
    def started(self) -> bool:
        return bool(self._pid)

    def ask_to_end(self) -> None:
        """Ask the stage's process to keep what it has learnt and end, by a signal that torchrun passes on."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the stage's process and whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
