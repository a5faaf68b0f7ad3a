"""Stages that a machine's command starts: a wrapper of the user's own, a script for a queue, ssh."""

import os
import re
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from light_recipes import PLUGIN, desk_with, dotted, light_recipe

from alignkit import Event, Metrics, StageError, StageStarted, Warned
from alignkit.contract.events import Doing
from alignkit.errors import RecipeError
from alignkit.plan.plan import Plan
from alignkit.plan.planner import make_plan
from alignkit.run.command_words import filled
from alignkit.run.launch_folder import LaunchFolder
from alignkit.run.machine import Machine, read_machine
from alignkit.run.run_result import RunResult
from alignkit.run.runner import StoppedError, run_plan
from alignkit.run.stopping import Stop
from alignkit.store.results import find_finished

RUN = ("{run}",)
GUIDE = "".join(
    re.findall(r"```toml\n(.*?)```", (Path(__file__).parents[2] / "docs" / "scale.md").read_text(), re.DOTALL)
)
MACHINES = list(tomllib.loads(GUIDE))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a recipe in it."""
    return desk_with(light_recipe(), tmp_path, monkeypatch)


def plan(**overrides: object) -> Plan:
    return make_plan("light.toml", until="first", set=dotted(overrides), plugins=[PLUGIN])


def slow() -> Plan:
    return plan(first__count__seconds=0.1, first__count__steps=20)


def run(made: Plan, command: tuple[str, ...] = RUN, *, requeue: int | None = None, **more: Any) -> RunResult:
    machine = Machine(start="command", command=command, requeue=requeue)
    return run_plan(made, machine=machine, **more)


def content(made: Plan, runs: str = "runs") -> str:
    finished = find_finished(Path(runs).resolve(), "first", str(made.stage("first").fingerprint))
    assert finished
    return finished.content


def at_step(step: int, do: Callable[[], None]) -> Callable[[Event], None]:
    """Return an observer that does something once a stage has told of this step."""

    def hear(event: Event) -> None:
        if isinstance(event, Metrics) and event.step == step:
            do()

    return hear


def signal_nodes(number: int) -> None:
    for node in Path("runs").glob("cache/launch/*/node-*.json"):
        os.kill(int(node.stem.rpartition("-")[2]), number)


def test_it_makes_what_a_stage_that_is_started_here_makes() -> None:
    made, heard = plan(), list[Event]()
    run(made, observers=[heard.append])
    run_plan(made, runs="local", inline=True)

    assert content(made) == content(made, "local")
    assert [event.step for event in heard if isinstance(event, Metrics)] == [1, 2, 3]
    assert [event.what for event in heard if isinstance(event, Doing)] == ["waiting for a node"]
    assert list(Path("runs/cache/launch").iterdir()) == []


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_keeps_what_was_learnt_and_goes_on_afterwards() -> None:
    made, stop = slow(), Stop()

    with pytest.raises(StoppedError):
        run(made, stop=stop, observers=[at_step(3, lambda: stop.signals.append(signal.SIGTERM))])

    heard: list[Event] = []
    run(made, observers=[heard.append])
    assert [event.resumed for event in heard if isinstance(event, StageStarted)] == [True]
    steps = [event.step for event in heard if isinstance(event, Metrics)]
    assert steps == list(range(1, 21))


def test_who_insists_does_not_wait_for_the_stage() -> None:
    made, stop = plan(first__count__seconds=30, first__count__steps=2), Stop()
    twice = [signal.SIGTERM, signal.SIGTERM]

    with pytest.raises(StoppedError):
        run(made, stop=stop, observers=[lambda event: stop.signals.extend(twice)])


@pytest.mark.slow
def test_a_stage_that_a_scheduler_ends_is_started_again_and_goes_on() -> None:
    made, heard = slow(), list[Event]()
    ended = iter([lambda: signal_nodes(signal.SIGUSR1)])

    run(made, observers=[at_step(3, lambda: next(ended, lambda: None)()), heard.append])
    run_plan(slow(), runs="local", inline=True)

    (warned,) = [event for event in heard if isinstance(event, Warned)]
    assert warned.problem == f"it was ended by SIGUSR1 on {os.uname().nodename}"
    assert warned.remedy.startswith("it is started again, and goes on from step ")
    assert content(made) == content(made, "local")


@pytest.mark.slow
def test_it_is_not_started_again_without_end() -> None:
    begun = "ls {folder}/started.json 2>/dev/null"
    kill = ("sh", "-c", f"{{run}} & until {begun}; do sleep 0.1; done; rm {{folder}}/started.json; kill $!; wait $!")

    with pytest.raises(StageError) as raised:
        run(plan(first__count__seconds=30), kill, requeue=1)

    assert str(raised.value) == (
        "stage 'first': it was ended 2 times in a row without having kept anything new, at last by SIGTERM on "
        f"{os.uname().nodename}; give it more time, or let it keep what it has learnt more often; the same command "
        "goes on"
    )


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (("qsubx", "{run}"), "qsubx cannot be run (No such file or directory)"),
        (
            ("sh", "-c", "echo no such queue; exit 3; {run}"),
            "the machine's command ended with status 3 before the stage began, its last line was: no such queue",
        ),
    ],
)
def test_a_command_that_starts_nothing_is_told(command: tuple[str, ...], problem: str) -> None:
    with pytest.raises(StageError) as raised:
        run(plan(), command)

    assert (raised.value.where, raised.value.problem) == ("stage 'first'", problem)


@pytest.mark.slow
def test_a_command_that_does_not_wait_is_told_and_its_stage_is_ended() -> None:
    made = plan(first__count__seconds=30)

    with pytest.raises(StageError) as raised:
        run(made, ("sh", "-c", "{run} & sleep 2"))

    assert raised.value.problem == "the machine's command ended with status 0 while the stage was running"


def test_a_failure_is_told_as_it_is_here() -> None:
    with pytest.raises(StageError) as raised:
        run(plan(first__count__fail="user"))

    assert (raised.value.problem, raised.value.status) == ("the loss is NaN", 76)


def test_a_node_that_is_late_does_not_run_a_stage_that_nobody_waits_for(tmp_path: Path) -> None:
    with pytest.raises(StageError) as raised:
        LaunchFolder.open(tmp_path / "gone")

    assert raised.value.problem == "nobody waits for this stage any more"


def test_a_node_that_does_not_see_the_runs_is_named() -> None:
    with pytest.raises(StageError) as raised:
        LaunchFolder.open(Path("/nowhere/runs/cache/launch/first-01234567-89abcdef"))

    assert str(raised.value) == (
        f"/nowhere/runs/cache/launch: {os.uname().nodename} does not see it; "
        "let all nodes see one folder for runs, at one path (--runs)"
    )


def test_what_runs_on_a_node_is_one_word_or_several() -> None:
    words = filled(("ssh", "{name}", "cd /a && {run}", "--", "{run}"), ["python", "a b"], {"name": "first-1"})

    assert words == ["ssh", "first-1", "cd /a && python 'a b'", "--", "python", "a b"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('start = "command"', "command runs no stage: write {run} where the command stands that runs it on a node"),
        ('command = ["{run}"]', 'command needs start = "command"'),
        ('start = "command"\ncommand = ["{rn}"]', "command has no placeholder {rn}; did you mean 'run'?"),
        (
            'start = "command"\ncommand = ["{run}", "{gpu}"]',
            "command has no placeholder {gpu}; there are {run}, {folder}, {nodes}, {processes}, {name}; "
            "a brace is written twice",
        ),
        (
            'start = "command"\ncommand = ["{run}", "${HOME"]',
            "command: '${HOME' has a single brace; a brace is written twice",
        ),
        ("requeue = 1", 'nothing is started again with start = "here"; leave requeue out'),
    ],
)
def test_a_command_that_cannot_be_is_refused(here: Path, lines: str, message: str) -> None:
    (here / "machines.toml").write_text(f"[queue]\n{lines}\n")

    with pytest.raises(RecipeError) as raised:
        read_machine("queue", here)

    assert str(raised.value) == f"{here / 'machines.toml'}: queue: {message}"


@pytest.mark.parametrize("name", MACHINES)
def test_the_machines_of_the_guide_are_read(here: Path, name: str) -> None:
    (here / "machines.toml").write_text(GUIDE)

    assert read_machine(name, here) != Machine()


def test_a_machine_with_a_command_is_read_and_told(here: Path) -> None:
    text = '[queue]\nnodes = 2\nprocesses = 8\nstart = "command"\ncommand = ["{run}"]\n'
    (here / "machines.toml").write_text(text)

    machine = read_machine("queue", here)

    assert (machine.world, machine.told) == (
        16,
        "2 nodes with 8 processes each, among which weights are cut up where they do not fit one, "
        "started by the machine's command",
    )
    assert Machine.model_validate_json(machine.model_dump_json()) == machine
