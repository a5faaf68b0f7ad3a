"""A server of vLLM that a stage starts, watches and ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from alignkit.errors import RecipeError, StageError
from alignkit.http import is_there
from alignkit.serve import leash
from alignkit.serve.serving import Serving
from alignkit.text import last_line

POLL = 0.2
"""Seconds between two looks at a server that starts."""
GRACE = 10.0
"""Seconds that a server has to end when it is asked to."""
LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""Variables of this process that would lead a program of another environment astray, and so would those that begin
with the following."""
PREFIXES = ("TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_")
SPOKEN = {
    "VLLM_SERVER_DEV_MODE": "1",  # without it there is no way to give weights
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
"""What a server is told by its environment, where the machine does not say otherwise."""


class Server:
    """One server on this machine, on a free port; it dies with this process."""

    def __init__(self, serving: Serving, words: Sequence[str], log: Path, where: str) -> None:
        """Start `vllm serve` with these words behind it, and do not wait. Raise RecipeError where it is not there."""
        assert serving.vllm
        self._log, self._where, self._serving = log, where, serving
        check_command(serving, where)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [serving.vllm, "serve", *words, "--host", "127.0.0.1", "--port", str(port), *serving.more]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", leash.__file__, *command],
                stdin=subprocess.PIPE,  # it ends with this process, and the server with it
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment_of(serving, os.environ),
                start_new_session=True,
            )
        self._ends = time.monotonic() + serving.start

    def wait(self) -> None:
        """Wait until it answers. Raise StageError where it ends, or takes longer than it may."""
        while not is_there(f"{self.url}/health"):
            self.check()
            if time.monotonic() > self._ends:
                problem = f"the server does not answer {self._serving.start:g} seconds after it was started"
                raise StageError(problem, self._where, f"raise `start`, or look at {self._log}")
            time.sleep(POLL)

    def check(self) -> None:
        """Raise StageError where it is no longer there."""
        status = self._process.poll()
        if status is not None:
            told = last_line(self._log)
            problem = f"the server has ended with status {status}" + (f" ({told})" if told else "")
            raise StageError(problem, self._where, f"{self._log} tells why; then the same command goes on")

    def close(self) -> None:
        """End it, and what it has started."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin
        self._process.stdin.close()


def check_command(serving: Serving, where: str) -> None:
    """Raise RecipeError where a server is to be started by a command that is not there."""
    if serving.vllm and shutil.which(serving.vllm) is None:
        problem = f"there is no command {serving.vllm!r}"
        raise RecipeError(problem, where, "name the vllm of its environment, such as /opt/vllm/bin/vllm")


def environment_of(serving: Serving, ours: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that a server is started in, made of this process's own."""
    kept = {name: value for name, value in ours.items() if name not in LEFT_OUT and not name.startswith(PREFIXES)}
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, serving.gpus))} if serving.gpus else {}
    return kept | SPOKEN | gpus | dict(serving.environment)


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number
