"""Runs whose answers come from a server that the stage starts: in several processes, killed, and gone on with."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from recipe_process import begun
from safetensors.torch import load_file

from alignkit.store.durable import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = """
[sources]
base = { policy = "builtin:tiny" }
prompts = { prompts = "builtin:reviews", rows = 64 }
gold = { reward = "function:reviews-gold" }
[stage.align]
method = "grpo"
grpo.updates = 5
grpo.batch = 16
grpo.answers = 4
grpo.learning_rate = 1e-3
grpo.measured = 8
grpo.generation.max_new_tokens = 12
grpo.patience = 0
"""
MACHINES = """
[one.rollouts]
vllm = "./vllm"
[two]
processes = 2
rollouts = { vllm = "./vllm" }
[parted]
processes = 2
sharded = true
rollouts = { vllm = "./vllm" }
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tests = Path(__file__).parents[1]
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "machines.toml").write_text(MACHINES)
    code = f"#!{sys.executable}\nimport runpy, sys\nsys.path[:0] = {[str(tests), str(tests.parent)]!r}\n"
    (tmp_path / "vllm").write_text(f"{code}runpy.run_path({str(tests / 'engine_server.py')!r}, run_name='__main__')\n")
    (tmp_path / "vllm").chmod(0o755)
    return tmp_path


def metrics(runs: str) -> list[dict[str, float]]:
    lines = [line for path in Path(runs).glob("stages/align-*/metrics.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line)["values"] for line in lines]


def servers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    below = psutil.Process(process.pid).children(recursive=True)
    return [one for one in below if "serve" in one.cmdline() and "-I" not in one.cmdline()]  # that is the leash


@pytest.mark.parametrize("machine", ["one", "two", "parted"])
def test_a_server_answers_for_all_processes(machine: str) -> None:
    process = begun("runs", machine)
    _, told = process.communicate(timeout=300)

    assert process.returncode == 0, told
    assert [one["engine/kl"] <= 1e-6 for one in metrics("runs")] == [True] * 5


def test_a_run_whose_server_is_killed_goes_on_to_the_same_policy() -> None:
    whole = begun("whole", "one")
    whole.communicate(timeout=300)
    process = begun("runs", "one")
    until = time.monotonic() + 120
    while len(metrics("runs")) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    (server,) = servers_of(process)
    server.send_signal(signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    again = begun("runs", "one")
    again.communicate(timeout=300)

    assert process.returncode == 1
    assert "the server has ended with status -9" in told
    assert (whole.returncode, again.returncode) == (0, 0)
    (first,), (second,) = (list(Path(runs).glob("stages/align-*")) for runs in ("whole", "runs"))
    assert read_json(second / "stage.json")["resumed_from"] >= 2
    weights, other = (load_file(folder / "artifact" / "model.safetensors") for folder in (first, second))
    assert all(weights[name].equal(other[name]) for name in weights)
