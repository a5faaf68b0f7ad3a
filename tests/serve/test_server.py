"""Servers that a stage starts: they answer when they are ready, end with it, and say why they do not."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignkit.errors import AlignkitError
from alignkit.http import is_there
from alignkit.serve.server import Server, environment_of
from alignkit.serve.serving import Serving

SPEAKS = """#!{python}
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
print(sys.argv[1:], os.environ["VLLM_SERVER_DEV_MODE"], os.environ.get("RANK"), flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
FAILS = """#!{python}
print("loading"); print("ValueError: no such model"); raise SystemExit(3)
"""
Command = Callable[[str], str]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    def write(code: str) -> str:
        file = tmp_path / "vllm"
        file.write_text(code.format(python=sys.executable))
        file.chmod(0o755)
        return str(file)

    return write


@pytest.fixture
def started(command: Command, tmp_path: Path) -> Iterator[Server]:
    serving = Serving(vllm=command(SPEAKS), more=("--enforce-eager",))
    server = Server(serving, ["model"], tmp_path / "log", "machines.toml, rollouts")
    yield server
    server.close()


def test_a_server_is_started_asked_and_ended(started: Server, tmp_path: Path) -> None:
    started.wait()
    started.check()
    words = (tmp_path / "log").read_text()
    started.close()

    assert words.startswith("['serve', 'model', '--host', '127.0.0.1', '--port', ")
    assert "'--enforce-eager'] 1 None" in words
    assert not is_there(f"{started.url}/health")


def test_a_server_that_ends_says_why(command: Command, tmp_path: Path) -> None:
    server = Server(Serving(vllm=command(FAILS)), [], tmp_path / "log", "machines.toml, rollouts")

    with pytest.raises(AlignkitError) as refusal:
        server.wait()
    server.close()

    assert refusal.value.problem == "the server has ended with status 3 (ValueError: no such model)"
    assert refusal.value.where == "machines.toml, rollouts"


def test_a_command_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AlignkitError) as refusal:
        Server(Serving(vllm="/nowhere/vllm"), [], tmp_path / "log", "machines.toml, rollouts")

    assert refusal.value.problem == "there is no command '/nowhere/vllm'"


def test_a_server_does_not_outlive_what_started_it(command: Command, tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom alignkit.serve.server import Server\n"
        "from alignkit.serve.serving import Serving\n"
        "server = Server(Serving(vllm=sys.argv[1]), [], Path(sys.argv[2]), '')\nserver.wait()\n"
        "print(server.url, flush=True)\ntime.sleep(60)\n"
    )
    arguments = [sys.executable, "-c", code, command(SPEAKS), str(tmp_path / "log")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        url = child.stdout.readline().strip()
        was_there = is_there(f"{url}/health")
        child.send_signal(signal.SIGKILL)
    ends = time.monotonic() + 10
    while is_there(f"{url}/health") and time.monotonic() < ends:
        time.sleep(0.05)

    assert was_there
    assert not is_there(f"{url}/health")


def test_a_server_is_not_told_of_the_processes_of_the_stage() -> None:
    ours = {"RANK": "1", "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "y", "PYTHONPATH": "z", "HOME": "/root"}

    found = environment_of(Serving(vllm="vllm", gpus=(6, 7), environment={"DO_NOT_TRACK": "0"}), ours)

    assert {name for name in ours if name in found} == {"HOME"}
    assert found["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert found["DO_NOT_TRACK"] == "0"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, "a server is started by `vllm`, or listens at `urls`; give one of the two"),
        ({"vllm": "vllm", "urls": ("u",)}, "a server is started by `vllm`, or listens at `urls`; give one of the two"),
        (
            {"urls": ("u",), "gpus": (1,)},
            "gpus belongs to a server that is started, and those at urls run; leave it out",
        ),
    ],
)
def test_a_server_is_there_in_one_way(said: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match="1 validation error") as refusal:
        Serving.model_validate(said)

    assert problem in str(refusal.value)
