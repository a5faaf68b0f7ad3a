"""A server that a stage has started ends with it, and so does what the server has started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from alignkit.serve.server import Server
from alignkit.serve.serving import Serving

STARTS_ANOTHER = """#!/bin/sh
sleep 600 &
echo $! > another
wait
"""
STAGE = """
import sys
from pathlib import Path
from alignkit.serve.server import Server
from alignkit.serve.serving import Serving
server = Server(Serving(vllm=sys.argv[1]), ["model"], Path("log"), "machines.toml")
sys.stdin.read()
"""


@pytest.fixture
def vllm(tmp_path: Path) -> str:
    """Write a command that starts another one, as vLLM does, and never answers."""
    command = tmp_path / "vllm"
    command.write_text(STARTS_ANOTHER)
    command.chmod(0o755)
    return str(command)


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the folder, and leave nothing behind there that still runs."""
    monkeypatch.chdir(tmp_path)
    yield
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        os.kill(int(Path("another").read_text()), signal.SIGKILL)


def another() -> int:
    """Wait for the number of the process that the server has started."""
    for _ in range(500):
        with suppress(FileNotFoundError, ValueError):
            return int(Path("another").read_text())
        time.sleep(0.01)
    raise TimeoutError("the server starts nothing")


def ends(process: int) -> bool:
    for _ in range(500):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_a_server_ends_with_all_that_it_has_started(vllm: str) -> None:
    server = Server(Serving(vllm=vllm), ["model"], Path("log"), "machines.toml")
    process = another()

    server.close()

    assert ends(process)


def test_a_server_ends_when_its_stage_is_killed(vllm: str) -> None:
    stage = subprocess.Popen([sys.executable, "-c", STAGE, vllm], stdin=subprocess.PIPE)
    process = another()

    stage.kill()
    stage.communicate()

    assert ends(process)
