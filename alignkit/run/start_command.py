"""Stages started by a command of the user's own, which waits until they have ended."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from alignkit.environment import ENVIRONMENT
from alignkit.errors import StageError
from alignkit.run.command_words import filled
from alignkit.run.launch import IMPORTING
from alignkit.run.launch_folder import LaunchFolder
from alignkit.run.machine import Machine
from alignkit.text import last_line

GRACE = 5.0
"""Seconds in which a command ends that was told to, and in which what nodes have written is seen here."""


class CommandLauncher:
    """Starts each stage by the machine's command."""

    def __init__(self, machine: Machine, *, offline: bool) -> None:
        self._machine, self._offline = machine, offline
        self._process: subprocess.Popen[bytes] | None = None
        self._launch: LaunchFolder | None = None
        self._models = True
        self._lost = ""
        """Why nothing more is heard of the nodes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs."""
        if self._process:
            self.kill()
            self._process.wait()

    def start(self, partial: Path, *, models: bool = True) -> None:
        self._models, self._lost = models, ""
        self._launch = launch = LaunchFolder.make(partial, self._machine, offline=self._offline)
        values = {
            "folder": launch.partial,
            "nodes": launch.nodes,
            "processes": launch.processes,
            "name": launch.name,
        }
        words = filled(self._machine.command, launch.words, values)
        try:
            with launch.log.open("wb") as log:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=ENVIRONMENT | dict(os.environ),
                    start_new_session=True,
                )
        except OSError as error:
            remedy = "correct the machine's command in machines.toml"
            raise StageError(f"{words[0]} cannot be run ({error.strerror})", launch.where, remedy) from error

    def status(self, wait: float) -> int | None:
        assert self._process
        assert self._launch
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait)
        if self._process.returncode is None:
            return None
        ended, self._process = self._process.returncode, None
        status = self._ended(ended, self._launch)
        if status == 0:
            self._launch.remove()
        return status

    def _ended(self, status: int, launch: LaunchFolder) -> int:
        """Return the stage's exit status, once the command has ended with its own."""
        until = time.monotonic() + GRACE
        while (told := launch.status()) is None and (launch.running or status == 0) and time.monotonic() < until:
            time.sleep(0.1)
        if told is not None or launch.asked():
            return told or status
        launch.ask("kill")
        if status == 0 or not launch.begun:
            when = "while the stage was running" if launch.begun else "before the stage began"
            said = f", its last line was: {line}" if (line := last_line(launch.log)) else ""
            problem = f"the machine's command ended with status {status} {when}{said}"
            raise StageError(problem, launch.where, f"it has to wait until the stage has ended; see {launch.log}")
        self._lost = f"the machine's command ended with status {status}"
        return status

    @property
    def doing(self) -> str:
        if not self.started:
            return "waiting for a node"
        return IMPORTING if self._models else ""

    @property
    def started(self) -> bool:
        return self._launch is not None and self._launch.begun

    @property
    def interrupted(self) -> str:
        return self._lost or (self._launch.interrupted if self._launch else "")

    def ask_to_end(self) -> None:
        if self._launch:
            self._launch.ask("stop")

    def kill(self) -> None:
        """Have the nodes end the stage's processes, and end the command."""
        if self._launch and self._process:
            self._launch.ask("kill")
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE if self._launch.running else 0)
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
