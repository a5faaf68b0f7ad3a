"""A run that is watched from another terminal, by its files alone."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from light_recipes import PLUGIN, light_recipe
from terminal import on_terminal

from alignkit import Metrics, StageFinished, StageStarted, run_recipe
from alignkit.run.event_log import EventLog, followed
from alignkit.store import rundir
from alignkit.store.runs import open_run

RECIPE = light_recipe(first="count.steps = {steps}\ncount.seconds = 0.1")
ALIGNKIT = [sys.executable, "-m", "alignkit"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a recipe whose first stage takes long, until its first step is told."""
    (here / "light.toml").write_text(RECIPE.format(steps=600))
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*ALIGNKIT, "recipe", "light.toml", "-p", str(PLUGIN)], stdout=quiet, stderr=quiet)
    while not any('"Metrics"' in file.read_text() for file in here.glob(f"runs/light/*/{rundir.EVENTS}")):
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def ended() -> None:
    """Run a recipe to its end."""
    Path("light.toml").write_text(RECIPE.format(steps=2))
    run_recipe("light.toml", plugins=[PLUGIN], inline=True)


def watched(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*ALIGNKIT, "watch", *words], capture_output=True, text=True, check=False)


def test_a_running_run_is_shown_as_on_its_own_terminal_and_ends_with_its_status(
    run: "subprocess.Popen[bytes]",
) -> None:
    with on_terminal([*ALIGNKIT, "watch"]) as terminal:
        terminal.wait_for("[1 of 2] first count ")
        run.send_signal(signal.SIGTERM)
        status = terminal.wait()

    assert status == run.wait() == 143
    assert not terminal.screen.overflowed
    lines = "\n".join(terminal.screen.lines)
    assert "first: count begins" in lines
    assert "error: stage 'first': stopped; the same command goes on from here" in lines


def test_watching_changes_nothing_and_leaves_the_run_alone(run: "subprocess.Popen[bytes]", here: Path) -> None:
    with on_terminal([*ALIGNKIT, "watch"]) as terminal:
        terminal.wait_for("[1 of 2] first count ")
        terminal.press("\x03")
        status = terminal.wait()

    assert (status, run.poll()) == (130, None)


def test_a_run_whose_process_is_killed_has_died(run: "subprocess.Popen[bytes]") -> None:
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    psutil.wait_procs(children, timeout=5)

    done = watched()

    assert done.returncode == 1
    folder = open_run("runs/light").folder
    problem = "the run died: its process is gone; the command that began it goes on from here"
    assert done.stderr.splitlines()[-1] == f"error: {folder}: {problem}"


def test_a_run_that_is_over_shows_its_result_at_once(here: Path) -> None:
    ended()
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}

    done = watched("light")

    assert done.returncode == 0
    assert done.stderr == f"watching {open_run('runs/light').id} (finished)\n"
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["stage", "first", "second", "verdict:", "report:"]
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_watching_in_json_gives_the_events_of_the_run() -> None:
    ended()

    done = watched("--json")

    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events[0] == "StageStarted"
    assert events[-1] == "StageFinished"
    assert events.count("Metrics") == 2


def test_events_come_back_as_they_were_told(here: Path) -> None:
    ended()
    folder = open_run("runs/light").folder

    events = [dated.event for dated in followed(folder)]

    assert isinstance(events[0], StageStarted)
    assert isinstance(events[-1], StageFinished)
    assert [event.values for event in events if isinstance(event, Metrics)] == [{"loss": 1.0}, {"loss": 0.5}]


def test_a_damaged_line_and_one_of_another_version_are_left_out(here: Path) -> None:
    ended()
    folder = open_run("runs/light").folder
    with (folder / rundir.EVENTS).open("a") as file:
        file.write('{"at": 1, "event": "Unheard"}\n{"at": 1, "eve\n[]\n')
    EventLog(folder)(Metrics("second", 1, None, {"loss": float("nan")}))

    *_, last = (dated.event for dated in followed(folder))

    assert isinstance(last, Metrics)
    assert last.values["loss"] != last.values["loss"]
