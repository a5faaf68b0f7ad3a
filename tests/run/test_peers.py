"""A process of a stage ends where another one fails or is gone, whatever it waits for."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alignkit.errors import MemoryLimitError, StageError
from alignkit.run.failures import Failure
from alignkit.run.machine import Machine
from alignkit.run.order import Order
from alignkit.run.peers import be_seen, first_is_on
from alignkit.store.rundir import FAILURE, NODES, STARTED

WAITING = """
import sys, time
from pathlib import Path
from alignkit.run import peers
from alignkit.run.order import Order
from alignkit.store.heartbeat import Heartbeat
peers.POLL, peers.GRACE = 0.05, 0.2
partial = Path(sys.argv[1])
order = Order.model_validate_json((partial / "order.json").read_text())
with peers.watched(partial, order, 0, Heartbeat(0.05, 0.4)):
    (partial / "there").touch()
    time.sleep(float(sys.argv[2]))
"""


def order(folder: Path, nodes: int = 1) -> Order:
    machine = Machine(start="command", command=("{run}",), nodes=nodes)
    facts = {"method": "dpo", "settings": {"batch": 8}, "inputs": {}, "seed": 0, "fingerprint": "f"}
    made = Order(attempt=folder.name, stage="one", machine=machine, **facts)
    (folder / "order.json").write_text(made.model_dump_json())
    return made


def start(folder: Path, place: Path, seconds: float) -> "subprocess.Popen[bytes]":
    env = {"TMPDIR": str(place), "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    began = subprocess.Popen([sys.executable, "-c", WAITING, str(folder), str(seconds)], env=env)
    while not (folder / "there").exists():
        assert began.poll() is None
        time.sleep(0.01)
    return began


def told(folder: Path) -> Failure:
    return Failure.model_validate(json.loads((folder / FAILURE).read_text()))


def test_one_that_fails_ends_the_others_with_its_message(tmp_path: Path) -> None:
    made = order(tmp_path)
    waiting = start(tmp_path, tmp_path, 60)
    failure = Failure.of(made.attempt, StageError.status, "the rewards are all the same")
    (tmp_path / FAILURE).write_text(failure.model_dump_json())

    assert waiting.wait(10) == StageError.status
    assert told(tmp_path) == failure


def test_one_that_is_gone_without_a_word_ends_the_others(tmp_path: Path) -> None:
    made = order(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    waiting = start(tmp_path, tmp_path, 60)
    (tmp_path / f"alignkit-{made.attempt}" / "1").write_text(str(gone.pid))

    assert waiting.wait(10) == MemoryLimitError.status
    assert "another of the stage's processes was lost" in told(tmp_path).problems[0][0]


def test_ones_that_work_and_that_have_ended_are_left_alone(tmp_path: Path) -> None:
    made = order(tmp_path)
    old = Failure.of("an earlier attempt", StageError.status, "out of luck")
    (tmp_path / FAILURE).write_text(old.model_dump_json())
    waiting = start(tmp_path, tmp_path, 0.6)
    beside = tmp_path / f"alignkit-{made.attempt}" / "1"
    beside.write_text(str(waiting.pid))
    beside.unlink()

    assert waiting.wait(10) == 0
    assert not beside.parent.exists()
    assert told(tmp_path) == old


def beside(folder: Path, made: Order) -> Path:
    """Lay what another node of the stage is heard by."""
    (folder / NODES).mkdir()
    file = folder / NODES / f"{made.attempt}-1"
    file.write_text("far")
    return file


def test_a_node_that_is_not_heard_of_ends_the_others(tmp_path: Path) -> None:
    beside(tmp_path, order(tmp_path, nodes=2))
    waiting = start(tmp_path, tmp_path, 60)

    assert waiting.wait(10) == StageError.status
    problem, _, remedy = told(tmp_path).problems[0]
    assert problem == "nothing is heard of the stage's processes on far"
    assert remedy == "look whether that computer works, and sees the disk; the same command goes on"


def test_nodes_that_are_heard_of_and_that_have_ended_are_left_alone(tmp_path: Path) -> None:
    other = beside(tmp_path, order(tmp_path, nodes=2))
    waiting = start(tmp_path, tmp_path, 1.0)
    for _ in range(10):
        other.touch()
        time.sleep(0.05)
    other.unlink()

    assert waiting.wait(10) == 0
    assert not list((tmp_path / NODES).iterdir())
    assert not (tmp_path / FAILURE).exists()


def test_a_node_that_does_not_see_what_the_first_process_writes_is_named(tmp_path: Path) -> None:
    made = order(tmp_path, nodes=2)
    be_seen(tmp_path, made.model_copy(update={"attempt": "an earlier one"}))

    with pytest.raises(StageError) as raised:
        first_is_on(tmp_path, made, patience=0.1)

    assert str(raised.value) == (
        f"{tmp_path}: {os.uname().nodename} does not see what the stage's first process has written; "
        "let all nodes see one folder for runs, at one path (--runs)"
    )


def test_a_first_process_that_is_seen_may_take_its_time(tmp_path: Path) -> None:
    made = order(tmp_path, nodes=2)
    be_seen(tmp_path, made)

    def begin() -> None:
        (tmp_path / STARTED).write_text(json.dumps({"attempt": made.attempt}))

    threading.Timer(0.5, begin).start()

    assert first_is_on(tmp_path, made, patience=0.1)
    assert not first_is_on(tmp_path / "renamed", made)
