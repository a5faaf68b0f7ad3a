"""A stage in several processes, as the command line starts them: stopped, killed, and gone on with."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from recipe_process import begun, wait_for_steps
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = """
[sources]
base = { policy = "builtin:tiny" }
pairs = { preferences = "builtin:reviews", rows = 400 }
[stage.prefer]
method = "dpo"
dpo.learning_rate = 1e-3
dpo.epochs = 2
"""

MACHINES = """
[one]
[two]
processes = 2
[parted]
processes = 2
sharded = true
[three]
processes = 3
sharded = true
[pair]
nodes = 2
start = "command"
command = ["sh", "-c", "for node in $(seq {nodes}); do {run} & done; wait"]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "machines.toml").write_text(MACHINES)
    return tmp_path


def finished(runs: str, machine: str = "two") -> dict[str, list[float]]:
    process = begun(runs, machine)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    (file,) = Path(runs).glob("stages/prefer-*/artifact/model.safetensors")
    return {name: weight.flatten().tolist() for name, weight in load_file(file).items()}


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    below = psutil.Process(process.pid).children(recursive=True)
    return [one for one in below if "alignkit.run.worker" in one.cmdline() and "RANK" in one.environ()]


def stop(runs: str, machine: str) -> None:
    process = begun(runs, machine)
    wait_for_steps(process, runs, 3)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told


def test_two_nodes_make_what_two_processes_make() -> None:
    assert finished("nodes", "pair") == finished("processes", "two")


@pytest.mark.parametrize("machine", ["two", "parted", "pair"])
def test_stopped_and_gone_on_with_it_makes_the_same(machine: str) -> None:
    stop("stopped", machine)

    assert finished("stopped", machine) == finished("whole", machine)


@pytest.mark.parametrize("machine", ["two", "pair"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_all_processes_keeps_what_was_learnt(machine: str, number: int) -> None:
    process = begun("signalled", machine)
    wait_for_steps(process, "signalled", 3)

    runner = psutil.Process(process.pid)
    for one in [runner, *runner.children(recursive=True)]:
        one.send_signal(number)
    process.communicate(timeout=120)

    assert list(Path("signalled").glob("stages/prefer-*.partial/checkpoints/step-*"))


@pytest.mark.parametrize("machine", ["one", "two", "three"])
def test_what_two_processes_with_half_the_weights_each_began_any_number_ends(machine: str) -> None:
    stop("stopped", "parted")

    ended, whole = finished("stopped", machine), finished("whole", "one")

    apart = (abs(a - b) for name in whole for a, b in zip(ended[name], whole[name], strict=True))
    assert max(apart) < 1e-4


@pytest.mark.parametrize("machine", ["two", "parted"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_all_and_leaves_none(rank: int, machine: str) -> None:
    process = begun("killed", machine)
    wait_for_steps(process, "killed", 3)
    workers = workers_of(process)
    assert len(workers) == 2

    next(one for one in workers if one.environ()["RANK"] == str(rank)).kill()
    _, told = process.communicate(timeout=30)

    assert process.returncode not in (0, None)
    assert "error: stage 'prefer'" in told, told
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
    assert finished("killed", machine)
