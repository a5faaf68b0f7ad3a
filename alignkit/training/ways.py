"""How a model may be run so that it computes of many rows just what it computes of each alone.

It is tried on a miniature of the architecture (`learn.miniature`), once for each config: rows of different lengths,
longer than its windows, that end at different times. What is not exact is not used.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignkit.training.decoding import WAYS, Decoding, Way, groups_to_decode
from alignkit.training.miniature import miniature
from alignkit.training.output_layer import find_head
from alignkit.training.packing import (
    FAILURES,
    LONG_PROBE_LENGTHS,
    PROBE_LENGTHS,
    agree,
    beneath,
    packs,
    padded,
    probe_rows,
    same_hidden,
)

Model: TypeAlias = PreTrainedModel | PeftModel
Form = Literal["packed", "padded", "logits"]
"""How rows go through a model: in one sequence; below each other; or below each other through its own head, since that
is none that we know."""


@dataclass(frozen=True)
class Ways:
    """What was found of an architecture."""

    causal: bool
    """No token changes what is computed of those before it."""
    packed: bool
    """Rows may stand in one sequence."""
    padded: bool
    """Rows may stand below each other, filled up on the right; else they go alone."""
    decoding: Way
    tried_small: bool = True
    """It was tried on a miniature; else on the model itself, whose windows may be longer than any row tried."""


_known: dict[str, Ways] = {}
_own: WeakKeyDictionary[nn.Module, Ways] = WeakKeyDictionary()
_forms: WeakKeyDictionary[nn.Module, Form] = WeakKeyDictionary()


def ways_of(model: Model) -> Ways:
    """Return how a model may be run, by its config; one of which no miniature can be made is tried itself."""
    inner = beneath(model)
    if inner not in _own:
        _own[inner] = ways_of_config(inner.config) or _tried(inner, small=False)
    return _own[inner]


def ways_of_config(config: Any) -> Ways | None:
    """Return how models of a config may be run; None where no miniature can be made of it."""
    key = json.dumps(config.to_dict(), sort_keys=True, default=str)
    if key not in _known:
        small = miniature(config)
        if small is None:
            return None
        _known[key] = _tried(small, small=True)
    return _known[key]


def form_of(model: Model) -> Form:
    """Let a model read rows in the fastest form in which it computes of them what it computes of each alone."""
    inner = beneath(model)
    if inner not in _forms:
        _forms[inner] = form_by(ways_of(inner), inner)
    return _forms[inner]


def form_by(ways: Ways, model: PreTrainedModel) -> Form:
    """Let a model read rows in the fastest form that its ways allow, and that it knows."""
    if find_head(model) is None:
        return "logits"
    return "packed" if ways.packed and packs(model) else "padded"


def reads_packed(model: Model) -> bool:
    """Let a model read packed rows, and tell whether it does; the miniature knows of windows, the model of itself."""
    return ways_of(model).packed and packs(model)


def rows_together(model: Model) -> int | None:
    """Return how many rows may be read together in a table: one, or as many as fit (None)."""
    return None if ways_of(model).padded else 1


def decoding_of(model: Model) -> Way:
    """Return how answers of a model are decoded."""
    return ways_of(model).decoding


def alone_beyond(model: Model) -> int | None:
    """Return the length beyond which a row changes what is computed of those beside it, by its rotary frequencies.

    With `longrope` and `dynamic` scaling they depend on the longest row of a pass (transformers'
    `dynamic_rope_update`).
    """
    facts = model.config.get_text_config()
    rope = getattr(facts, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if not any(kind.get("rope_type") in ("longrope", "dynamic") for kind in kinds):
        return None
    found = [kind.get("original_max_position_embeddings") for kind in kinds]
    found += [getattr(facts, name, None) for name in ("original_max_position_embeddings", "max_position_embeddings")]
    return next((int(length) for length in found if length), None)


@torch.no_grad()
def _tried(model: PreTrainedModel, *, small: bool) -> Ways:
    lengths = LONG_PROBE_LENGTHS if small else PROBE_LENGTHS
    causal, plain = is_causal(model), model.config._attn_implementation
    decoding = next((way for way in WAYS if _works(lambda way=way: decodes(model, way, lengths))), WAYS[-1])  # type: ignore[misc]
    rows = _works(lambda: same_hidden(model, padded, lengths))
    packed = causal and packs(model, lengths) and (small or not looks_back(model.config))
    model.set_attn_implementation(plain)
    return Ways(causal, packed, rows, decoding, small)


def _works(attempt: Callable[[], bool]) -> bool:
    try:
        return attempt()
    except FAILURES:
        return False


def looks_back(config: Any) -> bool:
    """Return whether a config has a window or a chunk, beyond which rows that were tried do not reach."""
    from alignkit.training.miniature import WINDOWS

    facts = config.get_text_config().to_dict()
    return any(facts.get(name) for name in WINDOWS)


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Return whether another token changes nothing of what is computed of those before it."""
    ids = torch.tensor([probe_rows(model, PROBE_LENGTHS)[0][2]], device=model.device)
    other, half = ids.clone(), ids.shape[1] // 2
    other[:, half:] = (other[:, half:] + 1) % int(model.config.get_text_config().vocab_size)
    one, two = (model(input_ids=row, use_cache=False).logits[:, :half] for row in (ids, other))
    return agree(two, one)


def decodes(model: PreTrainedModel, way: Way, lengths: tuple[tuple[int, int], ...]) -> bool:
    """Compare the logits of rows that are decoded together, and end at different times, with those of each alone."""
    prompts, answers = probe_rows(model, lengths)
    for group in groups_to_decode(prompts, way, len(prompts)):
        expected = [_alone(model, prompts[row], answers[row]) for row in group]
        for found, row, place in _forced(model, way, [prompts[row] for row in group], [answers[row] for row in group]):
            if not agree(found, expected[row][place]):
                return False
    return True


def _alone(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    """Compute the logits before each answer token (t, vocabulary) of a row by itself."""
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, -len(answer) :]
    return logits


def _forced(model: PreTrainedModel, way: Way, prompts: list[list[int]], answers: list[list[int]]) -> Any:
    """Decode given answers; yield the logits (vocabulary,) of each step with their row and place."""
    decoding, open_rows = Decoding(model, prompts, way), list(range(len(prompts)))
    for place in range(max(map(len, answers))):
        for logits, row in zip(decoding.logits, open_rows, strict=True):
            yield logits, row, place
        going_on = [i for i, row in enumerate(open_rows) if place + 1 < len(answers[row])]
        if not going_on:
            return
        open_rows = [open_rows[i] for i in going_on]
        tokens = torch.tensor([answers[row][place] for row in open_rows], device=model.device)
        decoding.step(tokens, going_on)
