"""What all methods that learn from pairs have in common: from a policy and preferences to a policy and its results.

A method brings an objective: from what the policy says of the two answers of pairs to a loss and two rewards of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import PositiveFloat

from alignkit import PairNeeds, Policy, Preferences, RowSettings, Stage, pair_needs
from alignkit_dpo.start_logprobs import KEPT, Start

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.kit import Pair

START = "start logprobs"
"""What a pair's row holds besides: the start's log-probabilities of its two answers."""
SHIFT = "margin shift"
"""And what is added to its margin in this step."""


class PairSettings(RowSettings):
    """Settings of every method of this package that learns from pairs."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate; 5e-7 to 5e-6 for billions of weights, ten times as much with LoRA."""


class Side(NamedTuple):
    """One answer of each of n pairs, all (n,)."""

    gains: Tensor
    """log pi(y) - log pi_ref(y), in nats; without a start log pi(y)."""
    logprobs: Tensor
    """log pi(y)."""
    lengths: Tensor
    """Tokens."""


class Sides(NamedTuple):
    """What a policy says of n pairs."""

    chosen: Side
    rejected: Side
    p_chosen: Tensor | None
    """How likely it is that the chosen one is the better (n,); None where all are certain."""
    shift: Tensor
    """What is added to the margin (n,), in nats."""


class Judgement(NamedTuple):
    """The loss of each of n pairs (n,), and the rewards of its two answers, each (n,)."""

    loss: Tensor
    chosen: Tensor
    rejected: Tensor


Objective = Callable[[Sides], Judgement]


