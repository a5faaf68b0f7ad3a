"""DPO: raise the chosen answers above the rejected ones, without a reward model.

Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) maximises log sigmoid(margin), where an answer's
reward is beta times the log-probability by which the policy exceeds its start, and the margin the chosen answer's
reward less the rejected one's. The start is never a second model in training: before the first step the policy itself
is the start, and what it says of the pairs is kept on disk for this stage and all that begin at the same policy. Where
`reference` names another policy, that one stands for the start.

1. Soft labels: where a row has `p_chosen`, the loss is the mean of those of both orders, weighted by it.
2. `ipo` counts log-probabilities by token, as its authors advise, so that long answers do not weigh more.
3. Dropout is off: a pair's margin at the start is exactly zero, which is checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Literal, Self, overload

from pydantic import Field, PositiveFloat, model_validator

from alignkit import (
    DataError,
    Method,
    Policy,
    Preferences,
    RowSettings,
    Stage,
    StageError,
    hookimpl,
    method,
    pair_needs,
)
from alignkit_dpo.kto import kto

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor

    from alignkit.kit import Pair

SAME = 1e-3
"""Nats by which an answer's log-probability may differ between two passes in fp32; more is another model."""
KEPT = 1e-4
"""Nats by which it may differ between what was kept and the same pass now."""
AT_ONCE = 4096
"""Pairs whose tokens are held in memory while the start reads them."""
SMOOTHED = ("sigmoid", "robust")
"""Losses that have `label_smoothing`."""
START = "start logprobs"
"""What a pair's row holds besides: the start's log-probabilities of its two answers."""


class DPOSettings(RowSettings):
    """Settings of `dpo`."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate; 5e-7 to 5e-6 for billions of weights, ten times as much with LoRA."""
    beta: PositiveFloat = 0.1
    """The pull back to the start: the smaller, the further the policy may go."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """`sigmoid`: the paper's. `ipo`: towards a margin of 1/(2 beta), so that certain pairs do not pull for ever (arXiv
    2310.12036). `hinge`: until the margin is 1 (arXiv 2305.10425). `robust`: unbiased where a known share of the labels
    is wrong (arXiv 2403.00409)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the labels taken to be wrong, for `sigmoid` (conservative DPO) and `robust`."""

    @model_validator(mode="after")
    def _the_loss_knows_of_wrong_labels(self) -> Self:
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(
                f"loss {self.loss} has no label_smoothing; take loss {' or '.join(SMOOTHED)}, or leave it out"
            )
        return self


@method("dpo", needs=pair_needs, results=("accuracy", "margin"))
def dpo(
    settings: DPOSettings, stage: Stage, *, policy: Policy, pairs: Preferences, reference: Policy | None = None
) -> Policy:
    """Raise the chosen answers above the rejected ones, without a reward model."""
    from alignkit.kit import load_policy, pair_logprobs, read_pairs, train_pairs

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    train, held_out = read_pairs(pairs, model, tokenizer, settings, stage)
    began = model if reference is None else opened_reference(reference, tokenizer, settings)
    start = of_start(began, reference or policy, train, held_out, settings, stage)
    del began  # only its log-probabilities are needed from here on
    train, held_out = Started(train, start[: len(train)]), Started(held_out, start[len(train) :])

    def loss(part: Sequence[Pair]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return losses(*pair_logprobs(model, part), part, starts_of(part), settings)

    if stage.latest() is None and reference is None:
        check_start(model, train[: settings.batch], start, settings)
    train_pairs(model, train, loss, settings, stage)
    made = stage.save_policy(model, tokenizer)
    tell((model, tokenizer), (train, held_out), settings, stage, apart=reference is not None)
    return made


def opened_reference(reference: Policy, tokenizer: Any, settings: DPOSettings) -> Any:
    """Open the policy that stands for the start. Raise DataError where it has other tokens than the policy."""
    from alignkit.kit import load_policy

    model, words = load_policy(reference, precision=settings.precision, trainable=False)
    if words.get_vocab() != tokenizer.get_vocab():
        problem = f"the reference {reference.name!r} has other tokens than the policy"
        raise DataError(problem, remedy="name a policy of the same tokenizer under inputs.reference")
    return model


class Started(Sequence["Pair"]):
    """Pairs, each with what the start says of it in its row."""

    def __init__(self, pairs: Sequence[Pair], start: Sequence[Sequence[float]]) -> None:
        self._pairs, self._start = pairs, start

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, place: int) -> Pair: ...

    @overload
    def __getitem__(self, place: slice) -> list[Pair]: ...

    def __getitem__(self, place: int | slice) -> Pair | list[Pair]:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        pair = self._pairs[place]
        return pair._replace(row={**pair.row, START: self._start[place]})


def starts_of(pairs: Sequence[Pair]) -> list[Sequence[float]]:
    """Return what the start says of each pair's two answers."""
    return [pair.row[START] for pair in pairs]


