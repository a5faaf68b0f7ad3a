"""Weights that are cut up among the processes of a stage: each keeps a part of every layer (FSDP2).

Where a machine shards, `placed` cuts a model up, layer by layer. For a pass the parts of one layer are gathered at a
time, and gradients are added up as they are parted again; so all processes must make the same passes, which
`parallel.deal_weighted` sees to. Sampling and scoring gather the whole model for a while (`whole`): their passes differ
from process to process. Elsewhere nothing here does anything.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils import swap_tensors

from alignkit.errors import RecipeError, StageError
from alignkit.training import parallel
from alignkit.training.arithmetic import device, rounded

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=nn.Module)

_emptied: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""Of each model that was cut up, what it is made of besides its weights: what is saved is put together from it."""


def by_first(opened: Callable[[], tuple[ModelT, T]]) -> tuple[ModelT, T]:
    """Let the first process alone open a model where the machine shards, so that a node's memory holds it once.

    The others get it without the numbers of its weights, which `placed` hands out, and whatever else is opened with it.
    """
    if parallel.mesh() is None:
        return opened()
    own: list[ModelT] = []

    def emptied() -> tuple[ModelT, T]:
        model, beside = opened()
        own.append(model)
        _emptied[model] = _emptied_of(model)
        return _emptied[model], beside

    model, beside = parallel.first(emptied)
    return (own[0] if own else model), beside


def placed(model: ModelT, dtype: torch.dtype) -> ModelT:
    """Put a model where this process computes, cut up among the processes where the machine shards.

    Layers go there one by one, so that a device never holds the whole. They are gathered in the type that is computed
    in, as `arithmetic.rounded` does it with weights that are not cut up; gradients are added up in fp32.
    """
    mesh = parallel.mesh()
    if mesh is None:
        return model.to(device())
    root: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    gathering = MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers_of(root):
        _fill(layer)
        fully_shard(layer, mesh=mesh, mp_policy=gathering)
    _fill(root)
    # The root's own weights (embedding, head) serve what follows its decoder too, and are not parted in between.
    fully_shard(root, mesh=mesh, mp_policy=gathering, reshard_after_forward=False)
    for part in _parts(model):
        part.set_force_sum_reduction_for_comms(True)
        part.set_gradient_divide_factor(1.0)
    root.computing = lambda compute: compute()
    register_fsdp_forward_method(root, "computing")
    return model


def layers_of(model: Any) -> list[nn.Module]:
    """Return the layers of a decoder, as its architecture names what must not be split; not those inside others."""
    names, layers, inside = set(model._no_split_modules or ()), list[nn.Module](), set[nn.Module]()
    for part in model.modules():
        if part not in inside and names & {kind.__name__ for kind in type(part).__mro__}:
            layers.append(part)
            inside.update(part.modules())
    return layers


def _emptied_of(model: nn.Module) -> nn.Module:
    """Copy a model without the numbers of its weights. Its configs stay the model's own."""
    kept: dict[int, Any] = {id(weight): _without_numbers(weight) for weight in model.parameters()}
    for part in model.modules():
        own = (part.__dict__.get(name) for name in ("config", "generation_config"))
        kept |= {id(config): config for config in own if config is not None}
    return copy.deepcopy(model, kept)


def _fill(part: nn.Module) -> None:
    """Hand out the weights of a part of a model, which the first process has, before they are cut up."""
    for weight in part.parameters():
        if not is_cut(weight):
            tensor = weight.detach() if parallel.rank() == 0 else torch.empty(weight.shape, dtype=weight.dtype)
            tensor = parallel.from_first(tensor.to(device()).contiguous())
            swap_tensors(weight, nn.Parameter(tensor, weight.requires_grad))  # type: ignore[no-untyped-call]


def _without_numbers(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(weight.detach().to("meta"), weight.requires_grad)


def refuse(what: str, where: str = "") -> None:
    """Raise RecipeError where the machine shards, which this cannot be."""
    if parallel.mesh() is not None:
        raise RecipeError(f"{what} cannot be sharded", where, "set sharded = false for the machine in machines.toml")


def _parts(model: nn.Module) -> list[FSDPModule]:
    """Return the parts that are gathered one at a time, the first of which holds the others."""
    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def _root(model: nn.Module) -> Any:
    """Return what the passes of a model that is cut up begin at; None where it is whole.

    Raises StageError where the other processes do not come here, without which nothing can be gathered.
    """
    root = next((part for part in model.modules() if isinstance(part, FSDPModule)), None)
    if root is not None and parallel.world() == 1:
        problem = "a sharded model was to be read by one process alone"
        raise StageError(problem, remedy="open it inside `parallel.alone()`, or read it in all processes")
    return root


def within(model: nn.Module, compute: Callable[[], T]) -> T:
    """Compute something with parts of a model, its `forward` left out; of one that is cut up, all that it takes is
    gathered as for its `forward`."""
    root = _root(model)
    if root is None:
        return rounded(model, next(model.parameters()).device, compute)
    found: T = root.computing(compute)
    return found


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Keep all weights of a model in every process for a while, in which each makes what passes it likes."""
    root = _root(model)
    if root is None:
        yield
        return
    parts = _parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not root, recurse=False)


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a model's weights by name; of those that are cut up, this process's parts.

    After a pass without gradient a model still names the gathered weights of its root, which no step would change.
    """
    part_again(model)
    return dict(model.named_parameters())


def part_again(model: nn.Module) -> None:
    """Let each process keep its own part alone, also of what a pass without gradient has left gathered."""
    for part in _parts(model):
        part.reshard()


def is_cut(tensor: Tensor) -> bool:
    """Return whether a tensor is cut up among the processes."""
    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process keeps of a tensor; all of one that is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """Return all of a tensor, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> range:
    """Return which rows of a tensor this process keeps: FSDP2 cuts along the first dimension, as `torch.chunk` does."""
    if not isinstance(tensor, DTensor):
        return range(len(tensor))
    start = min(parallel.rank() * parallel.share(len(tensor)), len(tensor))
    return range(start, start + len(tensor.to_local()))


def joined_like(rows: Tensor, other: Tensor) -> Tensor:
    """Return a tensor of which each process has its own rows, cut up as another one of its shape is."""
    if not isinstance(other, DTensor):
        return rows
    mesh, cut = other.device_mesh, other.placements
    return DTensor.from_local(rows.to(other.device), mesh, cut, shape=other.shape, stride=other.stride())


def unsharded(model: ModelT) -> ModelT:
    """Return a whole copy, on the processor, of a model that is cut up; it is one in the first process alone.

    Weights are gathered one by one. A model that is whole is returned itself.
    """
    if _root(model) is None:
        return model
    found: dict[str, nn.Parameter] = {}
    for name, weight in weights_of(model).items():
        tensor = gathered(weight.detach())
        if parallel.rank() == 0:
            found[name] = nn.Parameter(tensor.cpu(), weight.requires_grad)
    if parallel.rank():
        return model
    emptied = _emptied[model]
    copied: ModelT = copy.deepcopy(emptied, {id(weight): found[name] for name, weight in emptied.named_parameters()})
    return copied
