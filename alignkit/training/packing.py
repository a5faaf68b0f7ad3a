"""Rows of any length through a model without padding, all in one sequence.

Padding costs as much as text: with real prompts and answers half of a padded table is empty. Here the tokens of all
rows stand one after the other in a single row, so that every layer computes real tokens only; attention alone puts
the rows apart again. Answers to one prompt share its computation: what a causal model makes of a prompt does not
depend on what follows. Nothing is approximated, and `packs` refuses a model that computes anything else this way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignkit.training import parallel, sharding
from alignkit.training.arithmetic import brought

Tokens = Sequence[int]

PACKED = "alignkit_packed"
"""Our attention, under the name that transformers knows it by. Without packed rows it is `sdpa`."""
PLAIN = "sdpa"
FILLER = 0
"""Stands where nothing is looked at."""
TOKENS_IN_A_PACK = 2**11
"""On a processor more would not be faster, and every token costs memory for its gradient."""
LOGITS_IN_A_CHUNK = 2**23
"""Logits that exist at once on a processor: 32 MB in single precision."""
LOGITS_KEPT = 2**25
"""As many as this, 128 MB, wait for the gradient there; more are computed again."""
PART_OF_A_GPU = 2**8
"""On a GPU as many logits exist at once as the 256th part of its memory has bytes: they take a 64th of it."""
PROBE_LENGTHS = ((3, 2), (3, 5), (9, 1), (1, 7))
"""Prompts and answers that a model is tried on; the first two share their prompt."""
LONG_PROBE_LENGTHS = ((3, 17), (3, 5), (19, 2), (1, 12), (10, 14))
"""The same for a miniature, whose windows and chunks are shorter than these rows."""
HALVES = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256
"""Numbers of a head, at most, that FlashAttention reads; in half precision, and on a GPU alone."""
VARLEN = signature(varlen_attn).parameters.keys()
"""What this torch can tell it for rows of any length."""
FAILURES = (
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
)
"""What a model raises that was never meant for what is tried with it."""


class PackedRows(NamedTuple):
    """How attention finds n rows in a pack of `tokens`."""

    tokens: Tensor
    """Where each token of a row stands in the pack (n, length); whatever stands behind a row's end is not looked at."""
    home: Tensor
    """Where each token of the pack stands in `tokens`, flattened (tokens,): once, also where rows share it."""
    whole: bool
    """No token is shared, and so each stands once in `tokens`."""
    apart: Tensor
    """Where the tokens of all rows, one row after the other, stand in the pack (sum of lengths,)."""
    back: Tensor
    """Where each token of the pack stands among these (tokens,)."""
    ends: Tensor
    """Where each row begins among these, and where the last one ends (n + 1,), in int32."""


@dataclass(frozen=True)
class Pack:
    """Rows of prompts and answers, put together."""

    inputs: dict[str, Any]
    """What the decoder takes."""
    before: Tensor
    """Where the token before each answer token stands in the pack (answer tokens,)."""
    targets: Tensor
    """The answer tokens, row after row (answer tokens,)."""
    places: Tensor
    """Where these stand in a right-padded table of n rows, flattened (answer tokens,)."""
    shape: tuple[int, int]
    """Of that table (n, t)."""
    lengths: tuple[int, ...]
    """Of prompt and answer together, without the answer's last token."""
    tokens: Tensor
    """Where each token of a row stands in the pack (n, length)."""
    home: Tensor
    """Where each token of the pack stands in `tokens`, flattened (tokens,)."""

    def as_table(self, values: Tensor) -> Tensor:
        """Put one value for each answer token (answer tokens, ...) into a table (n, t, ...), zero elsewhere."""
        rows, width = self.shape
        table = values.new_zeros(rows * width, *values.shape[1:])
        return table.index_copy(0, self.places, values).view(rows, width, *values.shape[1:])

    def only(self, learnt: Sequence[bool]) -> "Pack":
        """Return the same rows with those of their answer tokens alone that are marked (answer tokens,)."""
        if all(learnt):
            return self
        kept = torch.tensor(learnt).nonzero().squeeze(1).to(self.before.device)
        return replace(self, before=self.before[kept], targets=self.targets[kept], places=self.places[kept])

    def apart(self, states: Tensor) -> list[Tensor]:
        """Return each row its tokens' part (tokens of a row, d) of what stands for all of them (tokens, d)."""
        return [states[row[:length]] for row, length in zip(self.tokens, self.lengths, strict=True)]

    def together(self, states: Sequence[Tensor]) -> Tensor:
        """Put together what `apart` gave, also when it comes from other packs."""
        table = nn.utils.rnn.pad_sequence(list(states), batch_first=True)
        return table.flatten(0, 1).index_select(0, self.home)


