"""The processes that share a stage: who does which part of the work, and how the parts become one.

Every process runs the same method on the same rows, and makes the same calls in the same order. Of the passes of a
step, of the answers that are drawn and of the rows that are read it does its share; whatever a step adds up (gradients,
metrics, tables of log-probabilities) is added up over the processes as it is over the passes. So a stage makes the same
in any number of processes, but for rounding, and a method says nothing of them. In one process nothing here does
anything.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from alignkit.contract.stage import Stage
from alignkit.errors import StageError
from alignkit.training.arithmetic import device

T = TypeVar("T")
N = TypeVar("N", bound=float)

PATIENCE = timedelta(minutes=30)
"""For how long processes wait for each other: one may save what they have learnt, or ask an endpoint."""
NUMBERS_AT_ONCE = 2**25
"""Gradients are added up in parts of about so many numbers."""
_ALONE = ContextVar("alone", default=False)
_MESH: ContextVar[DeviceMesh | None] = ContextVar("mesh", default=None)


def join(rank: int, world: int, meeting: str = "env://", *, sharded: bool = False) -> None:
    """Join the processes of a stage, which meet at a place (an `init_method` of torch.distributed); each on its GPU.

    `sharded`: models are cut up among them (`training.sharding`); else each holds all weights.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world, timeout=PATIENCE)
    _MESH.set(init_device_mesh(device().type, (world,)) if sharded else None)


def leave() -> None:
    """Leave the other processes, where this one has joined some."""
    if _joined():
        _MESH.set(None)
        dist.destroy_process_group()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Do what is inside in this process, without the others, which do not come here."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def world() -> int:
    """Return how many processes share the work."""
    return dist.get_world_size() if _joined() and not _ALONE.get() else 1


def rank() -> int:
    """Return which of them this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def mesh() -> DeviceMesh | None:
    """Return the processes that models are cut up among; None where each holds all weights."""
    return _MESH.get() if world() > 1 else None


def check(stage: Stage) -> None:
    """Refuse to do the whole of the work in each of several processes. Raise StageError where they have not met."""
    if stage.world != world():
        problem = f"the stage runs in {stage.world} processes, and this one knows of {world()}"
        raise StageError(problem, remedy="start it by `alignkit recipe --on`, or by torchrun as that does")


def share(count: int) -> int:
    """Return how many of so many rows or tokens are one process's part, at most."""
    return -(-count // world())


def deal(parts: Sequence[T]) -> list[T]:
    """Return this process's share of the parts: every world-th, so that long and short ones mix."""
    return list(parts[rank() :: world()])


def deal_weighted(parts: Sequence[T]) -> list[tuple[T, float]]:
    """Return this process's share, each with weight 1; where it has none, the first part, with weight 0.

    So every process knows what is to be added up. Where models are cut up, all get as many: passes are made together.
    """
    mine, least = deal(parts), share(len(parts)) if mesh() else 1
    idle = [(part, 0.0) for part in parts[:1]] * (least - len(mine))
    return [(part, 1.0) for part in mine] + idle


def add_up(tensor: Tensor) -> Tensor:
    """Add up over the processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first(tensor: Tensor) -> Tensor:
    """Give a tensor the numbers that it has in the first process, in place."""
    if world() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def add_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Add up numbers over the processes, each of which has them under the same names."""
    if world() == 1:
        return dict(metrics)
    names = sorted(metrics)
    values = add_up(torch.tensor([metrics[name] for name in names], dtype=torch.float64, device=device()))
    return dict(zip(names, values.tolist(), strict=True))


def add_gradients(weights: Iterable[Tensor]) -> None:
    """Add up the gradients of weights over the processes; where one has none, it is zero."""
    if world() == 1:
        return
    waiting: list[Tensor] = []
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        if waiting and (waiting[0].dtype != weight.grad.dtype or sum(map(Tensor.numel, waiting)) > NUMBERS_AT_ONCE):
            _add_together(waiting)
            waiting = []
        waiting.append(weight.grad)
    if waiting:
        _add_together(waiting)


def _add_together(tensors: Sequence[Tensor]) -> None:
    flat = add_up(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def placed(values: Tensor, rows: Sequence[int], of: int) -> Tensor:
    """Return the table of all rows (n, ...) of what each process found of its own (m, ...), of equal width in all."""
    table = values.new_zeros(of, *values.shape[1:])
    table[list(rows)] = values
    return add_up(table)


def table_of_all(dealt: Sequence[tuple[Sequence[int], float]], parts: Sequence[Tensor], of: int, width: int) -> Tensor:
    """Return the table of all rows (n, t, ...), t wide, of what this process found of its groups' rows.

    `dealt` is what `deal_weighted` gave of all groups.
    """
    table = parts[0].new_zeros(of, width, *parts[0].shape[2:])
    for (group, counts), part in zip(dealt, parts, strict=True):
        if counts:
            table[list(group), : part.shape[1]] = part
    return add_up(table)


def lists_of_all(lists: Sequence[list[N]], longest: int, kind: torch.dtype) -> list[list[N]]:
    """Return all lists of numbers, of which each process has made some and left the others empty."""
    if world() == 1:
        return list(lists)
    table = torch.zeros(len(lists), longest + 1, dtype=kind)
    for row, known in zip(table, lists, strict=True):
        if known:
            row[: len(known) + 1] = torch.tensor([len(known), *known], dtype=kind)
    return [row[1 : int(row[0]) + 1] for row in add_up(table.to(device())).tolist()]


def agreed(flag: bool) -> bool:
    """Return what the first process says: anything that a clock, a file or an error decides must be agreed."""
    if world() == 1:
        return flag
    said = torch.tensor(int(flag), device=device())
    dist.broadcast(said, 0)
    return bool(said.item())


def any_of(flag: bool) -> bool:
    """Return whether any process says so."""
    return any_of_each([flag])[0]


def any_of_each(flags: Sequence[bool]) -> list[bool]:
    """Return of each flag whether any process has raised it."""
    if world() == 1:
        return list(flags)
    raised = add_up(torch.tensor([int(flag) for flag in flags], device=device()))
    return [bool(count) for count in raised.tolist()]


def wait_for_all() -> None:
    """Wait until all processes have come here."""
    any_of_each([False])


def in_all(work: Callable[[], None]) -> None:
    """Do something in every process, and wait for the others. Raise the error of any of them in all."""
    errors: list[Exception | None] = [None] * world()
    try:
        work()
    except Exception as error:
        if world() == 1:
            raise
        errors[rank()] = error
    if world() > 1:
        dist.all_gather_object(errors, errors[rank()])
    if odd := next(filter(None, errors), None):
        raise odd


def first(compute: Callable[[], T]) -> T:
    """Compute in the first process alone, and hand what it finds to all. Raise its error in all of them."""
    if world() == 1:
        return compute()
    told: list[object] = [None, None]
    if rank() == 0:
        try:
            with alone():
                told[0] = compute()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told, 0)
    if isinstance(told[1], Exception):
        raise told[1]
    found: T = told[0]  # type: ignore[assignment]  # what the first process computed
    return found
