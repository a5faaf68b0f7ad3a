"""Stages that run at the same time: which may, and what each of them has of the machine."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignkit.errors import INTERRUPTED, TERMINATED, AlignkitError, RecipeError, StageError
from alignkit.run.machine import Machine
from alignkit.text import size

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""One of these is there where a driver of GPUs is: NVIDIA's, on Windows beneath, AMD's."""


def check_jobs(jobs: int, inline: bool, machine: Machine) -> None:
    """Raise RecipeError where stages cannot run at the same time."""
    if jobs < 1:
        raise RecipeError("at least one stage runs at a time", f"jobs = {jobs}", "take a number from 1 on")
    if jobs == 1:
        return
    if inline:
        problem = "inline, stages run one after another in this process"
        raise RecipeError(problem, f"--inline --jobs {jobs}", "leave one of the two out")
    for name, serving in machine.servers.items():
        weights = name == "rollouts" and serving.urls
        if weights or serving.gpus:
            what = "give their weights to the same servers" if weights else "start servers on the same GPUs"
            remedy = f"leave it out, or let the machine's {name} have vllm alone: each stage starts a server of its own"
            raise RecipeError(f"stages that run at the same time would {what}", f"--jobs {jobs}", remedy)


def threads_of(jobs: int) -> int:
    """Return how many threads each of the stages that run at the same time has of this machine's cores."""
    from alignkit.doctor.examine import usable_cores

    return max(1, usable_cores() // jobs)


def has_driver() -> bool:
    """Return whether this machine has a driver of GPUs, so that torch is worth asking."""
    return any(Path(file).exists() for file in DRIVERS)


def visible_gpus() -> list[str]:
    """Return the GPUs that stages may use, as CUDA_VISIBLE_DEVICES names them: those that torch sees."""
    from alignkit.doctor.examine import ask_torch

    count = sum(device.kind == "cuda" for device in ask_torch().devices)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (list(map(str, range(count))) if named is None else named.split(","))[:count]


def dealt(gpus: Sequence[str], jobs: int, processes: int) -> list[tuple[str, ...]]:
    """Return the GPUs of each of the stages that run at the same time, one for each process; none where there are none.

    Raises RecipeError where there are too few.
    """
    if gpus and jobs * processes > len(gpus):
        most = len(gpus) // processes
        each = "one GPU each" if processes == 1 else f"{processes} GPUs each"
        remedy = f"take --jobs {most}" if most else "take a machine with fewer processes"
        raise RecipeError(f"{jobs} stages need {each}, and there are {len(gpus)}", f"--jobs {jobs}", remedy)
    return [tuple(gpus[job * processes : (job + 1) * processes]) for job in range(jobs)]


def lack_of_memory(stage: str, beside: Sequence[str], needed: Mapping[str, float], has: float) -> str:
    """Say that a stage does not fit a machine's memory beside those that run; nothing where it does, or runs alone.

    `needed`: of the stages that are estimated, in bytes.
    """
    together = sum(needed.get(name, 0.0) for name in (stage, *beside))
    if not beside or together <= has:
        return ""
    others = f"{', '.join([stage, *beside[:-1]])} and {beside[-1]}"
    return f"waiting: {others} need about {size(together)} of memory together, and this machine has {size(has)}"


def error_of_all(failures: Sequence[AlignkitError]) -> AlignkitError:
    """Return one error for all stages that failed, with the first one's exit status; that some were stopped then goes
    without saying."""
    stopped = [error for error in failures if error.status in (INTERRUPTED, TERMINATED)]
    failed = [error for error in failures if error not in stopped] or stopped[:1]
    if len(failed) == 1:
        return failed[0]
    error = StageError.of([problem for one in failed for problem in one.problems])
    error.status = failed[0].status
    return error