Lay = Callable[[Sequence[Tokens], Sequence[Tokens], torch.device], Pack]
"""Lays out prompts and answers: `pack` or `padded`."""


def pack(prompts: Sequence[Tokens], answers: Sequence[Tokens], device: torch.device | str = "cpu") -> Pack:
    """Put rows together; equal prompts stand there once."""
    ids: list[int] = []
    starts: dict[tuple[int, ...], int] = {}
    begun: list[tuple[int, int, bool]] = []  # where prompt and answer of a row begin, and whether it brings its prompt
    for prompt, answer in zip(prompts, answers, strict=True):
        at = starts.setdefault(tuple(prompt), len(ids))
        brings = at == len(ids)
        ids += prompt if brings else ()
        begun.append((at, len(ids), brings))
        ids += answer[:-1]  # an answer's last token predicts nothing
    start, after, brings_it = torch.tensor(begun)[:, :, None].unbind(dim=1)
    asked, place, real = _measured(prompts, answers)
    tokens = torch.where(place < asked, start + place, after + place - asked) * real
    first = real & ((place >= asked) | brings_it.bool())  # each token of the pack once
    home, positions, back = (torch.empty(len(ids), dtype=torch.long) for _ in range(3))
    home[tokens[first]] = first.flatten().nonzero().squeeze(1)
    positions[tokens[first]] = place.expand_as(first)[first]
    back[tokens[first]] = real.flatten().cumsum(0)[first.flatten()] - 1
    ends = nn.functional.pad(real.sum(dim=1).cumsum(0), (1, 0))
    laid = [tokens, home, tokens[real], back, ends, torch.tensor([ids]), positions[None]]
    answered, shape = _answered(tokens, asked, place, real, answers)
    moved = _on(device, [*laid, *answered])
    tokens, home, apart, back, ends, ids_of_pack, positions, before, targets, places = moved
    inputs = {
        "input_ids": ids_of_pack,
        "position_ids": positions,
        # Four dimensions: transformers takes it for a finished mask, and our attention does not look at it.
        "attention_mask": torch.ones(1, 1, 1, 1, device=device, dtype=torch.bool),
        "packed_rows": PackedRows(tokens, home, len(apart) == len(back), apart, back, ends.int()),
        "use_cache": False,
    }
    return Pack(inputs, before, targets, places, shape, tuple(real.sum(dim=1).tolist()), tokens, home)


def padded(prompts: Sequence[Tokens], answers: Sequence[Tokens], device: torch.device | str = "cpu") -> Pack:
    """Put rows below each other instead, filled up on the right; its tokens are those of the table (n * length).

    What stands behind a row's end is seen by no token of it, as long as the model is causal, so no mask is needed.
    """
    asked, place, real = _measured(prompts, answers)
    ids = torch.full(real.shape, FILLER)
    both = zip(prompts, answers, strict=True)
    ids[real] = torch.tensor([token for prompt, answer in both for token in (*prompt, *answer[:-1])])
    tokens = torch.arange(ids.numel()).view(ids.shape)
    answered, shape = _answered(tokens, asked, place, real, answers)
    ids, tokens, before, targets, places = _on(device, [ids, tokens, *answered])
    inputs = {"input_ids": ids, "use_cache": False}
    lengths = tuple(real.sum(dim=1).tolist())
    return Pack(inputs, before, targets, places, shape, lengths, tokens, tokens.flatten())


