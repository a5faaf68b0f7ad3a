"""What makes logits of a model's hidden states, and log-probabilities of tokens without a table of logits.

Logits exist for a few rows at a time only, and unless they are few are computed again for the gradient: the table
(rows, vocabulary) is what fills memory in training.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignkit.training.packing import (
    FAILURES,
    PROBE_LENGTHS,
    Pack,
    agree,
    beneath,
    hidden_before_answers,
    last_hidden,
    probe_rows,
)

LOGITS_IN_A_CHUNK = 2**23
"""Logits that exist at once on a processor: 32 MB in single precision."""
LOGITS_KEPT = 2**25
"""As many as this, 128 MB, wait for the gradient there; more are computed again."""
PART_OF_A_GPU = 2**8
"""On a GPU as many logits exist at once as the 256th part of its memory has bytes: they take a 64th of it."""


@dataclass(frozen=True)
class OutputLayer:
    """What makes logits of hidden states: a linear layer, a factor (Granite, Cohere), a soft cap (Gemma 2)."""

    linear: nn.Linear
    scale: float = 1.0
    cap: float | None = None
    """Logits x become cap * tanh(x / cap)."""

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    @property
    def width(self) -> int:
        return self.linear.in_features

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits (m, vocabulary) of hidden states (m, d), in fp32."""
        return shaped(nn.functional.linear(hidden, self.weight, self.bias).float(), self.scale, self.cap)


def shaped(products: Tensor, scale: float, cap: float | None) -> Tensor:
    """Make logits of what a linear layer gives, in its place."""
    logits = products if scale == 1.0 else products.mul_(scale)
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


class Chosen(NamedTuple):
    """What a distribution says of the token that was chosen from it; all (m,), in fp32."""

    logprobs: Tensor
    entropy: Tensor
    """Of the whole distribution, without gradient; (0,), as what follows, where only the first was asked for."""
    likeliest: Tensor
    """1 where no token was more likely, else 0."""


