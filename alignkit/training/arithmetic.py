"""Where and in what arithmetic models compute, and rows below each other in a table."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from alignkit.contract.settings import Precision


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
