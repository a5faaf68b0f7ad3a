"""Stages that SLURM starts, by submitit and commands that behave as SLURM's do."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import end_job, on_path
from light_recipes import PLUGIN, desk_with, dotted, light_recipe

from alignkit import Event, Metrics, StageError, StageStarted, Warned
from alignkit.contract.events import Doing
from alignkit.errors import RecipeError
from alignkit.plan.plan import Plan
from alignkit.plan.planner import make_plan
from alignkit.run.machine import Machine, Slurm, read_machine
from alignkit.run.run_result import RunResult
from alignkit.run.runner import StoppedError, run_plan
from alignkit.run.start_slurm import missing
from alignkit.run.stopping import Stop
from alignkit.store.results import find_finished

SLURM = Slurm(time="1:00:00")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a recipe in it."""
    return desk_with(light_recipe(), tmp_path, monkeypatch)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return on_path(tmp_path, monkeypatch)


def plan(**overrides: object) -> Plan:
    return make_plan("light.toml", until="first", set=dotted(overrides), plugins=[PLUGIN])


def slow() -> Plan:
    return plan(first__count__seconds=0.1, first__count__steps=20)


def run(made: Plan, slurm: Slurm = SLURM, **more: Any) -> RunResult:
    return run_plan(made, machine=Machine(start="slurm", slurm=slurm), **more)


def content(made: Plan, runs: str = "runs") -> str:
    finished = find_finished(Path(runs).resolve(), "first", str(made.stage("first").fingerprint))
    assert finished
    return finished.content


def at_step(step: int, do: Callable[[], None]) -> Callable[[Event], None]:
    """Return an observer that does something once, when a stage has told of this step."""
    left = [do]

    def hear(event: Event) -> None:
        if isinstance(event, Metrics) and event.step == step and left:
            left.pop()()

    return hear


def test_it_makes_what_a_stage_that_is_started_here_makes(jobs: Path) -> None:
    made, heard = plan(), list[Event]()
    run(made, observers=[heard.append])
    run_plan(made, runs="local", inline=True)

    assert content(made) == content(made, "local")
    assert [event.step for event in heard if isinstance(event, Metrics)] == [1, 2, 3]
    waits = [event.what for event in heard if isinstance(event, Doing)]
    assert waits[0] == "waiting for SLURM: job 1 is submitted"


def test_what_is_submitted_asks_for_what_the_machine_says(jobs: Path) -> None:
    slurm = Slurm(
        time="12:00:00",
        partition="nowhere",
        gpus_per_node=8,
        cpus_per_node=64,
        setup=("source .venv/bin/activate",),
        notice=300,
        more={"account": "lab", "exclusive": True},
    )
    machine = Machine(nodes=2, processes=8, start="slurm", slurm=slurm)

    with pytest.raises(StageError) as raised:
        run_plan(plan(), machine=machine)

    text = (jobs / "1.sh").read_text()
    assert [line for line in text.splitlines() if "/launch/" not in line and "job-name" not in line] == [
        "#!/bin/bash",
        "",
        "# Parameters",
        "#SBATCH --account=lab",
        "#SBATCH --cpus-per-task=64",
        "#SBATCH --exclusive",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --no-requeue",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --open-mode=append",
        "#SBATCH --partition=nowhere",
        "#SBATCH --signal=TERM@300",
        "#SBATCH --time=12:00:00",
        "#SBATCH --wckey=submitit",
        "",
        "# setup",
        "source .venv/bin/activate",
        "",
        "# command",
        "export SUBMITIT_EXECUTOR=slurm",
    ]
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    assert " --kill-on-bad-exit=1 --cpus-per-task=64 " in line
    assert str(raised.value) == (
        "stage 'first': sbatch refused it: sbatch: error: invalid partition specified: nowhere; "
        "correct the machine's slurm in machines.toml"
    )


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_keeps_what_was_learnt_and_goes_on_afterwards(jobs: Path) -> None:
    made, stop = slow(), Stop()

    with pytest.raises(StoppedError):
        run(made, stop=stop, observers=[at_step(3, lambda: stop.signals.append(signal.SIGTERM))])

    heard: list[Event] = []
    run(made, observers=[heard.append])
    assert [event.resumed for event in heard if isinstance(event, StageStarted)] == [True]
    assert [event.step for event in heard if isinstance(event, Metrics)] == list(range(1, 21))


@pytest.mark.slow
def test_who_insists_does_not_wait_for_the_stage_and_its_job_is_cancelled(jobs: Path) -> None:
    made, stop = plan(first__count__seconds=30, first__count__steps=2), Stop()
    begun = threading.Timer(5, lambda: stop.signals.extend([signal.SIGTERM, signal.SIGTERM]))
    begun.start()

    with pytest.raises(StoppedError):
        run(made, stop=stop)

    assert (jobs / "1.state").read_text() == "CANCELLED"


