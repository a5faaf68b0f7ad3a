"""Rows of any length through a model without padding, all in one sequence.

Padding costs as much as text: with real prompts and answers half of a padded table is empty. Here the tokens of all
rows stand one after the other in a single row, so that every layer computes real tokens only; attention alone puts
the rows apart again. Answers to one prompt share its computation: what a causal model makes of a prompt does not
depend on what follows. Nothing is approximated, and `packs` refuses a model that computes anything else this way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, NamedTuple

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
