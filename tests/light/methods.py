"""Methods that need no torch: they count, wait, fail and stop as they are told."""

import os
import signal
import time
from pathlib import Path
from typing import Literal

from alignkit import NotFiniteError, Settings, Stage, Text, hookimpl, method

How = Literal[
    "no", "bug", "loud", "user", "memory", "disk", "broken disk", "killed", "exit", "nothing", "foreign", "segfault",
    "afterwards",
]  # fmt: skip


class CountSettings(Settings):
    """How to count, and what to do wrong."""

    steps: int = 3
    batch: int = 8
    seconds: float = 0.0
    """Time of each step."""
    fail: How = "no"
    at: int = 2
    """The step at which to fail, unless this is a second attempt."""
    dice: bool = False
    """Make something else each time."""


@method("count")
def count(settings: CountSettings, stage: Stage) -> Text:
    """Count steps, committing each one."""
    latest = stage.latest()
    start = int((latest / "step.txt").read_text()) if latest else 0
    for step in range(start + 1, settings.steps + 1):
        if stage.stopping:
            stage.leave()
        time.sleep(settings.seconds)
        stage.log(step, settings.steps, {"loss": 1 / step})
        if step == settings.at and not start:
            _fail(settings.fail, stage)
        stage.commit(step, lambda folder, step=step: _write(folder / "step.txt", str(step)))  # type: ignore[misc]
    if settings.fail == "afterwards":
        stage.save_rows(Text, [{"text": "a row"}])
        raise ValueError("what is shown cannot be")
    stage.result("steps", 0, settings.steps)
    stage.sample({"prompt": "how far?", "answer": str(settings.steps)})
    if settings.fail == "nothing":
        return None  # type: ignore[return-value]
    if settings.fail == "foreign":
        return Text(name="x", fingerprint="x", path=Path(), parts=())
    luck = os.urandom(4).hex() if settings.dice else ""
    rows = [{"text": f"row {n} of {settings.steps}{luck}"} for n in range(settings.steps)]
    return stage.save_rows(Text, rows)


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _fail(how: How, stage: Stage) -> None:
    match how:
        case "bug":
            raise ValueError("the sky is falling\nand more")
        case "loud":
            raise ValueError("\x1b[2Jcleared")
        case "user":
            raise NotFiniteError("the loss is NaN", "step 2", "lower the learning rate")
        case "memory":
            raise MemoryError
        case "disk":
            raise OSError(28, "No space left on device")
        case "broken disk":
            raise OSError(5, "Input/output error", "/data/rows.jsonl")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(3)
        case "no" | "nothing" | "foreign":
            return


class ShoutSettings(Settings):
    """Shouting has one setting."""

    mark: str = "!"


@method("shout")
def shout(settings: ShoutSettings, stage: Stage, *, text: Text) -> Text:
    """Say it louder."""
    print("shouting to standard output")
    return stage.save_rows(Text, [{"text": row["text"].upper() + settings.mark} for row in text.train()])


class NapSettings(Settings):
    """Naps have a length."""

    seconds: float = 60.0
    alarm: int = 0
    """A signal that it gets from itself; 0 is none."""
    stepped: bool = False
    """It naps between two steps."""
    told: bool = False
    """It leaves a file where it is when it naps."""


@method("nap")
def nap(settings: NapSettings, stage: Stage) -> Text:
    """Look at nothing for a while."""
    if settings.stepped:
        stage.log(1, 2, {"loss": 1.0})
    if settings.told:
        Path("napping").touch()
    if settings.alarm:
        os.kill(os.getpid(), settings.alarm)
    time.sleep(settings.seconds)
    return stage.save_rows(Text, [{"text": "good morning"}])


@hookimpl
def alignkit_methods() -> list[object]:
    return [count, shout, nap]
