"""For authors of trackers: a run that is interrupted and goes on, and what a tracker must have of it at the end."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from alignkit.contract.events import Event, Metrics, Result, Sample, StageFinished
from alignkit.contract.tracker import TrackedRun, TrackerFunction
from alignkit.run.tracking import PATIENCE, TrackerThread

FIGURES: Mapping[str, Mapping[int, float]] = {
    "finetune/loss": {1: 4.0, 2: 2.0, 3: 1.0},
    "finetune/accuracy/before": {3: 0.25},
    "finetune/accuracy/after": {3: 0.75},
    "align/loss": {1: 8.0},
}
"""Name -> step -> value, of the run that `track` tells of."""
SETTINGS = {"seed": 17, "finetune/learning_rate": 1e-5, "finetune/lora": None, "finetune/kl.adaptive": True}
SAMPLE: Mapping[str, str | float] = {"prompt": "What | is it?\nSay.", "answer": "A test.", "reward": 0.5}


def track(tracker: TrackerFunction, folder: Path, name: str = "2026-01-01T00-00-00-0000") -> TrackedRun:
    """Tell a tracker of a run that is stopped in its first stage and then goes on; return the run as it goes on.

    `FIGURES` are what the tracker must have then, `SETTINGS` and `SAMPLE` what it was told besides.
    """
    loss = [Metrics("finetune", step, 3, {"loss": value}) for step, value in FIGURES["finetune/loss"].items()]
    result = Result("finetune", "accuracy", 0.25, 0.75)
    finished = StageFinished("finetune", "sft", "Policy", "", 1.0, results=(result,))
    rest: list[Event] = [Sample("finetune", SAMPLE), result, finished, Metrics("align", 1, 1, {"loss": 8.0})]
    run = TrackedRun("tracked", name, False, SETTINGS, folder / tracker.name, offline=True)
    _attempt(tracker, run, loss[:2], "stopped")
    _attempt(tracker, again := replace(run, resumed=True), [*loss, *rest], "finished")
    return again


def _attempt(tracker: TrackerFunction, run: TrackedRun, events: Sequence[Event], state: str) -> None:
    run.folder.mkdir(exist_ok=True)
    thread = TrackerThread(tracker, run, run.folder.with_suffix(".json"))
    for event in events:
        thread(event)
    thread.end(state, time.monotonic() + PATIENCE)