@dataclass(frozen=True)
class PairMethod:
    """How a method learns from pairs."""

    settings: RowSettings
    objective: Objective
    compared: bool = True
    """With its start, which says once before the first step what it thinks of all pairs."""
    tail: float = 1.0
    """What a token counts behind the length of the shorter answer of its pair."""
    before_step: Callable[[Any, Sequence[Pair]], Sequence[Pair]] | None = None
    """From a model and the pairs of a step to those that the objective takes."""

    def sides(self, model: Any, part: Sequence[Pair]) -> Sides:
        """Read pairs, with gradient."""
        import torch

        from alignkit.kit import brought, pair_logprobs

        tables = pair_logprobs(model, part)
        known = torch.tensor([facts_of(pair) for pair in part])
        p_chosen, shift, *start_and_lengths = brought(known, tables[0].device).unbind(dim=1)
        start, lengths = start_and_lengths[:2], start_and_lengths[2:]
        weighed = self.weighed(tables, lengths)
        chosen, rejected = (
            Side(one.sum(dim=1) - began, table.sum(dim=1), length)
            for one, began, table, length in zip(weighed, start, tables, lengths, strict=True)
        )
        certain = all(pair.p_chosen == 1 for pair in part)
        return Sides(chosen, rejected, None if certain else p_chosen, shift)

    def weighed(self, tables: Sequence[Tensor], lengths: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return log-probabilities of tokens (n, t) of both sides, less of those behind the shorter answer's length."""
        import torch

        if self.tail == 1:
            return tables
        shared = torch.minimum(*lengths)[:, None]  # (n, 1)
        places = [torch.arange(table.shape[1], device=table.device) for table in tables]
        return [
            table * torch.where(place < shared, 1.0, self.tail) for table, place in zip(tables, places, strict=True)
        ]

    def loss(self, model: Any, part: Sequence[Pair]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of each of n pairs (n,), and its figures."""
        sides = self.sides(model, part)
        judged = self.objective(sides)
        chosen, rejected = judged.chosen.detach(), judged.rejected.detach()
        margin = chosen - rejected
        return judged.loss, {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": margin,
            "rewards/accuracies": (margin > KEPT).float() + 0.5 * (margin.abs() <= KEPT).float(),
            "logps/chosen": sides.chosen.logprobs.detach(),
            "logps/rejected": sides.rejected.logprobs.detach(),
        }

    def margins(self, model: Any, pairs: Sequence[Pair]) -> list[float]:
        """Return by how much the reward of each chosen answer exceeds that of the rejected one."""
        from alignkit.kit import map_pairs

        found: list[float] = map_pairs(
            model, pairs, lambda part: self.loss(model, part)[1]["rewards/margins"], self.settings
        ).tolist()
        return found

    def sums(self, model: Any, pairs: Sequence[Pair]) -> list[list[float]]:
        """Return the log-probabilities of each pair's chosen and rejected answer, as gains are taken from them."""
        import torch

        from alignkit.kit import map_pairs

        def both(part: Sequence[Pair]) -> Tensor:
            bare = [pair._replace(row={}) for pair in part]
            sides = self.sides(model, bare)
            return torch.stack([sides.chosen.gains, sides.rejected.gains], dim=1)

        computed: list[list[float]] = map_pairs(model, pairs, both, self.settings).tolist()
        return computed


def facts_of(pair: Pair) -> tuple[float, ...]:
    """Return a pair's soft label, the shift of its margin, what the start says of its answers, and their lengths."""
    lengths = len(pair.chosen.answer), len(pair.rejected.answer)
    return pair.p_chosen, pair.row.get(SHIFT, 0.0), *pair.row.get(START, (0.0, 0.0)), *lengths


def of_both_orders(sides: Sides, preferring: Callable[[Sides], Tensor]) -> Tensor:
    """Compute the loss of n pairs (n,): of preferring the chosen answer, and by its soft label of the other order."""
    if sides.p_chosen is None:
        return preferring(sides)
    swapped = sides._replace(chosen=sides.rejected, rejected=sides.chosen, shift=-sides.shift)
    return sides.p_chosen * preferring(sides) + (1 - sides.p_chosen) * preferring(swapped)


def needs(settings: RowSettings, reads: float = 1.0) -> PairNeeds:
    """Return what a method will do that reads each pair so often besides."""
    return replace(pair_needs(settings), reads=reads)


def learn(
    method: PairMethod, stage: Stage, policy: Policy, pairs: Preferences, reference: Policy | None = None
) -> Policy:
    """Train a policy on pairs by a method's objective, save it, and tell what came of it.

    A `reference` stands for the start: gains are then counted from it.
    """
    from alignkit.kit import load_policy, load_reference, read_pairs, train_pairs, with_values

    settings = method.settings
    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    train, held_out = read_pairs(pairs, model, tokenizer, settings, stage)
    if method.compared:
        began = load_reference(reference, policy, tokenizer, settings.precision) if reference else model
        start = start_of(method, began, reference or policy, stage, learns=reference is None)
        said = start.says_of(train, held_out)
        train, held_out = with_values(train, START, said[0]), with_values(held_out, START, said[1])
        del began, start  # only its log-probabilities are needed from here on
    known = method.compared and reference is None
    before = None if known or not held_out else method.margins(model, held_out)
    ahead = partial(method.before_step, model) if method.before_step else None
    train_pairs(model, train, partial(method.loss, model), settings, stage, before_step=ahead)
    made = stage.save_policy(model, tokenizer)
    tell((train, held_out), (before, method.margins(model, held_out)), tokenizer, settings, stage)
    return made


def start_of(method: PairMethod, model: Any, policy: Policy, stage: Stage, *, learns: bool) -> Start[Pair]:
    """Return how a model reads pairs before the first step."""
    form = "" if method.tail == 1 else f" tail {method.tail}"
    return Start(policy, method.settings, stage, lambda part: method.sums(model, part), tokens_of, form, learns)


def tokens_of(pair: Pair) -> list[list[int]]:
    return [*pair.chosen, *pair.rejected]


def tell(
    rows: tuple[Sequence[Pair], Sequence[Pair]],
    margins: tuple[Sequence[float] | None, Sequence[float]],
    tokenizer: Any,
    settings: RowSettings,
    stage: Stage,
) -> None:
    """Report how often the chosen answer of held-out pairs has the higher reward, beside what length or words tell.

    `margins` are those before and after; None before: no answer has gained anything against its own start.
    """
    from alignkit.kit import pair_accuracy_floor, picked_samples

    (train, held_out), (before, after) = rows, margins
    if not held_out:
        stage.warn("no pairs are held out, so accuracy is not measured", "raise the source's held_out")
        return
    lengths = [len(pair.chosen.answer) - len(pair.rejected.answer) for pair in held_out]
    longer = fmean(0.5 if more == 0 else float(more > 0) for more in lengths)
    floor, _ = pair_accuracy_floor(
        longer, *((pair.row for pair in side) for side in (train, held_out)), cache=stage.cache
    )
    stage.measure("accuracy", 0.5 if before is None else won(before), won(after), floor)
    stage.measure("margin", 0.0 if before is None else before, after)
    stage.rows({"margin": after, "longer": lengths})
    for place, kind in picked_samples(after, settings.samples):
        pair, margin = held_out[place], after[place]
        stage.sample(
            {
                "prompt": tokenizer.decode(pair.chosen.prompt),
                "chosen": tokenizer.decode(pair.chosen.answer, skip_special_tokens=True),
                "rejected": tokenizer.decode(pair.rejected.answer, skip_special_tokens=True),
                "margin": round(margin, 4),
            },
            kind,
        )


def won(margins: Sequence[float]) -> list[float]:
    """Return 1 of each pair whose chosen answer leads, 0 of others, and 0.5 of ties."""
    return [0.5 if margin == 0 else float(margin > 0) for margin in margins]