@pytest.mark.slow
def test_a_stage_whose_time_is_over_is_submitted_again_and_goes_on(jobs: Path) -> None:
    made, heard = slow(), list[Event]()
    over = at_step(3, lambda: end_job(jobs, 1, "TIMEOUT", signal.SIGTERM))

    run(made, observers=[over, heard.append])
    run_plan(slow(), runs="local", inline=True)

    (warned,) = [event for event in heard if isinstance(event, Warned)]
    assert warned.problem == "it was ended by SLURM (TIMEOUT)"
    assert warned.remedy.startswith("it is started again, and goes on from step ")
    assert content(made) == content(made, "local")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        pytest.param(
            "CANCELLED",
            "stage 'first': job 1 of SLURM was cancelled; the same command submits it again",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "OUT_OF_MEMORY",
            "stage 'first': it was killed by the system, perhaps because memory ran out; try --set "
            "first.count.batch=4; see runs/stages/first-{}.partial/log.txt",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_job_that_was_ended_for_good_is_told(jobs: Path, state: str, message: str) -> None:
    made = plan(first__count__seconds=0.2, first__count__steps=200)
    kill = at_step(1, lambda: end_job(jobs, 1, state, signal.SIGKILL))

    with pytest.raises(StageError) as raised:
        run(made, observers=[kill])

    assert str(raised.value) == message.format(str(made.stage("first").fingerprint)[:8])


@pytest.mark.slow
def test_a_node_that_is_lost_is_replaced(jobs: Path) -> None:
    made, heard = plan(first__count__seconds=0.2, first__count__steps=20), list[Event]()
    lost = at_step(2, lambda: end_job(jobs, 1, "NODE_FAIL", signal.SIGKILL))

    run(made, observers=[lost, heard.append])

    (warned,) = [event for event in heard if isinstance(event, Warned)]
    assert warned.problem == "it was ended by SLURM (NODE_FAIL)"


def test_a_job_that_waits_is_told_and_taken_from_the_queue_when_the_run_is_stopped(jobs: Path) -> None:
    stop, heard = Stop(), list[Event]()

    def hear(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Doing) and "pending" in event.what:
            stop.signals.append(signal.SIGINT)

    with pytest.raises(StoppedError):
        run(plan(), Slurm(time="60", partition="full"), stop=stop, observers=[hear])

    assert [event.what for event in heard if isinstance(event, Doing)][-1] == (
        "waiting for SLURM: job 1 is pending (Resources)"
    )
    assert (jobs / "1.state").read_text() == "CANCELLED"


def test_a_job_that_ends_before_the_stage_begins_is_told(jobs: Path) -> None:
    with pytest.raises(StageError) as raised:
        run(plan(), Slurm(time="60", setup=("exit 3",)))

    assert raised.value.problem == "job 1 of SLURM ended (COMPLETED) before it began"


def test_what_is_missing_for_slurm_is_told_before_anything_runs() -> None:
    with pytest.raises(RecipeError) as raised:
        run(plan())

    assert str(raised.value) == (
        "machines.toml: sbatch of SLURM is not on the PATH; give commands on a login node of the cluster"
    )
    assert [problem for problem, _ in missing()][1:] == [
        f"{command} of SLURM is not on the PATH" for command in ("srun", "squeue", "scancel")
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('start = "slurm"', 'start = "slurm" and slurm = { time = "1:00:00" } need each other'),
        ('slurm = { time = "60" }', 'start = "slurm" and slurm = { time = "1:00:00" } need each other'),
        (
            'start = "slurm"\nslurm = { time = "60", more = { nodes = 2 } }',
            "more cannot have 'nodes'; the machine's nodes says it",
        ),
    ],
)
def test_what_slurm_cannot_be_asked_for_is_refused(here: Path, lines: str, message: str) -> None:
    (here / "machines.toml").write_text(f"[cluster]\n{lines}\n")

    with pytest.raises(RecipeError) as raised:
        read_machine("cluster", here)

    assert raised.value.problem.partition(": ")[2] == message


def test_a_machine_of_slurm_is_read_and_told(here: Path) -> None:
    text = '[cluster]\nnodes = 4\nprocesses = 8\nstart = "slurm"\n'
    text += '[cluster.slurm]\ntime = "1-0"\nsetup = ["module load x"]\n'
    (here / "machines.toml").write_text(text)

    machine = read_machine("cluster", here)

    assert machine.told.endswith("where they do not fit one, started by SLURM")
    assert machine.slurm == Slurm(time="1-0", setup=("module load x",))
    assert Machine.model_validate_json(machine.model_dump_json()) == machine
