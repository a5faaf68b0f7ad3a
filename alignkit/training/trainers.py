"""A trainer of TRL driven as a stage: called, never subclassed, by public names only.

What a trainer would do by default and what we need instead: it names its devices and precision (the defaults fail
without a GPU), shows and sends nothing, gets tokens rather than text (it would cut and drop rows silently), stops
before a step that is not finite, and hands each checkpoint to the stage, which keeps it safely.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Protocol, TypeAlias

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when huggingface_hub is imported

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from alignkit.contract.settings import Optimisation, Precision
from alignkit.contract.stage import Stage
from alignkit.errors import NotFiniteError, RecipeError
from alignkit.training import parallel, sharding
from alignkit.training.arithmetic import arithmetic, device, padded
from alignkit.training.configs import restore_configs
from alignkit.training.encoding import NOT_LEARNT, LabelledTokens, TokenPair, padding_share
from alignkit.training.models import without_deprecations
from alignkit.training.packing import find_head
from alignkit.training.saving import without_patches
from alignkit.training.step import CommitTimer

Model: TypeAlias = PreTrainedModel | PeftModel

LOGGED_STEPS = 300
"""About so many lines of metrics a stage, so that curves are smooth and logging costs nothing."""

ACTIVATION_BYTES = 80
"""What training keeps of one token, per layer and unit of hidden width: a rule of thumb for decoders in fp32."""
ACTIVATIONS_ON_A_CPU = 2 * 2**30
ACTIVATIONS_ON_A_GPU = 0.25
"""A share of its memory. It counts all of it, not what is free: the same job is cut in the same way each time."""

GROUP_FROM = 0.15
"""Rows of like length share a batch where random batches would be padding by this share or more."""
POOL = 32
"""Batches that are drawn together, before their rows are grouped by length."""

NAMES = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
    "accuracy": "accuracy",
    "margin": "margin",
    "mean_reward": "mean_reward",
    "kl": "objective/kl",
    "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected",
    "rewards/margins": "rewards/margins",
}
"""Their name of a figure -> ours; others are left out."""
TOKENS = ("num_tokens", "num_input_tokens_seen")
"""What TRL and transformers call the tokens that were read."""
TRL_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
TRL_CAP = "final_logit_softcapping"
"""Where TRL finds, in a config, what logits are multiplied by, and their soft cap."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What configs call the number of experts of a layer."""


