"""Where and in what arithmetic models compute, and rows below each other in a table."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from alignkit.contract.settings import Precision

T = TypeVar("T")


def device() -> torch.device:
    """Return this process's own GPU where there is one, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def arithmetic(precision: Precision) -> torch.dtype:
    """Return the type of number to compute with: `auto` is bf16 on a GPU that has it, else fp32."""
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


@contextmanager
def computing(precision: Precision) -> Iterator[None]:
    """Compute in the precision's type for a while; weights in fp32 are converted where they are used."""
    with torch.autocast(device().type, torch.bfloat16, enabled=arithmetic(precision) == torch.bfloat16):
        yield


class _Holder(nn.Module):
    """Holds a model while something else is computed with it than its `forward`."""

    def __init__(self, held: nn.Module) -> None:
        super().__init__()
        self.held = held

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


def rounded(model: nn.Module, where: torch.device, compute: Callable[[], T]) -> T:
    """Compute something with a model whose fp32 weights are rounded to the type that is computed in.

    Autocast alone leaves norms and what is handed from layer to layer in fp32, which takes twice the memory and the
    time. Gradients arrive at the weights themselves, in fp32. Where nothing is rounded this does nothing.
    """
    if not torch.is_autocast_enabled(where.type):
        return compute()
    to = torch.get_autocast_dtype(where.type)
    weights = {f"held.{name}": weight for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    if not weights:
        return compute()
    lower = {name: weight.to(to) for name, weight in weights.items()}
    found: T = functional_call(_Holder(model), lower, (compute,))
    return found


def brought(tensor: Tensor, where: torch.device) -> Tensor:
    """Bring a tensor to a device; a GPU is not waited for."""
    return tensor.pin_memory().to(where, non_blocking=True) if where.type == "cuda" else tensor.to(where)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off and gradients too for a while, and leave the model in the mode that it had."""
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)


def padded(
    rows: Sequence[Sequence[int]], pad: int, where: torch.device | str = "cpu", value: int = 1
) -> tuple[Tensor, Tensor]:
    """Fill rows up on the right; gives tokens and mask, both (n, t), the mask 1 on what was there."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.tensor([[value] * len(row) + [0] * (width - len(row)) for row in rows])
    return tokens.to(where), mask.to(where)
