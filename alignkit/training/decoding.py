"""Decoding token by token: the logits of each next token, by the fastest way that a model computes them rightly.

Most models keep keys and values of what they have read, for rows of any length side by side, and rows that have ended
are taken out. Others (convolutions, state spaces, recurrences) keep states that know nothing of padding or of leaving,
or nothing at all. `learn.ways` tries which way is exact.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from alignkit.training.packing import FILLER, Tokens, beneath

CACHES = ("past_key_values", "cache_params", "state")
"""What architectures call what they keep."""


class Way(NamedTuple):
    """How answers are decoded."""

    cache: Literal["padded", "level", "none"]
    """Rows of any length together, padded on the left; rows of one length together; nothing is kept, and each step
    reads the rows anew."""
    drops: bool = False
    """Rows that have ended are taken out of what is kept; else they go on, and nothing looks at them."""


WAYS = (Way("padded", drops=True), Way("padded"), Way("level", drops=True), Way("level"), Way("none"))
"""The fastest first."""


class Decoding:
    """Rows that grow token by token, and the logits of their next tokens."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: Sequence[Tokens],
        way: Way,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._model, self._way, self._within = model, way, within
        self._inner = beneath(model)
        self._quiet = without_router_logits(model)
        self._rows = [list(prompt) for prompt in prompts]
        self._open = list(range(len(prompts)))
        """Of the rows in the batch, those that go on."""
        self.logits: Tensor
        """Of the next token of each row that goes on (open, vocabulary)."""
        self._inputs: dict[str, Tensor] = {}
        """The mask and the positions so far, where rows are padded."""
        if way.cache == "none":
            self._read_whole()
        else:
            self._begin()

    def step(self, tokens: Tensor, going_on: Sequence[int]) -> None:
        """Append a token (open,) to each of those rows that go on; `going_on` are their places among the open ones."""
        places = [self._open[place] for place in going_on]
        if self._way.cache == "none":
            self._rows = [[*self._rows[place], token] for place, token in zip(places, tokens.tolist(), strict=True)]
            self._open = list(range(len(places)))
            self._read_whole()
            return
        count = len(self._rows)
        if self._way.drops and len(places) < count:
            index = torch.tensor(places, device=tokens.device)
            self._cache.batch_select_indices(index)
            self._rows = [self._rows[place] for place in places]
            self._inputs = {name: table[index] for name, table in self._inputs.items()}
            self._open = list(range(len(places)))
        else:
            self._open = places
        column = tokens.new_full((len(self._rows), 1), FILLER)
        column[self._open, 0] = tokens
        self._go_on(column)

    def _read_whole(self) -> None:
        """Read all rows from their beginning, filled up on the right."""
        length = max(map(len, self._rows))
        ids = torch.tensor([row + [FILLER] * (length - len(row)) for row in self._rows], device=self._model.device)
        logits = self._pass(input_ids=ids, use_cache=False).logits
        ends = torch.tensor([len(row) - 1 for row in self._rows], device=logits.device)
        self.logits = logits[torch.arange(len(ends), device=logits.device), ends]

    def _begin(self) -> None:
        """Read the prompts."""
        length = max(map(len, self._rows))
        ids = torch.tensor([[FILLER] * (length - len(row)) + row for row in self._rows], device=self._model.device)
        if self._way.cache == "padded":
            lengths = torch.tensor([[length - len(row)] for row in self._rows], device=ids.device)
            mask = (torch.arange(length, device=ids.device) >= lengths).long()
            self._inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
        first = {"logits_to_keep": 1} if "logits_to_keep" in signature(self._inner.forward).parameters else {}
        self._take(self._pass(input_ids=ids, **self._inputs, **first, use_cache=True))

    def _go_on(self, column: Tensor) -> None:
        """Read one more token of each row (rows, 1)."""
        if self._inputs:
            mask, positions = self._inputs["attention_mask"], self._inputs["position_ids"]
            grown = torch.nn.functional.pad(mask, (0, 1), value=1)
            self._inputs = {"attention_mask": grown, "position_ids": positions[:, -1:] + 1}
        kept = {self._kept: self._cache}
        self._take(self._pass(input_ids=column, **self._inputs, **kept, use_cache=True))

    def _pass(self, **inputs: Any) -> Any:
        with self._within():
            return self._model(**inputs, **self._quiet)

    def _take(self, output: Any) -> None:
        kept = [name for name in CACHES if getattr(output, name, None) is not None]
        if not kept:
            raise LookupError(f"a {type(self._inner).__name__} keeps nothing of what it has read")
        self._kept, self._cache = kept[0], getattr(output, kept[0])
        logits: Tensor = output.logits[:, -1]
        self.logits = logits if len(self._open) == len(logits) else logits[self._open]


class Mixture:
    """Rows that grow by the geometric mixture of two models, one^(1 - share) * other^share at every token."""

    def __init__(self, one: Decoding, other: Decoding, share: float) -> None:
        self._both, self._share = (one, other), share

    @property
    def logits(self) -> Tensor:
        """Of the next token of each row that goes on (open, vocabulary); its constant cancels in the softmax."""
        one, other = (decoding.logits.float() for decoding in self._both)
        return (1 - self._share) * one + self._share * other

    def step(self, tokens: Tensor, going_on: Sequence[int]) -> None:
        """Append a token (open,) to each of those rows that go on."""
        for decoding in self._both:
            decoding.step(tokens, going_on)


def without_router_logits(model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """Return what keeps a mixture of experts from a loss on its routers, which only its training has a use for."""
    asks = getattr(model.config.get_text_config(), "output_router_logits", False)
    return {"output_router_logits": False} if asks else {}


def groups_to_decode(prompts: Sequence[Tokens], way: Way, size: int) -> list[list[int]]:
    """Put prompts of like length into groups of at most `size`; of the same length, where the way asks for it."""
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    apart = groupby(order, key=lambda row: len(prompts[row]) if way.cache == "level" else 0)
    groups = [list(group) for _, group in apart]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]
