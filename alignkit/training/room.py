"""How much goes through a model at once on a GPU: as many tokens as its memory has room for.

On a processor a pass has a fixed size, which fits into its caches. On a GPU small passes leave it idle, and large ones
need memory for their gradient. What a token keeps is measured once, on the model itself; the rest follows from the
card's memory and from the models that are held, so that a stage that goes on makes the same passes again.
"""

import gc
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from alignkit.training import optimisers, output_layer, packing, parallel, sharding
from alignkit.training.packing import beneath, last_hidden
from alignkit.training.sharding import layers_of

Model: TypeAlias = PreTrainedModel | PeftModel

LEAST, MOST = 2**11, 2**15
"""Tokens of a pass on a GPU: with fewer it idles, and more would not be faster."""
ENOUGH = 2**12
"""Tokens of a pass below which layers are computed again for the gradient, so that more of them fit."""
LOGITS = 16
"""Bytes that each of the logits takes that exist at once, with what is made of them."""
USABLE = 0.9
"""Share of the card's memory that is counted on: the rest is lost between pieces."""
SPENT = 1.25
"""What a pass takes over what it keeps: gradients of what is kept come into being while it is still there."""
CACHE = 1 / 8
"""Share of the card's memory for keys and values of answers; while they grow, as much is taken again."""
PROBE = (256, 768)
"""Tokens of the two passes by which it is measured what one keeps."""

_held: WeakKeyDictionary[PreTrainedModel, torch.dtype] = WeakKeyDictionary()
"""The models of this process on its GPU, and the arithmetic of their passes."""
_sizes: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


class Arrangement(NamedTuple):
    """How a machine lets models learn; it changes time and memory, and results by rounding alone."""

    again: bool | Literal["auto"] = "auto"
    """Layers are computed again for the gradient. `auto`: on a GPU where few tokens would fit otherwise."""
    compiles: bool = False
    """Layers are compiled."""
    states: optimisers.States = "fp32"
    """How the optimiser keeps its moments."""


AS_IT_IS = Arrangement()
_arranged: ContextVar[Arrangement] = ContextVar("arranged", default=AS_IT_IS)


def arrange(how: Arrangement) -> None:
    """Let all models that are opened from now on learn so."""
    _arranged.set(how)


def arranged() -> Arrangement:
    """Return how models learn on this machine."""
    return _arranged.get()


