"""`trl-dpo`: raise the chosen answers above the rejected ones, as `dpo` does, by TRL's `DPOTrainer`.

1. The trainer takes text and makes its own tokens of it: strings as they stand, chats as alignkit renders them. Where
   joining a prompt with its answer merges tokens, they differ from alignkit's, and TRL says so.
2. What the start says of the pairs is computed once, before the first step, by TRL's own passes.
3. Soft labels (`p_chosen`) are refused, and so are pairs whose sides part before the last answer: TRL knows neither.
4. What is measured on held-out pairs is what `dpo` measures, by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from alignkit_dpo.pair_learning import PairSettings
from pydantic import Field, PositiveFloat, model_validator

from alignkit import Advice, DataError, Policy, Preferences, Stage, TrainerNeeds, method, trainer_needs
from alignkit_trl.passing import PRECOMPUTED, PassedOn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit.kit import JudgedAnswer, Pair

READS = 2
"""How often a pair is read besides: by the start, and in what is measured."""


class TRLDPOSettings(PassedOn, PairSettings):
    """Settings of `trl-dpo`."""

    trainer: ClassVar[str] = "DPO"
    says: ClassVar[Mapping[str, str]] = {"beta": "beta", "label_smoothing": "label_smoothing"}
    fixed: ClassVar[Mapping[str, str]] = PRECOMPUTED

    beta: PositiveFloat = 0.1
    """The pull back to the start: the smaller, the further the policy may go."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """As of `dpo`; TRL's others are `config.loss_type`."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the labels taken to be wrong, for `robust`; TRL's other losses of these do not know it."""

    @model_validator(mode="after")
    def _the_loss_is_one_of_trls(self) -> Self:
        if "loss_type" in self.config and self.loss != "sigmoid":
            raise ValueError("loss and config.loss_type say the same; set one of them")
        if self.label_smoothing and self.loss != "robust" and "loss_type" not in self.config:
            raise ValueError(f"TRL's {self.loss} has no label_smoothing; take loss robust, or the method dpo")
        return self


def needs(settings: TRLDPOSettings) -> TrainerNeeds:
    """Return what the trainer will do: both answers of a pair, read by the start before."""
    common, rows = trainer_needs(settings), 2 * settings.batch
    return replace(common, batch=rows, max_lost=settings.max_lost, reads=READS, apart=True)


@method(
    "trl-dpo",
    advice=Advice(
        "as for dpo, where TRL's trainer is asked for",
        "rows are padded, so it is slower than ours, and sources cannot be mixed",
    ),
    needs=needs,
    results=("accuracy", "margin"),
)
def trl_dpo(settings: TRLDPOSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Raise the chosen answers above the rejected ones, without a reward model, by TRL's trainer."""
    from alignkit_dpo.dpo import DPOSettings, judged
    from alignkit_dpo.pair_learning import START, PairMethod, tell
    from datasets import Dataset

    from alignkit.kit import load_policy, read_pairs, seen_by_all, trainer_options, with_values
    from alignkit_trl.passing import equal_passes, order_of_rows, train

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    start = load_policy(policy, precision=settings.precision, trainable=False)[0] if settings.lora else None
    rows, aside = read_pairs(pairs, model, tokenizer, settings, stage)
    refuse_what_trl_cannot_learn(rows)
    measured = PairMethod(settings, partial(judged, settings=DPOSettings(beta=settings.beta)))
    before = measured.sums(model, aside)
    held_out = with_values(aside, START, before)
    reader, columns = texts_of_pairs(rows, tokenizer)
    data = Dataset.from_dict(columns).select(order_of_rows(len(rows), settings.epochs, stage.seed))
    longest = max(len(side.prompt) + len(side.answer) for pair in rows for side in (pair.chosen, pair.rejected))
    options = trainer_options(model, stage, settings, len(data), 2 * longest)
    options |= equal_passes(options, len(data), stage.world)
    options |= {
        "max_length": None,
        "precompute_ref_log_probs": True,
        "beta": settings.beta,
        "loss_type": [settings.loss],
        "label_smoothing": settings.label_smoothing,
    }
    given = {"model": model, "ref_model": start, "train_dataset": seen_by_all(data, stage), "processing_class": reader}
    train(settings, options, given, stage)
    made = stage.save_policy(model, tokenizer)
    tell((rows, held_out), (None, measured.margins(model, held_out)), tokenizer, settings, stage)
    return made


def refuse_what_trl_cannot_learn(pairs: Sequence[Pair]) -> None:
    """Raise DataError where pairs have soft labels, or two different prompts."""
    soft = sum(pair.p_chosen != 1 for pair in pairs)
    if soft:
        raise DataError(f"{soft} pairs have p_chosen, which TRL's trainer does not know", remedy="take the method dpo")
    parted = sum(pair.chosen.prompt != pair.rejected.prompt for pair in pairs)
    if parted:
        problem = f"the sides of {parted} pairs part before the last answer, and TRL's trainer would learn all since"
        raise DataError(problem, remedy="take the method dpo, or leave them out")


def texts_of_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedTokenizerBase, dict[str, list[Any]]]:
    """Return the trainer's tokenizer and its columns: `prompt`, `chosen`, `rejected`."""
    from alignkit_trl.trainer_texts import texts_for_trainer

    reader, chosen = texts_for_trainer([_side(pair, "chosen", tokenizer) for pair in pairs], tokenizer)
    _, rejected = texts_for_trainer([_side(pair, "rejected", tokenizer) for pair in pairs], tokenizer)
    return reader, {"prompt": chosen["prompt"], "chosen": chosen["completion"], "rejected": rejected["completion"]}


def _side(pair: Pair, name: str, tokenizer: PreTrainedTokenizerBase) -> JudgedAnswer:
    from alignkit.kit import JudgedAnswer, answered_text

    prompt, answer = pair.row["prompt"], pair.row[name]
    texts = answered_text(prompt, answer, tokenizer, pair.row.get("tools"))
    ids = pair.chosen if name == "chosen" else pair.rejected
    return JudgedAnswer(ids.prompt, ids.answer, {"prompt": prompt, "completion": answer}, texts)
