"""A decoder cut in two: lower layers that stay as they are, and upper ones that are trained.

What the lower layers make of a text does not change while only the upper ones learn. So it is computed once for each
sampled answer and used by policy, start and critic alike, in every epoch.

Nothing is taken for granted of a decoder but that it runs a list of layers one after another: a run shows what follows
the last one (a norm, a projection), and what stands before the first (positions, factors) is left as it is. In a pass
over one part the other part's layers hand on what they are given.
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
from alignkit.training.packing import FAILURES, Lay, Pack, agree, decoder_of, pack, probe


@dataclass(frozen=True)
class Upper:
    """Layers, and what follows them."""

    layers: nn.ModuleList
    ends: nn.ModuleList


@dataclass(frozen=True)
class Trunk:
    """Where a decoder is cut."""

    decoder: Any
    stack: nn.ModuleList
    """The decoder's own list of all layers; its places are filled with those of a part for a pass."""
    ends: tuple[str, ...]
    """The names, in the decoder, of what follows the layers."""
    tuples: bool
    """A layer gives its hidden states as the first of several things."""
    below: nn.ModuleList
    upper: Upper
    """What is trained."""
    start: Upper
    """What it was at the start, frozen."""

    @classmethod
    def cut(cls, model: PreTrainedModel, trained: int, lay: Lay = pack) -> Self:
        """Leave only the upper layers of a model to be trained; `lay` lays out rows in the form that it reads.

        Raises RecipeError where it cannot be cut.
        """
        decoder, where = decoder_of(model), "trained_layers"
        stack = _stack(decoder, int(model.config.get_text_config().num_hidden_layers))
        if stack is None:
            raise RecipeError(_unfit(model), where, "let all weights learn")
        if trained >= len(stack):
            raise RecipeError(
                f"the model has {len(stack)} layers, so {trained} trained ones leave none frozen",
                where,
                f"set it below {len(stack)}, or let all weights learn",
            )
        ends, tuples = _watched(decoder, stack, probe(model, lay))
        layers = list(stack)
        upper = Upper(nn.ModuleList(layers[-trained:]), nn.ModuleList(map(decoder.get_submodule, ends)))
        model.requires_grad_(False)
        trunk = cls(decoder, stack, ends, tuples, nn.ModuleList(layers[:-trained]), upper, copy.deepcopy(upper))
        if not trunk.is_exact(model, lay):
            raise RecipeError(_unfit(model), where, "let all weights learn")
        upper.layers.requires_grad_(True)
        upper.ends.requires_grad_(True)
        return trunk

    @torch.no_grad()
    def states(self, rows: Pack) -> Tensor:
        """Compute what the frozen layers make of the tokens of a pack (tokens, d)."""
        left: list[Tensor] = []
        handle = self.below[-1].register_forward_hook(lambda _, __, output: left.append(_hidden(output)))
        try:
            with self._consisting_of([*self.below, *map(self._through, self.upper.layers)], self.upper):
                self.decoder(**rows.inputs)
        finally:
            handle.remove()
        return left[0].flatten(0, 1)

    def hidden(self, rows: Pack, states: Tensor, upper: Upper) -> Tensor:
        """Compute, from what the frozen layers made, the last hidden states before each answer token (m, d)."""
        given = states.view(*rows.inputs["input_ids"].shape, -1)
        first, *rest = map(self._through, self.below)
        first.given = given
        with self._consisting_of([first, *rest, *upper.layers], upper):
            hidden: Tensor = self.decoder(**rows.inputs).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, rows.before)

    @torch.no_grad()
    def is_exact(self, model: PreTrainedModel, lay: Lay) -> bool:
        """Return whether the two parts, one after the other, compute what the whole does."""
        rows = probe(model, lay)
        whole: Tensor = self.decoder(**rows.inputs).last_hidden_state.flatten(0, 1).index_select(0, rows.before)
        try:
            return agree(self.hidden(rows, self.states(rows), self.start), whole)
        except FAILURES:
            return False

    def _through(self, layer: nn.Module) -> "_Through":
        return _Through(layer, self.tuples)

    @contextmanager
    def _consisting_of(self, layers: list[nn.Module], part: Upper) -> Iterator[None]:
        whole, own = list(self.stack), [self.decoder.get_submodule(name) for name in self.ends]
        self._put(layers, list(part.ends))
        try:
            yield
        finally:
            self._put(whole, own)

    def _put(self, layers: list[nn.Module], ends: list[nn.Module]) -> None:
        for place, layer in enumerate(layers):
            self.stack[place] = layer
        for name, end in zip(self.ends, ends, strict=True):
            self.decoder.set_submodule(name, end)


class _Through(nn.Module):
    """Stands for a layer, and hands on the hidden states that it gets, or others that it was given."""

    def __init__(self, layer: nn.Module, tuples: bool) -> None:
        super().__init__()
        self.tuples = tuples
        self.given: Tensor | None = None
        self.__dict__["layer"] = layer  # no part of it: what is trained is looked for among parts

    def __getattr__(self, name: str) -> Any:
        """Return what the decoder asks of a layer, such as its kind of attention."""
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: Tensor, *others: Any, **named: Any) -> Any:
        through = hidden_states if self.given is None else self.given.to(hidden_states.dtype)
        return (through,) if self.tuples else through


def _hidden(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _stack(decoder: nn.Module, layers: int) -> nn.ModuleList | None:
    """Find the list of a decoder's layers."""
    lists = (part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == layers)
    return next(lists, None)


@torch.no_grad()
def _watched(decoder: nn.Module, stack: nn.ModuleList, rows: Pack) -> tuple[tuple[str, ...], bool]:
    """Name the parts of a decoder that run after its last layer, and say whether layers give tuples."""
    names = {part: name for name, part in decoder.named_modules()}
    holder = names[stack].rpartition(".")[0]
    beside = decoder.get_submodule(holder).named_children()
    watched = {part: f"{holder}.{name}".lstrip(".") for name, part in beside if part is not stack}
    ran: list[str] = []
    outputs: list[Any] = []

    def last(_: nn.Module, __: Any, output: Any) -> None:
        ran.clear()
        outputs.append(output)

    handles = [
        part.register_forward_hook(lambda _, __, ___, name=name: ran.append(name)) for part, name in watched.items()
    ]
    handles.append(stack[-1].register_forward_hook(last))
    try:
        decoder(**rows.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(dict.fromkeys(ran)), isinstance(outputs[-1], tuple)


def _unfit(model: PreTrainedModel) -> str:
    name = type(model).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name} cannot be cut into frozen and trained layers"
