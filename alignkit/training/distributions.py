"""What models say of all tokens at each place of the same answers, without a table of all their logits.

Distributions over the vocabulary exist for a few tokens at a time, and unless they are few are computed again for the
gradient: the table (tokens, vocabulary) is what fills memory in training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignkit.contract.settings import Precision
from alignkit.training import parallel, sharding
from alignkit.training.answers import Model, exact_groups, in_passes
from alignkit.training.arithmetic import computing
from alignkit.training.output_layer import head_of, logits_in_a_chunk, logits_kept
from alignkit.training.packing import LAID_OUT, hidden_before_answers
from alignkit.training.rollouts import Tokens, answer_logits, answer_mask
from alignkit.training.ways import form_of

Compute: TypeAlias = Callable[[Sequence[Tensor], Tensor, Sequence[Tensor]], Tensor]
"""Given the log-probabilities of all tokens by each reader, one table (m, v) each, the tokens that stand there (m,) and
what is known besides, each (m, ...), it gives something of each (m, ...)."""


class PlaceLogits(NamedTuple):
    """What a model's logits before each answer token are made of."""

    states: Tensor
    """Its last hidden states (m, d); where it has no head that we know, the logits themselves."""
    weight: Tensor | None
    bias: Tensor | None
    scale: float = 1.0
    cap: float | None = None

    @property
    def vocabulary(self) -> int:
        return self.states.shape[1] if self.weight is None else len(self.weight)

    def logprobs(self, part: slice, tokens: int, temperature: float) -> Tensor:
        """Compute the log-probabilities of the first so many tokens (m, tokens), in fp32."""
        logits = self.states[part]
        if self.weight is not None:
            logits = torch.nn.functional.linear(logits, self.weight, self.bias).float() * self.scale
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return (logits[:, :tokens].float() / temperature).log_softmax(dim=-1)


@dataclass(frozen=True)
class Readers:
    """Models that read the same answers, each after prompts of its own.

    Where one has fewer tokens than another, as where an embedding was filled up, those of all alone are looked at.
    """

    models: Sequence[Model]
    temperature: float = 1.0
    """Divides the logits of all."""
    precision: Precision = "auto"

    def each_token(
        self,
        prompts: Sequence[Sequence[Tokens]],
        answers: Sequence[Tokens],
        compute: Compute,
        beside: Sequence[Tensor] = (),
    ) -> Tensor:
        """Compute something of each answer token (n, t, ...), zero behind an answer's end, with gradient.

        `prompts` are those of each model. What stands `beside` is a table each (n, t, ...), of which `compute` is given
        what belongs to its tokens.
        """
        with computing(self.precision):
            said = [_said(model, asked, answers) for model, asked in zip(self.models, prompts, strict=True)]
            device = said[0].states.device
            mask = answer_mask(answers, device)  # (n, t)
            targets = torch.tensor([token for answer in answers for token in answer], device=device)  # (m,)
            known = [table[mask] for table in beside]
            tokens = min(one.vocabulary for one in said)

            def part_of(part: slice) -> Tensor:
                tables = [one.logprobs(part, tokens, self.temperature) for one in said]
                return compute(tables, targets[part], [table[part] for table in known])

            size = max(1, logits_in_a_chunk(device) // tokens)
            parts = [slice(start, start + size) for start in range(0, len(targets), size)]
            again = torch.is_grad_enabled() and len(said) * len(targets) * tokens > logits_kept(device)
            found = torch.cat(
                [checkpoint(part_of, part, use_reentrant=False) if again else part_of(part) for part in parts]
            )
        table = found.new_zeros(*mask.shape, *found.shape[1:])
        return table.masked_scatter(mask.view(*mask.shape, *[1] * (found.ndim - 1)).expand_as(table), found)

    @torch.no_grad()
    def every_answer(
        self,
        prompts: Sequence[Sequence[Tokens]],
        answers: Sequence[Tokens],
        compute: Compute,
        beside: Sequence[Tensor] = (),
    ) -> Tensor:
        """Compute the same of any number of answers without gradient, as many at once as fit; processes share it."""
        mine = parallel.deal_weighted(in_passes(self.models[0], prompts[0], answers))
        parts = []
        for group, _ in mine:
            asked = [[rows[row] for row in group] for rows in prompts]
            width = max(len(answers[row]) for row in group)
            known = [table[group, :width] for table in beside]
            parts.append(self.each_token(asked, [answers[row] for row in group], compute, known))
        for model in self.models:
            sharding.part_again(model)
        return parallel.table_of_all(mine, parts, len(answers), max(map(len, answers)))


def _said(model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> PlaceLogits:
    """Return what a model says before each answer token, row after row."""
    groups = exact_groups(model, prompts, answers)
    parts = [_states(model, [prompts[row] for row in group], [answers[row] for row in group]) for group in groups]
    order = [row for group in groups for row in group]
    states = torch.cat(parts)
    if order != sorted(order):
        pieces = dict(zip(order, torch.split(states, [len(answers[row]) for row in order]), strict=True))
        states = torch.cat([pieces[row] for row in sorted(order)])
    if form_of(model) == "logits":
        return PlaceLogits(states, None, None)
    head = head_of(model)
    return PlaceLogits(states, head.weight, head.bias, head.scale, head.cap)


def _states(model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
    form = form_of(model)
    if form == "logits":
        logits, _ = answer_logits(model, prompts, answers)
        return logits[answer_mask(answers, logits.device)]
    return hidden_before_answers(model, LAID_OUT[form](prompts, answers, model.device))