def chosen_logprobs(hidden: Tensor, head: OutputLayer, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute log softmax(head(hidden) / temperature) of one token each (m,), in fp32, from hidden states (m, d)."""
    return _chosen(hidden, head, targets, _Shape(temperature, head.scale, head.cap, whole=False)).logprobs


def chosen_tokens(hidden: Tensor, head: OutputLayer, targets: Tensor, temperature: float = 1.0) -> Chosen:
    """Compute what softmax(head(hidden) / temperature) says of one token each, from hidden states (m, d)."""
    return _chosen(hidden, head, targets, _Shape(temperature, head.scale, head.cap, whole=True))


def _chosen(hidden: Tensor, head: OutputLayer, targets: Tensor, shape: "_Shape") -> Chosen:
    """Compute what a distribution says of tokens."""
    weight: Tensor = head.weight
    bias: Tensor | None = head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        kind = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(kind), weight.to(kind), bias if bias is None else bias.to(kind)
    if not torch.is_grad_enabled():  # else what only a gradient needs would be computed all the same
        hidden, weight, bias = hidden.detach(), weight.detach(), bias if bias is None else bias.detach()
    return Chosen(*_ChosenLogprobs.apply(hidden, weight, bias, targets, shape))  # type: ignore[no-untyped-call]  # torch leaves it untyped


class _Shape(NamedTuple):
    """How products of hidden states and a head's weights become the logits of a distribution."""

    temperature: float
    scale: float
    cap: float | None
    whole: bool
    """All that `Chosen` has is computed; else the log-probabilities alone."""

    @property
    def slope(self) -> float:
        """What a logit grows by with its product, as long as no cap bends it."""
        return self.scale / self.temperature

    def logits(self, products: Tensor) -> Tensor:
        """Return the logits, in the type of the products where they are these."""
        if self.cap is None and self.slope == 1.0:
            return products
        return shaped(products.float(), self.scale, self.cap).div_(self.temperature)

    def bent(self, logits: Tensor) -> Tensor | None:
        """Return the share of the slope that the cap leaves at each logit: 1 - tanh(x / cap)^2."""
        return None if self.cap is None else 1 - logits.mul(self.temperature / self.cap).square_()


LOWEST = -1e30
"""Takes the place of a log-probability of minus infinity, whose share of the entropy is 0 and not NaN."""


class _ChosenLogprobs(torch.autograd.Function):
    """The log-probability of a chosen token, and its gradient: (chosen - softmax) / temperature for uncapped logits.

    With a frozen head the gradient for the hidden states is known but for a factor, and found in the first pass.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shape: _Shape
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, *wants_head = ctx.needs_input_grad[:3]
        slope = torch.empty_like(hidden) if wants_hidden and not any(wants_head) else None
        keeps = any(wants_head) and len(hidden) * len(weight) <= logits_kept(hidden.device)
        found: list[Tensor] = []
        pulls: list[Tensor] = []
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _chunks(hidden, weight):
                logits = shape.logits(nn.functional.linear(hidden[part], weight, bias))
                logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
                chosen = logprobs.gather(-1, targets[part, None]).squeeze(-1)
                found.append(torch.stack([chosen, *(_beside(logprobs, chosen) if shape.whole else ())]))
                if slope is not None or keeps:
                    bent, softmax = shape.bent(logits), logprobs.exp_()
                    pulls.append(_pull(bent, softmax, targets[part], torch.ones_like(chosen)))
                if slope is not None:
                    torch.mm(pulls.pop().to(weight.dtype), weight, out=slope[part])
        kept = [hidden, weight, bias, targets, *pulls] if any(wants_head) else [slope]
        ctx.save_for_backward(*kept)
        ctx.shape = shape
        chosen, *beside = torch.cat(found, dim=1).unbind()
        entropy, likeliest = beside or (chosen.new_empty(0), chosen.new_empty(0))
        ctx.mark_non_differentiable(entropy, likeliest)
        return chosen, entropy, likeliest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0] * ctx.shape.slope
        if len(ctx.saved_tensors) == 1:
            (slope,) = ctx.saved_tensors
            return slope * scale[:, None].to(slope.dtype), None, None, None, None
        hidden, weight, bias, targets, *pulls = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        for_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Sums over chunks stay in fp32, whatever is multiplied.
        for_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        for_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for number, part in enumerate(_chunks(hidden, weight)):
                if pulls:
                    pull = (pulls[number] * scale[part, None]).to(weight.dtype)
                else:
                    logits = ctx.shape.logits(nn.functional.linear(hidden[part], weight, bias))
                    bent, softmax = ctx.shape.bent(logits), logits.softmax(dim=-1, dtype=torch.float32)
                    pull = _pull(bent, softmax, targets[part], scale[part]).to(weight.dtype)
                if for_hidden is not None:
                    torch.mm(pull, weight, out=for_hidden[part])
                if for_weight is not None and weight.dtype == torch.float32:
                    for_weight.addmm_(pull.T, hidden[part])
                elif for_weight is not None:
                    for_weight += pull.T @ hidden[part]
                if for_bias is not None:
                    for_bias += pull.sum(dim=0)
        kind = weight.dtype
        return for_hidden, _of_type(for_weight, kind), _of_type(for_bias, kind), None, None


def _beside(logprobs: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the entropy of distributions (m, vocabulary), and whether no token was likelier than the chosen (m,)."""
    entropy = -torch.linalg.vecdot(logprobs.exp(), logprobs.clamp_(min=LOWEST))
    return entropy, (chosen >= logprobs.amax(dim=-1)).float()


def _pull(bent: Tensor | None, softmax: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
    """Compute scale * (chosen - softmax) for each row in the place of its softmax (m, vocabulary), bent by a cap."""
    pull = softmax.mul_(-scale[:, None]).scatter_add_(-1, targets[:, None], scale[:, None])
    return pull if bent is None else pull.mul_(bent)


def _of_type(gradient: Tensor | None, kind: torch.dtype) -> Tensor | None:
    return None if gradient is None else gradient.to(kind)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    size = max(1, logits_in_a_chunk(hidden.device) // len(weight))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def logits_in_a_chunk(where: torch.device) -> int:
    """Return how many logits exist at once: few enough for a processor's caches, or enough to keep a GPU busy."""
    return _part_of_gpu(where) if where.type == "cuda" else LOGITS_IN_A_CHUNK


def logits_kept(where: torch.device) -> int:
    """Return how many logits may wait for the gradient."""
    return _part_of_gpu(where) if where.type == "cuda" else LOGITS_KEPT


@cache
def _part_of_gpu(where: torch.device) -> int:
    return int(torch.cuda.get_device_properties(where).total_memory) // PART_OF_A_GPU


LARGE_LOGITS = 20.0
"""Standard deviation of logits at which any soft cap shows."""
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configs call the cap of logits."""
_heads: WeakKeyDictionary[nn.Module, OutputLayer | None] = WeakKeyDictionary()
"""What is known of the heads of models; the linear layer of one may have been put there anew."""


def head_of(model: PreTrainedModel | PeftModel) -> OutputLayer:
    """Return what makes logits of a model's hidden states; raises TypeError where that is no such head."""
    head = find_head(model)
    if head is None:
        raise TypeError(f"the logits of a {type(beneath(model)).__name__} are not made by a linear layer")
    return head


def find_head(model: PreTrainedModel | PeftModel) -> OutputLayer | None:
    """Find how a model makes logits of its hidden states, by trying; None where in none of the known ways."""
    inner = beneath(model)
    if inner not in _heads:
        try:
            _heads[inner] = _head(inner)
        except FAILURES:
            _heads[inner] = None
    found = _heads[inner]
    return found and replace(found, linear=inner.get_output_embeddings())


@torch.no_grad()
def _head(model: Any) -> OutputLayer | None:
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear:
        return None
    ids = torch.tensor([probe_rows(model, PROBE_LENGTHS)[0][2]], device=model.device)
    hidden = last_hidden(model, input_ids=ids, use_cache=False)
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    # Logits of fresh weights are so small that a cap would not show: the linear layer is given larger states, too.
    large = hidden * (LARGE_LOGITS / float(nn.functional.linear(hidden, linear.weight).float().std().clamp(min=1e-6)))
    handle = linear.register_forward_pre_hook(lambda *_: (large,))
    try:
        larger = model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        handle.remove()
    products = nn.functional.linear(large[0], linear.weight, linear.bias).float()
    scale = float((products * larger).sum() / products.square().sum().clamp(min=1e-30))
    config = model.config.get_text_config()
    caps = [float(cap) for name in SOFT_CAPS if (cap := getattr(config, name, None))]
    seen = [(hidden[0], logits), (large[0], larger)]
    for head in (OutputLayer(linear), *(OutputLayer(linear, cap=cap) for cap in caps), OutputLayer(linear, scale)):
        if all(agree(head.logits(states).to(hidden.dtype), made.to(hidden.dtype)) for states, made in seen):
            return head
    return None


def logprobs_of(model: PreTrainedModel | PeftModel, rows: Pack, temperature: float = 1.0) -> Tensor:
    """Compute the log-probability of each answer token (n, t), in fp32; zero behind an answer's end."""
    hidden = hidden_before_answers(model, rows)
    return rows.as_table(chosen_logprobs(hidden, head_of(model), rows.targets, temperature))
