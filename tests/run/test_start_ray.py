"""Stages that Ray starts, on a cluster that it makes of this computer."""

import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from recipe_process import begun, wait_for_steps

from alignkit.errors import RecipeError
from alignkit.run.machine import read_machine
from alignkit.run.start_ray import RayLauncher, fits
from alignkit.store.durable import hash_file

cluster = pytest.mark.skipif(not find_spec("ray"), reason='Ray is not installed: pip install "alignkit[ray]"')

RECIPE = """
[sources]
base = { policy = "builtin:tiny" }
pairs = { preferences = "builtin:reviews", rows = 160 }
[stage.prefer]
method = "dpo"
dpo.learning_rate = 1e-3
dpo.epochs = 2
"""

MACHINES = """
[two]
processes = 2
[ray]
nodes = 2
start = "ray"
ray = { resources = { CPU = 1 } }
[large]
nodes = 2
start = "ray"
ray = { resources = { CPU = 1, GPU = 8 } }
[gone]
start = "ray"
ray = { address = "127.0.0.1:9", resources = { CPU = 1 } }
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "machines.toml").write_text(MACHINES)
    return tmp_path


@pytest.mark.parametrize(
    ("machine", "problem"),
    [
        ('start = "ray"', 'start = "ray" and ray = { resources = { CPU = 8 } } need each other'),
        ("ray = { resources = { CPU = 1 } }", 'start = "ray" and ray = { resources = { CPU = 8 } } need each other'),
        (
            'start = "ray"\nprocesses = 8\nray = { resources = { GPU = 4 } }',
            "ray.resources has 4 GPU for 8 processes",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(here: Path, machine: str, problem: str) -> None:
    (here / "machines.toml").write_text(f"[it]\n{machine}\n")

    with pytest.raises(RecipeError) as raised:
        read_machine("it", here)

    assert problem in str(raised.value)


@pytest.mark.parametrize("resources", ["", "CPU = 0"])
def test_nothing_is_asked_for_nothing(here: Path, resources: str) -> None:
    (here / "machines.toml").write_text(f'[it]\nstart = "ray"\nray = {{ resources = {{ {resources} }} }}\n')

    with pytest.raises(RecipeError, match=r"it\.ray\.resources"):
        read_machine("it", here)


def test_where_ray_is_missing_the_remedy_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(RecipeError) as raised:
        RayLauncher(read_machine("ray", here), offline=True)

    assert str(raised.value) == 'machines.toml: Ray is not installed; pip install "alignkit[ray]"'


def test_a_cluster_is_large_enough_where_its_idle_nodes_would_hold_all_tasks() -> None:
    nodes = [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 16.0}]

    assert fits({"GPU": 8}, 2, nodes)
    assert fits({"GPU": 4, "CPU": 32}, 4, nodes)
    assert not fits({"GPU": 8}, 3, nodes)
    assert not fits({"GPU": 4, "CPU": 40}, 4, nodes)
    assert not fits({"TPU": 1}, 1, nodes)


def ended(process: "subprocess.Popen[str]", status: int = 0) -> str:
    """Wait for the end, and return what was told."""
    _, told = process.communicate(timeout=300)
    assert process.returncode == status, told
    return told


def made(runs: str, machine: str = "ray") -> str:
    """Run the recipe to its end, and return a hash of the weights."""
    with begun(runs, machine) as process:
        ended(process)
    (file,) = Path(runs).glob("stages/prefer-*/artifact/model.safetensors")
    return hash_file(file)


def below(process: "subprocess.Popen[str]", fits: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    return [one for one in psutil.Process(process.pid).children(recursive=True) if fits(one)]


def is_rank(process: psutil.Process) -> bool:
    return "alignkit.run.worker" in process.cmdline() and "RANK" in process.environ()


def is_task(process: psutil.Process) -> bool:
    return any("alignkit.run.node" in child.cmdline() for child in process.children())


@cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_make_what_two_processes_make_also_if_they_are_stopped_between() -> None:
    with begun("stopped", "ray") as process:
        wait_for_steps(process, "stopped", 3)
        process.send_signal(signal.SIGINT)
        assert "stopped" in ended(process, 130)
    left = list(Path("stopped").glob("stages/prefer-*.partial/checkpoints/step-*"))

    whole = made("whole", "two")

    assert left
    assert made("stopped") == made("ray") == whole


@cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_is_killed_ends_all_and_the_same_command_goes_on() -> None:
    with begun("killed", "ray") as process:
        wait_for_steps(process, "killed", 3)
        ranks = below(process, is_rank)
        assert len(ranks) == 2

        ranks[1].kill()

        told = ended(process, 71)
    assert "another of the stage's processes was lost" in told
    _, alive = psutil.wait_procs(ranks, timeout=5)
    assert alive == []
    assert made("killed")


@cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_where_ray_loses_a_task_the_stage_is_started_again() -> None:
    with begun("lost", "ray") as process:
        wait_for_steps(process, "lost", 3)
        ranks, tasks = below(process, is_rank), below(process, is_task)
        assert len(tasks) == 2

        tasks[0].kill()

        told = ended(process)
    assert "warning: prefer: it was ended by Ray (WorkerCrashedError)" in told
    assert not any(rank.is_running() for rank in ranks)
    assert list(Path("lost").glob("stages/prefer-????????"))


@cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_that_is_too_small_or_not_there_is_told() -> None:
    with begun("large", "large") as process:
        small = ended(process, 1)
    with begun("gone", "gone") as process:
        gone = ended(process, 1)

    assert "error: the Ray cluster is too small for 1 x 1 CPU + 8 GPU; its nodes have " in small
    assert "error: Ray cannot be reached at 127.0.0.1:9 ([Errno 111] Connection refused); look at it by" in gone
