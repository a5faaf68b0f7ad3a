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


class Zygote:
    """The process that starts stages, several at a time if so asked; it is only started when the first stage is."""

    def __init__(self, log: Path, *, fork: bool, processes: int, offline: bool, threads: int | None = None) -> None:
        """Start nothing yet; `threads` is how many a stage takes on processors, where its user does not say so."""
        self.log = log
        self._fork, self._processes = fork, processes
        self._before = ENVIRONMENT | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        self._after = {"HF_HUB_OFFLINE": "1"} if offline else {}
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._waiting: dict[Path, bool | None] = {}
        """The folders of stages that it has to start, and whether they handle models; None: nobody wants it now."""
        self.running: dict[Path, int] = {}
        """The folders of stages that it has started, and their processes."""
        self._ended: dict[Path, int | None] = {}
        """The exit statuses of those that have ended; None where one cannot be started."""
        self.imported = False
        """It has imported the heavy libraries."""

    def close(self) -> None:
        """End what still runs."""
        if self._process:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.close()
            if self._waiting and not self.running:
                self._process.kill()  # while it imports, it would not notice the end of its input
            self._process.wait()
            self._process.stdout.close()
            self._process = None
        self._unread = b""

    def start(self, folder: Path, *, models: bool) -> None:
        """Have the stage started whose order lies in this folder."""
        self._process = self._process or self._begin()
        assert self._process.stdin
        self._ended.pop(folder, None)
        self._waiting[folder] = models
        with suppress(BrokenPipeError):  # that it has died is seen where it is listened to
            self._process.stdin.write((b"models " if models else b"rows ") + os.fsencode(folder) + b"\n")

    def _begin(self) -> "subprocess.Popen[bytes]":
        self.log.parent.mkdir(parents=True, exist_ok=True)
        options = ["--fork"] if self._forks else ["--processes", str(self._processes)]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "alignkit.run.zygote", *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env=self._before | dict(os.environ) | self._after,
                start_new_session=True,
            )

    @property
    def _forks(self) -> bool:
        return self._fork and self._processes == 1

    def status(self, folder: Path, wait: float) -> int | None:
        """Return the exit status of a stage if it ends within so many seconds. Raise StageError where none starts."""
        if folder not in self._ended:
            self._listen(wait)
        if folder not in self._ended:
            return None
        status = self._ended[folder]
        if status is None:
            raise StageError("no process can be started", str(self.log), "this log may tell why")
        return status

    def _listen(self, wait: float) -> None:
        """Take notice of what it says within so many seconds."""
        assert self._process
        assert self._process.stdout
        readable, _, _ = select.select([self._process.stdout], [], [], wait)
        if not readable:
            return
        read = self._process.stdout.read(65536)
        if not read:
            self._died()
        *lines, self._unread = (self._unread + read).split(b"\n")
        for line in lines:
            word, pid, rest = line.split(b" ", 2)
            if word == b"started":
                folder = Path(os.fsdecode(rest))
                self.running[folder] = int(pid)
                models = self._waiting.pop(folder)
                self.imported |= bool(models) and self._forks
                if models is None:
                    os.kill(int(pid), signal.SIGKILL)
            else:
                folder = next(one for one, process in self.running.items() if process == int(pid))
                del self.running[folder]
                self._ended[folder] = int(rest)

    def send(self, folder: Path, number: int) -> None:
        """Signal the process of a stage, with SIGKILL whatever it has started too; one that waits does not begin."""
        if folder in self._waiting:
            self._waiting[folder] = None
            return
        with suppress(ProcessLookupError, KeyError):
            (os.killpg if number == signal.SIGKILL else os.kill)(self.running[folder], number)

    def _died(self) -> None:
        """Go on where it has died: stages that it had started died with it, those that wait start afresh."""
        self.close()
        self._ended |= dict.fromkeys(self.running, -signal.SIGKILL)
        self.running.clear()
        waiting, self._waiting = self._waiting, {}
        if not self._fork:
            self._ended |= dict.fromkeys(waiting)
            return
        self._fork = False
        for folder, models in waiting.items():
            if models is not None:
                self.start(folder, models=models)


class LocalLauncher:
    """Starts stages one after another, by a zygote that may be others' too."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        self._folder = Path()
        self._models = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs."""
        self._zygote.close()

    def start(self, partial: Path, *, models: bool = True) -> None:
        """Start the stage whose order lies in this folder; one without models needs none of the heavy libraries."""
        self._folder, self._models = partial, models
        self._zygote.start(partial, models=models)

    def status(self, wait: float) -> int | None:
        return self._zygote.status(self._folder, wait)

    @property
    def doing(self) -> str:
        return IMPORTING if self._models and not self._zygote.imported else ""

    @property
    def interrupted(self) -> str:
        return ""  # who signals this machine's processes signals the runner, too

    @property
    def started(self) -> bool:
        return self._folder in self._zygote.running

    def ask_to_end(self) -> None:
        """Ask the stage's process to keep what it has learnt and end, by a signal that torchrun passes on."""
        self._zygote.send(self._folder, signal.SIGTERM)

    def kill(self) -> None:
        """End the stage's process and whatever it has started."""
        self._zygote.send(self._folder, signal.SIGKILL)
