"""Run a method in several processes that share its work, as torchrun would start them, on this machine's processor."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.contract.events import Event
from alignkit.contract.kinds import Artifact
from alignkit.contract.method import Method
from alignkit.errors import RecipeError
from alignkit.testing.recording import RecordingStage, run_method

PATIENCE = 240.0
"""Seconds after which a process that says nothing is taken to be stuck."""


class SharedJob(NamedTuple):
    """What each of the processes does."""

    module: str
    function: str
    path: Sequence[str]
    """Where the method is found again."""
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    root: Path
    world: int
    sharded: bool


class ProcessResult(NamedTuple):
    """What one of the processes came to."""

    rank: int
    made: Artifact | None
    events: Sequence[Event]
    error: str = ""
    refusal: str = ""


def run_in_processes(
    method: Method,
    settings: Mapping[str, Any],
    root: Path,
    inputs: Mapping[str, Any],
    world: int = 2,
    *,
    sharded: bool = False,
) -> tuple[Artifact, list[Event]]:
    """Run a method as so many processes; return what it made, and what the first of them told.

    Raise RecipeError where all of them do, else RuntimeError with all that went wrong where one fails. The method must
    be found by its function's name in its module. The processes are forked from one that has imported torch, once a
    session.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["alignkit.kit", "alignkit.testing.processes"])
    job = SharedJob(
        method.module, method.run.__qualname__, (*sys.path, str(_home(method))), settings, inputs, root, world, sharded
    )
    root.mkdir(parents=True, exist_ok=True)
    answers: Queue[ProcessResult] = context.Queue()
    processes = [context.Process(target=_work, args=(rank, job, answers)) for rank in range(world)]
    for process in processes:
        process.start()
    try:
        told = sorted((answers.get(timeout=PATIENCE) for _ in processes), key=lambda one: one.rank)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    if all(one.refusal for one in told):
        raise RecipeError(told[0].refusal)
    if errors := [f"process {one.rank}: {one.error}" for one in told if one.error]:
        raise RuntimeError("\n".join(errors))
    made = told[0].made
    assert made
    return made, list(told[0].events)


def _home(method: Method) -> Path:
    """Return the folder from which the method's module is imported."""
    file = Path(str(sys.modules[method.module].__file__))
    return file.parents[method.module.count(".") + (file.name == "__init__.py")]


def _work(rank: int, job: SharedJob, answers: "Queue[ProcessResult]") -> None:
    from alignkit.training import parallel

    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job.world, "LOCAL_WORLD_SIZE": job.world}
    nowhere = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}  # trainers ask, and find that all have met
    sys.path[:] = job.path
    os.environ |= {name: str(value) for name, value in (told | nowhere).items()}
    try:
        parallel.join(rank, job.world, f"file://{job.root}/meeting", sharded=job.sharded)
        method = getattr(import_module(job.module), job.function)
        stage = RecordingStage(job.root / "stage", rank=rank, world=job.world)
        made = run_method(method, job.settings, stage, **job.inputs)
        answers.put(ProcessResult(rank, made, stage.events))
        parallel.leave()
    except RecipeError as error:
        answers.put(ProcessResult(rank, None, (), str(error), str(error)))
    except BaseException:
        answers.put(ProcessResult(rank, None, (), traceback.format_exc()))