def hold(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Remember that a model takes memory, and in what arithmetic it computes; let it learn as the machine says."""
    if model.device.type == "cuda":
        _held[model] = dtype
    how = _arranged.get()
    if how.again is True:
        compute_again(model)
    if how.compiles:
        compiled(model)


def tokens_in_a_pass(model: Model) -> int:
    """Return how many tokens go through a model at once, with gradient."""
    inner = beneath(model)
    if inner.device.type != "cuda":
        return packing.TOKENS_IN_A_PACK
    if inner not in _sizes:
        _sizes[inner] = _measured(inner)
    return _sizes[inner]


def _measured(model: PreTrainedModel) -> int:
    gc.collect()  # what nobody holds any more takes no room
    trained = [one for one in _held if any(weight.requires_grad for weight in one.parameters())] or [model]
    card = torch.cuda.get_device_properties(model.device).total_memory

    def size() -> int:
        kept = max(kept_by_a_token(one, _held.get(one, torch.float32)) for one in trained)
        # All processes make the same passes: the first, whose part of the weights is the largest, says of what size.
        return int(parallel.from_first(torch.tensor(fitting(card, _taken(model), kept), device=model.device)))

    if size() < ENOUGH and _arranged.get().again == "auto":
        for one in trained:
            compute_again(one)
    return size()


def fitting(card: float, taken: float, kept: float) -> int:
    """Return the power of two of tokens of which each keeps so much that fits a card beside what is taken, in bytes."""
    free = USABLE * card - taken
    fits = int(free / (SPENT * kept)) if free > 0 and kept else 0
    return max(LEAST, min(MOST, 1 << max(0, fits.bit_length() - 1)))


def _taken(model: PreTrainedModel) -> float:
    """Add up the bytes of models, gradients, AdamW's moments, weights rounded for a pass, and logits."""
    weights = [sharding.own_part(weight) for one in {*_held, model} for weight in one.parameters()]
    held = sum(weight.numel() * weight.element_size() for weight in weights)
    states = taken_by_learning(weights)
    rounded = 2 * sum(weight.numel() for weight in model.parameters() if weight.dtype == torch.float32)
    return held + states + rounded + LOGITS * output_layer.logits_in_a_chunk(model.device)


def taken_by_learning(weights: Iterable[Tensor]) -> float:
    """Add up the bytes of the gradients of weights, and of what the optimiser keeps of them."""
    each = 4 + optimisers.STATE_BYTES[_arranged.get().states]
    return each * sum(weight.numel() for weight in weights if weight.requires_grad)


def kept_by_a_token(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Measure how many bytes a token of a pass leaves for the gradient."""
    few, many = (_kept(model, tokens, dtype) for tokens in PROBE)
    return (many - few) / (PROBE[1] - PROBE[0])


def _kept(model: PreTrainedModel, tokens: int, dtype: torch.dtype) -> int:
    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32), torch.enable_grad():
        before = torch.cuda.memory_allocated(model.device)
        output = last_hidden(model, input_ids=ids, use_cache=False)
        kept = torch.cuda.memory_allocated(model.device) - before
    del output
    return kept


def compute_again(model: PreTrainedModel) -> None:
    """Let a model's layers keep their inputs alone, and compute the rest again for the gradient (Chen et al. 2016)."""
    for layer in _watched(model):
        layer.again = True


def compiled(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Let a model's layers be compiled for the passes that are learnt from, all of them to the same code."""
    for layer in _watched(model):
        layer.backend = backend


def _watched(model: PreTrainedModel) -> list["_Layer"]:
    """Put something around the `forward` of each layer, once."""
    found = []
    for layer in layers_of(model):
        around = getattr(layer.forward, "__self__", None)
        if not isinstance(around, _Layer):
            around = _Layer(layer, layer.forward)
            layer.forward = around.run
        found.append(around)
    return found


class _Layer(nn.Module):
    """A layer, and how it is run where a gradient is wanted; else it is run as it is."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.own = layer, forward
        self.again = False
        self.backend = ""
        """Of torch.compile; empty where the layer is not compiled."""
        self._learns: Callable[..., Any] | None = None

    def forward(self, *given: Any, **named: Any) -> Any:
        if self._learns is None:  # now, and not before: a copy of a layer must not run the first one
            self._learns = self._compiled() if self.backend else self.own
        return self._learns(*given, **named)

    def _compiled(self) -> Callable[..., Any]:
        return torch.compile(self.own, dynamic=True, backend=self.backend)

    def run(self, *given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.own(*given, **named)
        if not self.again:
            return self(*given, **named)
        now = dict(self.named_parameters())  # rounded ones, which are no longer there when the gradient is computed
        return checkpoint(functional_call, self, now, given, named, use_reentrant=False)


def tokens_decoded(model: Model, otherwise: int) -> int:
    """Return how many tokens may be kept at once while answers are decoded; on a processor, as many as are given."""
    inner = beneath(model)
    if inner.device.type != "cuda":
        return otherwise
    card = torch.cuda.get_device_properties(inner.device).total_memory
    return max(1, int(CACHE * card / (numbers_cached(inner.config) * _held.get(inner, torch.float32).itemsize)))


def numbers_cached(config: Any) -> int:
    """Return how many numbers a token leaves in the cache of decoding, by a model's config."""
    text = config.get_text_config()
    queries = getattr(text, "num_attention_heads", None) or 1  # a state space keeps less than a width
    heads = getattr(text, "num_key_value_heads", None) or queries
    wide = getattr(text, "head_dim", None) or text.hidden_size // queries
    return int(2 * text.num_hidden_layers * heads * wide)