class Training(Protocol):
    """What a method's settings say about training."""

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate; None: `rate_for` the model."""
        ...

    @property
    def batch(self) -> int:
        """Sequences per optimiser step, on any machine."""
        ...

    @property
    def epochs(self) -> float: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def optimisation(self) -> Optimisation: ...


def train_language_model(
    model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[LabelledTokens], stage: Stage, training: Training
) -> None:
    """Train on the labelled tokens, by the mean over all of a step's tokens."""
    lengths = [len(row.ids) for row in rows]
    data = Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]})
    data = data.select(order_of_rows(lengths, training.batch, training.epochs, stage.seed))
    options = trainer_options(model, stage, training, len(data), max(lengths))

    def by_trl() -> Trainer:
        # Lengths are dealt with already; as prepared as it is, nothing is left to be cut or dropped.
        more = {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
        args = SFTConfig(**options, **more)
        trainer: Trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
        return trainer

    def by_own_logits() -> Trainer:
        args = TrainingArguments(**options, include_num_input_tokens_seen="non_padding")
        collated = partial(_padded_rows, pad=tokenizer.pad_token_id)
        return Trainer(model, args, collated, data, processing_class=tokenizer, compute_loss_func=_mean_loss)

    run_trainer(by_trl if trl_makes_its_logits(model) else by_own_logits, stage)


def trl_makes_its_logits(model: Model) -> bool:
    """Return whether TRL's trainers, which make logits of the last hidden states themselves, make those of the model.

    They know a linear layer, a factor and a soft cap, by these names in a config. RoBERTa and ModernBERT as decoders
    have more layers in their head, and RecurrentGemma calls its cap otherwise: their losses would be others.
    """
    head, facts = find_head(model), model.config.get_text_config()
    if head is None:
        return False
    named = any(getattr(facts, name, None) is not None for name in TRL_FACTORS)
    return head.cap == getattr(facts, TRL_CAP, None) and (head.scale == 1.0 or named)


def _padded_rows(rows: Sequence[Mapping[str, Sequence[int]]], pad: int) -> dict[str, Tensor]:
    """Fill rows up on the right; all tables are (n, t)."""
    ids, mask = padded([row["input_ids"] for row in rows], pad)
    labels, _ = padded([row["labels"] for row in rows], NOT_LEARNT)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Compute the mean negative log-likelihood of a step's labels (n, t), by a model's own logits (n, t, v)."""
    logits, targets = outputs["logits"][:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    total = torch.nn.functional.cross_entropy(logits, targets, ignore_index=NOT_LEARNT, reduction="sum")
    return total / num_items_in_batch


def train_scores(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[TokenPair],
    stage: Stage,
    training: Training,
    centre: float = 0.0,
) -> None:
    """Train scores on pairs (Bradley-Terry); `centre` weighs the pull of their mean towards zero."""
    lengths = [max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    data = Dataset.from_dict({"chosen_ids": [p.chosen for p in pairs], "rejected_ids": [p.rejected for p in pairs]})
    data = data.select(order_of_rows(lengths, training.batch, training.epochs, stage.seed))
    options = trainer_options(model, stage, training, len(data), 2 * max(lengths))
    options |= _in_equal_parts(options, len(data))

    def make() -> Trainer:
        args = RewardConfig(**options, max_length=None, center_rewards_coefficient=centre or None)
        trainer: Trainer = RewardTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
        return trainer

    run_trainer(make, stage)


def _in_equal_parts(options: Mapping[str, Any], rows: int) -> dict[str, int]:
    """Part the batch so that the last, short one falls into equal parts or is one part, too.

    Its loss is the mean of its parts' means: unequal ones would weigh rows by how many go through the model at once.
    """
    micro = int(options["per_device_train_batch_size"])
    batch = micro * int(options["gradient_accumulation_steps"])
    last = rows % batch
    sizes = (size for size in range(micro, 0, -1) if batch % size == 0 and (last % size == 0 or last <= size))
    size = next(sizes)
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": batch // size}


def order_of_rows(lengths: Sequence[int], batch: int, epochs: float, seed: int) -> list[int]:
    """Return the rows in the order in which they are learnt from, all epochs one behind the other.

    Each epoch is shuffled anew, by the seed and its number alone: a trainer's own sampler draws from a random state
    that a resumed stage does not have. Ragged rows are grouped by length within a pool of batches.
    """
    order: list[int] = []
    for epoch in range(math.ceil(epochs)):
        random = Random(f"{seed} {epoch}")  # noqa: S311  # shuffles rows, guards no secret
        rows = random.sample(range(len(lengths)), len(lengths))
        ragged = padding_share([lengths[row] for row in rows], batch) >= GROUP_FROM
        order += _grouped(rows, lengths, batch, random) if ragged else rows
    return order[: max(1, round(epochs * len(lengths)))]


def _grouped(rows: Sequence[int], lengths: Sequence[int], batch: int, random: Random) -> list[int]:
    """Sort pools of rows by length, cut them into batches, and shuffle those."""
    pools = (sorted(rows[i : i + POOL * batch], key=lengths.__getitem__) for i in range(0, len(rows), POOL * batch))
    batches = [pool[i : i + batch] for pool in pools for i in range(0, len(pool), batch)]
    random.shuffle(batches)
    return [row for group in batches for row in group]


def trainer_options(model: Model, stage: Stage, training: Training, rows: int, longest: int) -> dict[str, Any]:
    """Return the options that all trainers of TRL and transformers share, as their config takes them.

    So many rows are learnt from once each, in the order in which they stand. `longest` are the tokens of a row that go
    through the model: they decide how many rows do so at once, which a trainer whose loss depends on it overrides.
    """
    sharding.refuse("what a trainer of TRL trains")
    cuda = device().type == "cuda"
    ours = _share_of_batch(training.batch, stage.world)
    shape = model.config.get_text_config()
    at_once = tokens_in_a_pass(int(shape.num_hidden_layers), int(shape.hidden_size))
    micro = micro_batch(ours, longest, at_once)
    settings = training.optimisation
    return {
        "output_dir": str(stage.folder / "trainer"),
        "seed": stage.seed % 2**32,
        "data_seed": stage.seed % 2**32,
        "use_cpu": not cuda,
        "bf16": arithmetic(training.precision) == torch.bfloat16,
        "fp16": False,
        _checkpointing(): cuda,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": ours // micro,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": training.learning_rate or rate_for(model),
        "lr_scheduler_type": "constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        "warmup_steps": settings.warmup,  # below 1: a share
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "adam_beta1": settings.beta1,
        "adam_beta2": settings.beta2,
        "logging_steps": max(1, rows // training.batch // LOGGED_STEPS),
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # the callback below says when
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": cuda,
    }


def rate_for(model: Model) -> float:
    """Return a peak learning rate by the model's size: 1e-3 for a million weights, 1e-4 for 100 million, 1e-5 for 10
    billion, and ten times as much where an adapter learns. What people use for models of these sizes lies within a
    factor of three of it.
    """
    weights = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)
    return float((10.0 if isinstance(model, PeftModel) else 1.0) / math.sqrt(weights))


def _checkpointing() -> str:
    """Return the option's name; it was renamed in transformers 5.23."""
    known = TrainingArguments.__dataclass_fields__
    return "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"


def _share_of_batch(batch: int, world: int) -> int:
    if batch % world:
        remedy = f"set it to a multiple of {world}"
        raise RecipeError(f"{batch} sequences cannot be shared by {world} processes", "batch", remedy)
    return batch // world


def micro_batch(batch: int, longest: int, tokens: int) -> int:
    """Return the largest divisor of the batch whose rows, at the longest, stay within so many tokens."""
    most = max(1, min(batch, tokens // max(1, longest)))
    return max(size for size in range(1, most + 1) if batch % size == 0)


def tokens_in_a_pass(layers: int, width: int) -> int:
    """Return how many tokens go through a model of so many layers and such a width at once."""
    each = ACTIVATION_BYTES * layers * width
    where = device()
    if where.type == "cpu":
        return ACTIVATIONS_ON_A_CPU // each
    return int(ACTIVATIONS_ON_A_GPU * torch.cuda.get_device_properties(where).total_memory) // each


def run_trainer(make: Callable[[], Trainer], stage: Stage) -> None:
    """Train as a stage does: tell metrics, keep checkpoints, go on from the newest, leave where the stage must stop.

    `make` makes the trainer, with `trainer_options`; it is called here so that what the libraries say to each other of
    names that will go is not shown to users. Afterwards the model is as it was given, with trained weights. Raises
    NotFiniteError before a step would take a loss or a gradient that is not a finite number.
    """
    stage.begin_part("", 0)
    with without_deprecations():
        trainer = make()
    _count_experts(trainer)
    trainer.remove_callback(PrinterCallback)
    watch = StageCallback(stage, Path(str(trainer.args.output_dir)))
    trainer.add_callback(watch)
    latest = stage.latest()
    with without_deprecations():
        trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    if watch.stopped:
        stage.leave()
    model: Any = trainer.model
    trainer.accelerator.free_memory()
    without_patches(model)
    restore_configs(model)
    model.zero_grad(set_to_none=True)
    model.eval()
    shutil.rmtree(watch.folder, ignore_errors=True)


def _count_experts(trainer: Any) -> None:
    """Let a trainer of TRL find how many experts share the tokens, for its loss on routers; without any, there is none.

    It looks under one name for the count, which Granite, Phi-MoE, JetMoE and Llama 4 call otherwise; dense models of
    Granite 4 have the config of a mixture, without experts.
    """
    facts = trainer.model.config.get_text_config()
    counts = [getattr(facts, name, None) for name in EXPERTS]
    if not hasattr(facts, "output_router_logits"):
        return
    if 0 in counts:
        trainer.aux_loss_enabled = facts.output_router_logits = False
    elif counts[0] is None and any(counts):
        facts.num_experts = next(filter(None, counts))  # until `restore_configs`


@dataclass
class StageCallback(TrainerCallback):
    """What a stage does at the moments that a trainer offers."""

    stage: Stage
    folder: Path
    stopped: bool = False
    began: float = field(default_factory=time.monotonic)
    timer: CommitTimer = field(default_factory=CommitTimer)
    tokens: float = 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
            raise _not_finite(state.global_step + 1, "the gradient")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        stopping, due = parallel.any_of_each([self.stage.stopping, self.timer.due])
        if stopping and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = True
        control.should_save = control.should_save or self.stopped or due

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        written = self.folder / f"checkpoint-{state.global_step}"
        with self.timer.timing():
            parallel.wait_for_all()
            self.stage.commit(state.global_step, lambda staged: _move_files(written, staged))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = {ours: float((logs or {})[theirs]) for theirs, ours in NAMES.items() if theirs in (logs or {})}
        if "loss" not in metrics:
            return  # the trainer's summary at the end
        if not math.isfinite(metrics["loss"]):
            raise _not_finite(state.global_step, "the loss")
        tokens, now = max(float((logs or {}).get(name, 0.0)) for name in TOKENS), time.monotonic()
        if tokens:  # some trainers do not count them
            metrics["tokens_per_second"] = (tokens - self.tokens) / max(now - self.began, 1e-9)
        self.tokens, self.began = tokens, now
        self.stage.log(state.global_step, state.max_steps, metrics)


def _not_finite(step: int, what: str) -> NotFiniteError:
    remedy = "lower the learning rate, or look for odd rows in the data"
    return NotFiniteError(f"{what} of optimiser step {step} is not a finite number", remedy=remedy)


def _move_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        shutil.move(file, target / file.name)
    source.rmdir()
