"""A process of a stage ends where another one fails or is gone, whatever it waits for."""

import json
import subprocess
import sys
import time
from pathlib import Path

from alignkit.errors import MemoryLimitError, StageError
from alignkit.run.failures import Failure
from alignkit.run.order import Order
from alignkit.store.rundir import FAILURE

WAITING = """
import sys, time
from pathlib import Path
from alignkit.run import peers
from alignkit.run.order import Order
peers.POLL, peers.GRACE = 0.05, 0.2
partial = Path(sys.argv[1])
with peers.watched(partial, Order.model_validate_json((partial / "order.json").read_text()), 0):
    (partial / "there").touch()
    time.sleep(float(sys.argv[2]))
"""


def order(folder: Path) -> Order:
    made = Order(
        attempt=folder.name, stage="one", method="dpo", settings={"batch": 8}, inputs={}, seed=0, fingerprint="f"
    )
    (folder / "order.json").write_text(made.model_dump_json())
    return made


def start(folder: Path, place: Path, seconds: float) -> "subprocess.Popen[bytes]":
    began = subprocess.Popen([sys.executable, "-c", WAITING, str(folder), str(seconds)], env={"TMPDIR": str(place)})
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