def _measured(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lengths of prompts (n, 1), the places of a row (length,), and which of them rows fill (n, length)."""
    asked, own = (torch.tensor([len(row) for row in rows])[:, None] for rows in (prompts, answers))
    lengths = asked + own - 1
    place = torch.arange(int(lengths.max()))
    return asked, place, place < lengths


def _answered(
    tokens: Tensor, asked: Tensor, place: Tensor, real: Tensor, answers: Sequence[Tokens]
) -> tuple[list[Tensor], tuple[int, int]]:
    """Return what a pack knows of its answers: `before`, `targets`, `places`, and the shape of their table."""
    own = torch.tensor([len(answer) for answer in answers])[:, None]
    mask = torch.arange(int(own.max())) < own
    targets = torch.tensor([token for answer in answers for token in answer])
    before = tokens[real & (place >= asked - 1)]
    return [before, targets, mask.flatten().nonzero().squeeze(1)], (len(answers), mask.shape[1])


def _on(device: torch.device | str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Bring tensors of whole numbers to a device, all of them at once, and without waiting for it."""
    where = torch.device(device)
    if where.type == "cpu":
        return list(tensors)
    flat = brought(torch.cat([tensor.flatten() for tensor in tensors]), where)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def joined(groups: Sequence[Sequence[int]], parts: Sequence[Tensor]) -> Tensor:
    """Put the tables (rows, t, ...) of groups together into one (n, t, ...), its rows in their order."""
    width = max(part.shape[1] for part in parts)
    wide = [torch.cat([part, part.new_zeros(len(part), width - part.shape[1], *part.shape[2:])], 1) for part in parts]
    order = torch.tensor([row for group in groups for row in group], device=wide[0].device)
    return torch.cat(wide).index_select(0, order.argsort())


LAID_OUT: Mapping[str, Lay] = {"packed": pack, "padded": padded}


def by_prompt(
    prompts: Sequence[Tokens], answers: Sequence[Tokens], size: int | None = None, most: int | None = None
) -> list[list[int]]:
    """Put rows into groups of `size` tokens, those of one prompt side by side; `most` rows each if given."""
    order = sorted(
        range(len(prompts)), key=lambda row: (len(prompts[row]), tuple(prompts[row]), len(answers[row]), row)
    )
    groups: list[list[int]] = []
    room = 0
    size = min(size or TOKENS_IN_A_PACK, parallel.share(sum(map(len, prompts)) + sum(map(len, answers)) - len(answers)))
    for row in order:
        length = len(prompts[row]) + len(answers[row]) - 1
        if not groups or length > room or len(groups[-1]) == most:
            groups.append([])
            room = size
        groups[-1].append(row)
        room -= length
    return groups


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_rows: PackedRows | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each row of a pack; tensors are (1, heads, tokens, d), the result (1, tokens, heads, d).

    PackedRows are put into a right-padded table for this alone: being causal, no token ever sees what stands behind it.
    """
    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    window = options.pop("sliding_window", None)
    if "window_size" in VARLEN and query.is_cuda and query.dtype in HALVES and query.shape[-1] <= WIDEST_HEAD:
        return _varlen(query, key, value, packed_rows, window, options["scaling"]), None
    query, key, value = (_apart(tensor, packed_rows) for tensor in (query, key, value))  # (n, heads, length, d)
    length = packed_rows.tokens.shape[1]
    mask = _windowed(length, window, query.device) if window is not None and window < length else None
    options["is_causal"] = mask is None
    found, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
    return found.flatten(0, 1).index_select(0, packed_rows.home)[None], None


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, window: int | None, scale: float | None
) -> Tensor:
    """Do the same by a kernel that takes rows of any length (FlashAttention), so that nothing is padded."""
    flat = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (tokens, heads, d) each
    query, key, value = flat if rows.whole else (tensor.index_select(0, rows.apart) for tensor in flat)
    more: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in VARLEN else {}
    if not more:  # heads of keys and values are shared by several of queries
        shared = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    length, back = rows.tokens.shape[1], -1 if window is None else window - 1
    attend: Any = varlen_attn  # it gives a pair where more is asked of it
    found: Tensor = attend(
        query, key, value, rows.ends, rows.ends, length, length, scale=scale, window_size=(back, 0), **more
    )
    return (found if rows.whole else found.index_select(0, rows.back))[None]


def _apart(tensor: Tensor, rows: PackedRows) -> Tensor:
    """Put the tokens of a pack (1, heads, tokens, d) into rows (n, heads, length, d)."""
    flat = tensor[0].transpose(0, 1)  # (tokens, heads, d)
    if rows.whole:
        spread = flat.new_zeros(rows.tokens.numel(), *flat.shape[1:]).index_copy(0, rows.home, flat)
    else:
        spread = flat.index_select(0, rows.tokens.flatten())
    return spread.view(*rows.tokens.shape, *flat.shape[1:]).transpose(1, 2)


def _windowed(length: int, window: int, device: torch.device) -> Tensor:
    """Allow each token itself and the `window` - 1 before it."""
    place = torch.arange(length, device=device)
    back = place[:, None] - place
    return ((back >= 0) & (back < window))[None, None]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def decoder_of(model: PreTrainedModel | PeftModel) -> nn.Module:
    """Return the part of a model that ends with its last hidden states, adapters included."""
    inner: Any = beneath(model)
    name_decoder(inner)
    if inner.base_model is inner:
        raise LookupError(f"a {type(inner).__name__} has no part that ends with its last hidden states")
    decoder: nn.Module = inner.base_model
    return decoder


def name_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model tell which part of it is the decoder: trainers ask, and Llama 4 gives a name that no part has."""
    if model.base_model is model:
        parts = (name for name, part in model.named_children() if isinstance(part, PreTrainedModel))
        model.base_model_prefix = next(parts, model.base_model_prefix)
    return model


def hidden_before_answers(model: PreTrainedModel | PeftModel, rows: Pack) -> Tensor:
    """Compute the hidden states that each answer token is drawn or valued from (answer tokens, d)."""
    return last_hidden(model, **rows.inputs).flatten(0, 1).index_select(0, rows.before)


def last_hidden(model: PreTrainedModel | PeftModel, **inputs: Any) -> Tensor:
    """Compute a model's last hidden states (n, t, d), adapters included."""
    decoder = decoder_of(model)
    hidden: Tensor = sharding.within(model, lambda: decoder(**inputs).last_hidden_state)
    return hidden


def logprobs_of(model: PreTrainedModel | PeftModel, rows: Pack, temperature: float = 1.0) -> Tensor:
    """Compute the log-probability of each answer token (n, t), in fp32; zero behind an answer's end."""
    hidden = hidden_before_answers(model, rows)
    return rows.as_table(chosen_logprobs(hidden, head_of(model), rows.targets, temperature))


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
    """Compute what a distribution says of tokens.

    Logits exist for a few rows at a time only, and unless they are few are computed again for the gradient: the table
    (m, vocabulary) is what fills memory in training.
    """
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


def beneath(model: PreTrainedModel | PeftModel) -> Any:
    """Return the model itself, without the wrapper of its adapters; their layers stay in it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def packs(model: PreTrainedModel | PeftModel, lengths: Sequence[tuple[int, int]] = PROBE_LENGTHS) -> bool:
    """Let a model read packed rows, and tell whether it computes from them just what it computes of each row alone.

    It is tried on a few rows of these lengths, so that nobody needs to know its architecture. A model that fails is
    left as it was.
    """
    inner = beneath(model)
    if inner.config._attn_implementation not in (PLAIN, PACKED):
        return False
    inner.set_attn_implementation(PACKED)
    try:
        same = same_hidden(inner, pack, lengths)
    except FAILURES:
        same = False
    if not same:
        inner.set_attn_implementation(PLAIN)
    return same


def probe(model: PreTrainedModel, lay: Lay) -> Pack:
    """Lay out a few short rows of any tokens, to try a model on."""
    return lay(*probe_rows(model, PROBE_LENGTHS), model.device)


def probe_rows(model: PreTrainedModel, lengths: Sequence[tuple[int, int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Draw prompts and answers of these lengths; the first two share their prompt."""
    chance = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    draw = [torch.randint(vocabulary, (sum(both),), generator=chance).tolist() for both in lengths]
    draw[1][: lengths[1][0]] = draw[0][: lengths[0][0]]
    cuts = [asked for asked, _ in lengths]
    return [row[:cut] for row, cut in zip(draw, cuts, strict=True)], [
        row[cut:] for row, cut in zip(draw, cuts, strict=True)
    ]


@torch.no_grad()
def same_hidden(model: PreTrainedModel, lay: Lay, lengths: Sequence[tuple[int, int]]) -> bool:
    """Compare hidden states of rows that are read together with those of each row alone."""
    prompts, answers = probe_rows(model, lengths)
    together = hidden_before_answers(model, lay(prompts, answers, model.device))
    alone = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        alone.append(last_hidden(model, input_ids=ids, use_cache=False)[0, -len(answer) - 1 : -1])
    return agree(together, torch.cat(alone))


def agree(found: Tensor, expected: Tensor) -> bool:
    """Return whether two results are the same but for rounding."""
    tolerance = 1e-4 if expected.dtype == torch.float32 else 0.1
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
