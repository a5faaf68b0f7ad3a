"""Run a method in several processes that share its work, as torchrun would start them, on this machine's processor."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
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
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    root: Path
    sharded: bool


class ProcessResult(NamedTuple):
    """What one of the processes came to."""

    made: Artifact | None
    events: Sequence[Event]
    error: str = ""
    refusal: str = ""


@dataclass
class Team:
    """Processes that do one job after another together, until one of them fails."""

    path: tuple[str, ...]
    """Where methods are found."""
    processes: list[BaseProcess]
    lines: list[Connection]
    """To each of them."""

    @classmethod
    def started(cls, world: int, path: tuple[str, ...]) -> "Team":
        """Return processes that were forked from one that has imported torch, once a session."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["alignkit.kit", "alignkit.testing.processes"])
        pipes = [context.Pipe() for _ in range(world)]
        processes: list[BaseProcess] = [
            context.Process(target=_serve, args=(rank, world, path, line), daemon=True)
            for rank, (_, line) in enumerate(pipes)
        ]
        for process, (_, line) in zip(processes, pipes, strict=True):
            process.start()
            line.close()
        return cls(path, processes, [line for line, _ in pipes])

    def work(self, job: SharedJob) -> list[ProcessResult]:
        """Return what each came to; where one fails, all end."""
        for line in self.lines:
            line.send(job)
        told = [_heard(line) for line in self.lines]
        if any(one.error for one in told):
            self.end()
        return told

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        self.lines.clear()


_teams: dict[int, Team] = {}
"""By the number of processes."""


def _team(world: int, path: tuple[str, ...]) -> Team:
    team = _teams.get(world)
    if team is None or team.path != path or not team.lines:
        if team is not None:
            team.end()
        team = _teams[world] = Team.started(world, path)
    return team


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
    be found by its function's name in its module. The same processes do the next job.
    """
    job = SharedJob(method.module, method.run.__qualname__, settings, inputs, root, sharded)
    root.mkdir(parents=True, exist_ok=True)
    told = _team(world, (*sys.path, str(_home(method)))).work(job)
    if all(one.refusal for one in told):
        raise RecipeError(told[0].refusal)
    if errors := [f"process {rank}: {one.error or one.refusal}" for rank, one in enumerate(told) if one.made is None]:
        raise RuntimeError("\n".join(errors))
    made = told[0].made
    assert made
    return made, list(told[0].events)


def _home(method: Method) -> Path:
    """Return the folder from which the method's module is imported."""
    file = Path(str(sys.modules[method.module].__file__))
    return file.parents[method.module.count(".") + (file.name == "__init__.py")]


def _heard(line: Connection) -> ProcessResult:
    try:
        if line.poll(PATIENCE):
            result: ProcessResult = line.recv()
            return result
    except EOFError:
        return ProcessResult(None, (), "it has ended without a word")
    return ProcessResult(None, (), f"it has said nothing for {PATIENCE:.0f} seconds")


def _serve(rank: int, world: int, path: Sequence[str], line: Connection) -> None:
    import torch

    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    nowhere = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}  # trainers ask, and find that all have met
    sys.path[:] = path
    os.environ |= {name: str(value) for name, value in (told | nowhere).items()}
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    failed = False
    while not failed:  # the others of a process that has failed wait for it until it is gone
        result = _result(rank, world, line.recv())
        line.send(result)
        failed = bool(result.error)


def _result(rank: int, world: int, job: SharedJob) -> ProcessResult:
    from alignkit.training import parallel

    try:
        parallel.join(rank, world, f"file://{job.root}/meeting", sharded=job.sharded)
        method = getattr(import_module(job.module), job.function)
        stage = RecordingStage(job.root / "stage", rank=rank, world=world)
        made = run_method(method, job.settings, stage, **job.inputs)
        parallel.leave()
    except RecipeError as error:
        parallel.leave()
        return ProcessResult(None, (), refusal=str(error))
    except BaseException:
        return ProcessResult(None, (), traceback.format_exc())
    return ProcessResult(made, stage.events)
