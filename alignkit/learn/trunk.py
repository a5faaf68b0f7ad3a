"""A decoder cut in two: lower layers that stay as they are, and upper ones that are trained.

What the lower layers make of a text does not change while only the upper ones learn. So it is computed once for each
sampled answer and used by policy, start and critic alike, in every epoch.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignkit.errors import RecipeError
from alignkit.learn.packing import FAILURES, Pack, agree, decoder_of, probe

STACKS = ("layers", "h")
"""What architectures call their layers, and in the same order the norm that follows them."""
NORMS = ("norm", "ln_f")


@dataclass(frozen=True)
class Upper:
    """Layers with the norm that ends them."""

    layers: nn.ModuleList
    norm: nn.Module


@dataclass(frozen=True)
class Trunk:
    """Where a decoder is cut."""

    decoder: Any
    stack: str
    """The decoder's attribute that holds its layers."""
    end: str
    """The attribute that holds the norm after them."""
    below: nn.ModuleList
    upper: Upper
    """The layers that are trained."""
    start: Upper
    """What they were at the start, frozen."""

    @classmethod
    def cut(cls, model: PreTrainedModel, trained: int) -> Self:
        """Leave only the upper layers of a model to be trained; raises RecipeError where it cannot be cut."""
        decoder: Any = decoder_of(model)
        found = [(stack, end) for stack, end in zip(STACKS, NORMS, strict=True) if hasattr(decoder, stack)]
        where = "trained_layers"
        if not found:
            raise RecipeError(_unfit(model), where, "let all weights learn")
        stack, end = found[0]
        layers = list(getattr(decoder, stack))
        if trained >= len(layers):
            raise RecipeError(
                f"the model has {len(layers)} layers, so {trained} trained ones leave none frozen",
                where,
                f"set it below {len(layers)}, or let all weights learn",
            )
        upper = Upper(nn.ModuleList(layers[-trained:]), getattr(decoder, end))
        model.requires_grad_(False)
        start = Upper(copy.deepcopy(upper.layers), copy.deepcopy(upper.norm))
        trunk = cls(decoder, stack, end, nn.ModuleList(layers[:-trained]), upper, start)
        if not trunk.is_exact(model):
            raise RecipeError(_unfit(model), where, "let all weights learn")
        upper.layers.requires_grad_(True)
        upper.norm.requires_grad_(True)
        return trunk

    @torch.no_grad()
    def states(self, rows: Pack) -> Tensor:
        """Compute what the frozen layers make of a pack (tokens, d)."""
        with self._consisting_of(Upper(self.below, nn.Identity())):
            hidden: Tensor = self.decoder(**rows.inputs).last_hidden_state
        return hidden[0]

    def hidden(self, rows: Pack, states: Tensor, upper: Upper) -> Tensor:
        """Compute, from what the frozen layers made, the last hidden states before each answer token (m, d)."""
        inputs = {**rows.inputs, "inputs_embeds": states[None]}
        del inputs["input_ids"]
        with self._consisting_of(upper):
            hidden: Tensor = self.decoder(**inputs).last_hidden_state
        return hidden[0].index_select(0, rows.before)

    @torch.no_grad()
    def is_exact(self, model: PreTrainedModel) -> bool:
        """Tell whether the two parts, one after the other, compute what the whole does."""
        rows = probe(model)
        whole: Tensor = self.decoder(**rows.inputs).last_hidden_state[0].index_select(0, rows.before)
        try:
            return agree(self.hidden(rows, self.states(rows), self.upper), whole)
        except FAILURES:
            return False

    @contextmanager
    def _consisting_of(self, part: Upper) -> Iterator[None]:
        whole, end = getattr(self.decoder, self.stack), getattr(self.decoder, self.end)
        setattr(self.decoder, self.stack, part.layers)
        setattr(self.decoder, self.end, part.norm)
        try:
            yield
        finally:
            setattr(self.decoder, self.stack, whole)
            setattr(self.decoder, self.end, end)


def _unfit(model: PreTrainedModel) -> str:
    return f"a {type(model).__name__} cannot be cut into frozen and trained layers"
