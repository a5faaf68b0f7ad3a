"""What steps weights: AdamW, whose two moments of each weight are kept in fp32, or in 8 bits by bitsandbytes.

In 8 bits a moment is one of 256 numbers of a table, times the largest of its block of 256 weights (Dettmers et al.
2022, arXiv 2110.02861). Weights of fewer than 4,096 numbers, such as those of norms, keep theirs in fp32.
"""

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from alignkit.contract.settings import Optimisation
from alignkit.errors import RecipeError, StageError, one_line
from alignkit.training import sharding
from alignkit.training.arithmetic import device

States = Literal["fp32", "8bit"]

STATE_BYTES: Mapping[States, float] = {"fp32": 8.0, "8bit": 2 + 8 / 256}
"""Bytes of a weight's two moments, their scales included."""
WHERE = 'optimiser_states = "8bit"'
TRIED = 4096
"""Numbers of the smallest weight whose moments are kept in 8 bits."""
TABLES = ("qmap1", "qmap2")
QUANTISED = "state1"
"""What bitsandbytes calls a weight's first moment, which torch calls exp_avg."""


def adamw(
    weights: Sequence[nn.Parameter], learning_rate: float, settings: Optimisation, eps: float, states: States
) -> torch.optim.Optimizer:
    """Make AdamW (Loshchilov & Hutter 2019) for weights.

    Raises RecipeError where its states are to be kept in 8 bits and cannot: without bitsandbytes, or of weights that
    are cut up among processes.
    """
    betas = settings.beta1, settings.beta2
    if states == "fp32":
        return torch.optim.AdamW(
            weights, lr=learning_rate, betas=betas, eps=eps, weight_decay=settings.weight_decay, fused=True
        )
    _check_installed()
    sharding.refuse("an optimiser with 8-bit states", WHERE)
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(
        weights, lr=learning_rate, betas=betas, eps=eps, weight_decay=settings.weight_decay
    )
    return made


def check(states: States) -> None:
    """Take a step in small. Raise RecipeError where states cannot be kept so on this machine."""
    if states == "fp32":
        return
    _check_installed()
    weight = nn.Parameter(torch.zeros(TRIED, device=device()))
    weight.grad = torch.ones_like(weight)
    try:
        adamw([weight], 1e-3, Optimisation(), 1e-8, states).step()
    except (ImportError, OSError, RuntimeError, AttributeError, NotImplementedError) as error:
        version = importlib.metadata.version("bitsandbytes")
        problem = f"bitsandbytes {version} takes no step on this machine's {device().type} ({one_line(error)})"
        raise RecipeError(problem, WHERE, 'upgrade it, or set optimiser_states = "fp32"') from error


def _check_installed() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError("the package bitsandbytes is missing", WHERE, 'pip install "alignkit[8bit]"')


def state_of(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, Tensor]:
    """Return what an optimiser keeps of a weight, by kind; nothing before its first step.

    The tables of 8-bit states are copies, since all weights share them and a file of tensors holds each apart.
    """
    kept = {kind: torch.as_tensor(value) for kind, value in optimizer.state.get(weight, {}).items()}
    return {kind: value.clone() if kind in TABLES else value for kind, value in kept.items()}


def restore(optimizer: torch.optim.Optimizer, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
    """Give an optimiser what it kept of weights, as `state_of` returned it."""
    numbered = enumerate(weight for group in optimizer.param_groups for weight in group["params"])
    state = {number: _as_kept(states[weight]) for number, weight in numbered if states[weight]}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _as_kept(state: Mapping[str, Tensor]) -> dict[str, Tensor | int]:
    """Return a weight's state with the count of its steps as its optimiser counts: bitsandbytes by a number."""
    return {**state, "step": int(state["step"])} if QUANTISED in state else dict(state)


def check_same(kept: States, here: States, checkpoint: Path) -> None:
    """Raise StageError where a checkpoint keeps states otherwise than this machine does."""
    if kept != here:
        problem = f"the checkpoint has states of the optimiser in {kept}, and this machine keeps them in {here}"
        remedy = f"go on with the optimiser_states of before, or remove the folder {checkpoint} to start over"
        raise StageError(problem, str(checkpoint), remedy)


def kept_in(state: Mapping[str, Tensor]) -> States:
    """Return how the state of a weight is kept."""
    return "8bit" if QUANTISED in state else "fp32"