def losses(
    chosen: Tensor, rejected: Tensor, pairs: Sequence[Pair], start: Sequence[Sequence[float]], settings: DPOSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of each of n pairs (n,), and its figures, from log-probabilities of answer tokens (n, t)."""
    import torch

    from alignkit.kit import brought

    lengths_of = [(len(pair.chosen.answer), len(pair.rejected.answer)) for pair in pairs]
    rows = zip(start, lengths_of, pairs, strict=True)
    known = torch.tensor([[*said, *lengths, pair.p_chosen] for said, lengths, pair in rows])
    began, lengths, certain = torch.split(brought(known, chosen.device), [2, 2, 1], dim=1)
    certain = certain.squeeze(1)  # (n,); of the others, one for each answer (n, 2)
    gains = torch.stack([chosen.sum(dim=1), rejected.sum(dim=1)], dim=1) - began  # (n, 2)
    by_token = gains / lengths if settings.loss == "ipo" else gains
    margin = by_token[:, 0] - by_token[:, 1]
    loss = certain * preferring(margin, settings) + (1 - certain) * preferring(-margin, settings)
    rewards = (settings.beta * gains).detach()
    return loss, {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": rewards[:, 0] - rewards[:, 1],
        "rewards/accuracies": (margin > KEPT).float() + 0.5 * (margin.abs() <= KEPT).float(),
        "logps/chosen": chosen.detach().sum(dim=1),
        "logps/rejected": rejected.detach().sum(dim=1),
    }


def preferring(margin: Tensor, settings: DPOSettings) -> Tensor:
    """Compute the loss of preferring the first of two answers by so many nats (n,)."""
    from torch.nn.functional import logsigmoid

    scaled, wrong = settings.beta * margin, settings.label_smoothing
    if settings.loss == "ipo":
        return (margin - 1 / (2 * settings.beta)).square()
    if settings.loss == "hinge":
        return (1 - scaled).relu()
    if settings.loss == "robust":
        return (wrong * logsigmoid(-scaled) - (1 - wrong) * logsigmoid(scaled)) / (1 - 2 * wrong)
    return -(1 - wrong) * logsigmoid(scaled) - wrong * logsigmoid(-scaled)


def of_start(
    model: Any, policy: Policy, train: Sequence[Pair], held_out: Sequence[Pair], settings: DPOSettings, stage: Stage
) -> list[list[float]]:
    """Return the start's log-probabilities of each pair's two answers, from disk where they were computed before.

    What is kept is only used if this very model says the same of the first pairs: a stage that was run again has other
    weights under the same fingerprint.
    """
    content = hashlib.sha256(f"{policy.fingerprint} {settings.precision}".encode())
    for pair in chain(train, held_out):
        content.update(repr([*pair.chosen, *pair.rejected]).encode())
    file = stage.cache / f"logprobs-{content.hexdigest()}.json"
    first = sequence_logprobs(model, train[: settings.batch], settings)
    kept = read_kept(file)
    if kept and len(kept[1]) == len(train) + len(held_out) and furthest(kept[0], first) < KEPT:
        return kept[1]
    parts = (train[place : place + AT_ONCE] for place in range(0, len(train), AT_ONCE))
    computed = [said for part in (*parts, held_out) for said in sequence_logprobs(model, part, settings)]
    write_kept(file, first, computed)
    return computed


def read_kept(file: Path) -> tuple[list[list[float]], list[list[float]]] | None:
    """Return what was kept of the first pairs by themselves, and of all; None where nothing was, or it is damaged."""
    try:
        first, every, seal = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return None
    return (first, every) if seal == sealed(first, every) else None


def write_kept(file: Path, first: list[list[float]], every: list[list[float]]) -> None:
    written = file.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps([first, every, sealed(first, every)]), "utf-8")
    written.replace(file)


def sealed(first: object, every: object) -> str:
    return hashlib.sha256(json.dumps([first, every]).encode()).hexdigest()


def furthest(some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """Return how far two tables are apart; of different length, infinitely."""
    if len(some) != len(others):
        return math.inf
    return max(abs(a - b) for row, other in zip(some, others, strict=True) for a, b in zip(row, other, strict=True))


def sequence_logprobs(model: Any, pairs: Sequence[Pair], settings: DPOSettings) -> list[list[float]]:
    """Compute the log-probabilities of each pair's chosen and rejected answer, without gradient."""
    from alignkit.kit import map_pairs, pair_logprobs

    def sums(part: Sequence[Pair]) -> Tensor:
        import torch

        return torch.stack([table.sum(dim=1) for table in pair_logprobs(model, part)], dim=1)

    computed: list[list[float]] = map_pairs(model, pairs, sums, settings).tolist()
    return computed


def check_start(model: Any, pairs: Sequence[Pair], start: Sequence[Sequence[float]], settings: DPOSettings) -> None:
    """Refuse a start that is not the policy: before the first step no answer has gained or lost anything."""
    worst = furthest(sequence_logprobs(model, pairs, settings), start[: len(pairs)])
    if worst > SAME * math.sqrt(max(pair.tokens for pair in pairs)) * (1 if settings.precision == "fp32" else 100):
        raise StageError(
            f"the policy is not its own start before the first step ({worst:.3g} nats apart)",
            remedy="take a model that says the same each time it is asked, in another precision if need be",
        )


def tell(
    opened: tuple[Any, Any],
    rows: tuple[Sequence[Pair], Sequence[Pair]],
    settings: DPOSettings,
    stage: Stage,
    *,
    apart: bool = False,
) -> None:
    """Report how often the chosen answer of held-out pairs has gained more, beside what length or words would tell.

    Before the first step nothing has gained over the start, unless a reference `apart` stands for it.
    """
    from alignkit.kit import map_pairs, pair_accuracy_floor, pair_logprobs, picked_samples

    (model, tokenizer), (_, held_out) = opened, rows
    if not held_out:
        stage.warn("no pairs are held out, so accuracy is not measured", "raise the source's held_out")
        return

    def margins(part: Sequence[Pair]) -> Tensor:
        _, figures = losses(*pair_logprobs(model, part), part, starts_of(part), settings)
        return figures["rewards/margins"]

    found = map_pairs(model, held_out, margins, settings).tolist()
    lengths = [len(pair.chosen.answer) - len(pair.rejected.answer) for pair in held_out]
    longer = fmean(0.5 if more == 0 else float(more > 0) for more in lengths)
    floor, _ = pair_accuracy_floor(longer, *((pair.row for pair in side) for side in rows), cache=stage.cache)
    stage.measure(
        "accuracy", None if apart else 0.5, [0.5 if margin == 0 else float(margin > 0) for margin in found], floor
    )
    stage.measure("margin", None if apart else 0.0, found)
    stage.rows({"margin": found, "longer": lengths})
    for place, kind in picked_samples(found, settings.samples):
        pair, margin = held_out[place], found[place]
        stage.sample(
            {
                "prompt": tokenizer.decode(pair.chosen.prompt),
                "chosen": tokenizer.decode(pair.chosen.answer, skip_special_tokens=True),
                "rejected": tokenizer.decode(pair.rejected.answer, skip_special_tokens=True),
                "margin": round(margin, 4),
            },
            kind,
        )


@hookimpl
def alignkit_methods() -> list[Method]:
    return [dpo, kto]
