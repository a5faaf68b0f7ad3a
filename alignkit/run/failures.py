"""What made a stage fail, in a sentence for its user, and the exit status that goes with it."""

import errno
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from alignkit.errors import AlignkitError, DiskError, LockedError, MemoryLimitError, Problem, StageError, one_line
from alignkit.run.order import Order
from alignkit.store.durable import read_json, write_text
from alignkit.store.locks import busy, check_free
from alignkit.store.rundir import FAILURE, LOG
from alignkit.text import short, writable

HALVED = ("micro_batch", "batch", "rows", "max_length", "max_new_tokens", "rank")
"""Settings that memory grows with, in the order in which one would lower them."""

LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited or there was a network error")
"""What gloo and NCCL say where the process that they wait for is gone; of one that could tell why, the failure is
written already, and counts."""

BROKEN = (errno.EIO, errno.EROFS, errno.ESTALE, errno.ENXIO)
"""What the system says where a disk fails, or is there no longer."""


class Failure(BaseModel):
    """Why a stage failed, as the worker leaves it for the runner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: str
    status: int
    problems: tuple[tuple[str, str, str], ...]
    """Problem, where, remedy."""

    @field_validator("problems", mode="before")
    @classmethod
    def _can_be_written(cls, problems: Any) -> Any:
        return writable(problems)

    @classmethod
    def of(cls, attempt: str, status: int, problem: str, remedy: str = "") -> "Failure":
        return cls(attempt=attempt, status=status, problems=((problem, "", remedy),))


def explain(error: BaseException, order: Order, folder: Path) -> Failure:
    """Find out what happened, also beneath what libraries made of it."""
    attempt = order.attempt
    for cause in _causes(error):
        if isinstance(cause, AlignkitError):
            problems = tuple((p.problem, p.where, p.remedy) for p in cause.problems)
            return Failure(attempt=attempt, status=cause.status, problems=problems)
        if _is_memory(cause):
            remedy = lighter(order.stage, order.method, order.settings)
            return Failure.of(attempt, MemoryLimitError.status, "there is not enough memory", remedy)
        if isinstance(cause, OSError) and cause.errno in BROKEN:
            place = short(Path(str(cause.filename)), Path.cwd()) if cause.filename else "a file"
            problem = f"{place} cannot be read or written ({cause.strerror})"
            return Failure.of(attempt, DiskError.status, problem, "look at the disk; then the same command goes on")
        if _is_disk(cause):
            free = shutil.disk_usage(folder).free / 2**30
            remedy = "make room, and run the same command again: it goes on from the last checkpoint"
            return Failure.of(attempt, DiskError.status, f"the disk is full ({free:.1f} GiB free)", remedy)
        if order.machine.world > 1 and any(words in str(cause) for words in LOST):
            return lost(order)
    return Failure.of(attempt, 1, one_line(error))


def lost(order: Order) -> Failure:
    """Word that another of a stage's processes is gone."""
    advice = lighter(order.stage, order.method, order.settings)
    problem = "another of the stage's processes was lost, perhaps because memory ran out"
    return Failure.of(order.attempt, MemoryLimitError.status, problem, f"the same command goes on; else {advice}")


def silent(order: Order, host: str) -> Failure:
    """Word that another of a stage's nodes is gone."""
    remedy = "look whether that computer works, and sees the disk; the same command goes on"
    return Failure.of(order.attempt, StageError.status, f"nothing is heard of the stage's processes on {host}", remedy)


def told_failure(order: Order, partial: Path) -> Failure | None:
    """Return what a process of this attempt has said of its failure, if any has."""
    told = read_json(partial / FAILURE)
    return Failure.model_validate(told) if told.get("attempt") == order.attempt else None


def tell_failure(order: Order, partial: Path, failure: Failure) -> Failure:
    """Write a failure down where none is; of several processes the first one counts. Return the one that counts."""
    told = told_failure(order, partial)
    if told is None:
        write_text(partial / FAILURE, failure.model_dump_json(indent=2) + "\n")
    return told or failure


def failure_of(order: Order, partial: Path, status: int) -> AlignkitError:
    """Word the failure of a stage whose process ended with this status."""
    if told := told_failure(order, partial):
        return error_of(order, partial, told)
    if status == LockedError.status:
        return busy(partial)
    check_free(partial)  # torchrun has a status of its own
    if status == -signal.SIGKILL:
        advice = lighter(order.stage, order.method, order.settings)
        problem = "it was killed by the system, perhaps because memory ran out"
        return error_of(order, partial, Failure.of(order.attempt, MemoryLimitError.status, problem, advice))
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return error_of(order, partial, Failure.of(order.attempt, StageError.status, f"its process ended with {how}"))


def error_of(order: Order, partial: Path, failure: Failure) -> StageError:
    """Make an error of a failure, naming the stage and where to read more."""
    log = partial / LOG
    more = f"see {short(log if log.is_file() else partial, Path.cwd())}"
    problems = [
        Problem(
            problem,
            where=", ".join(filter(None, [f"stage {order.stage!r}", where])),
            remedy="; ".join(filter(None, [remedy, more])),
        )
        for problem, where, remedy in failure.problems
    ]
    error = StageError.of(problems)
    error.status = failure.status
    return error


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__ or error


def _is_memory(error: BaseException) -> bool:
    text = str(error)
    named = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or named or "can't allocate memory" in text or "out of memory" in text


def _is_disk(error: BaseException) -> bool:
    """Recognise a full disk; torch and safetensors raise errors of their own, without its number."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    text = str(error)
    return "No space left on device" in text or ("inline_container" in text and "unexpected pos" in text)


def lighter(stage: str, method: str, settings: Mapping[str, Any]) -> str:
    """Advise up to three changes that need less memory, ready for the command line."""
    method = method.rpartition(":")[2]
    found = sorted(_numbers(settings), key=lambda item: HALVED.index(item[0].rpartition(".")[2]))
    changes = [f"{method}.{key}={value // 2}" for key, value in found if value > 1]
    if settings.get("lora", ...) is None:
        changes.insert(1, "lora.rank=16")
    if settings.get("precision") in ("auto", "fp32"):
        changes.insert(2, "precision=bf16")
    advice = " ".join(f"--set {stage}.{change}" for change in changes[:3])
    return f"try {advice}" if advice else "run it on a machine with more memory"


def _numbers(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif key in HALVED and isinstance(value, int):
            yield f"{prefix}{key}", value
