"""A trainer of TRL driven as a stage: called, never subclassed, by public names only.

What a trainer would do by default and what we need instead: it names its devices and precision (the defaults fail
without a GPU), shows and sends nothing, gets tokens rather than text (it would cut and drop rows silently), stops
before a step that is not finite, and hands each checkpoint to the stage, which keeps it safely.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when huggingface_hub is imported

import torch
from datasets import Dataset, load_from_disk
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from alignkit.contract.settings import Optimisation, Precision
from alignkit.contract.stage import Stage
from alignkit.errors import NotFiniteError, RecipeError
from alignkit.training import optimisers, parallel, room, sharding
from alignkit.training.arithmetic import arithmetic, device
from alignkit.training.configs import restore_configs
from alignkit.training.models import without_deprecations
from alignkit.training.output_layer import find_head
from alignkit.training.rows import rate_for
from alignkit.training.saving import without_patches
from alignkit.training.snapshots import is_due
from alignkit.training.step import CommitTimer

Model: TypeAlias = PreTrainedModel | PeftModel
Heed: TypeAlias = Callable[[int, Mapping[str, float]], None]
"""Looks at the metrics of a step, and raises where it is of no use to go on."""

LOGGED_STEPS = 300
"""About so many lines of metrics a stage, so that curves are smooth and logging costs nothing."""

ACTIVATION_BYTES = 80
"""What training keeps of one token, per layer and unit of hidden width: a rule of thumb for decoders in fp32."""
ACTIVATIONS_ON_A_CPU = 2 * 2**30
ACTIVATIONS_ON_A_GPU = 0.25
"""A share of its memory. It counts all of it, not what is free: the same job is cut in the same way each time."""

NAMES = {"mean_token_accuracy": "token_accuracy", "kl": "objective/kl"}
"""Their name of a metric -> ours, where they differ."""
LEFT_OUT = ("epoch", "step_time")
"""What they log and is none of a step's metrics."""
TOKENS = ("num_tokens", "num_input_tokens_seen")
"""What TRL and transformers call the tokens that were read."""
TRL_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
TRL_CAP = "final_logit_softcapping"
"""Where TRL finds, in a config, what logits are multiplied by, and their soft cap."""
QUANTISED = "optimiser_states_8bit"
"""A file beside a trainer's own in a checkpoint whose optimiser keeps its states so."""
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
    states = {"optim": "adamw_bnb_8bit"} if room.arranged().states == "8bit" else {}
    return {
        **states,
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


def run_trainer(
    make: Callable[[], Trainer],
    stage: Stage,
    *,
    names: Mapping[str, str] = NAMES,
    commit_every: int = 1,
    heed: Heed | None = None,
    snapshots: int = 0,
) -> None:
    """Train as a stage does: tell metrics, keep checkpoints, go on from the newest, leave where the stage must stop.

    `make` makes the trainer, with `trainer_options`; it is called here so that what the libraries say to each other of
    names that will go is not shown to users. `names` renames its metrics, and `heed` is told them. A trainer that
    cannot go on from every step is checkpointed at multiples of `commit_every`. So many `snapshots` of what it trains
    are kept on the way. Afterwards the model is as it was
    given, with trained weights. Raises NotFiniteError before a step would take a loss or a gradient that is not a
    finite number.
    """
    stage.begin_part("", 0)
    with without_deprecations():
        trainer = make()
    _count_experts(trainer)
    trainer.remove_callback(PrinterCallback)
    watch = StageCallback(stage, Path(str(trainer.args.output_dir)), names, commit_every, heed, snapshots)
    trainer.add_callback(watch)
    latest = stage.latest()
    if latest:
        optimisers.check_same(_states_in(latest), room.arranged().states, latest)
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


def _states_in(checkpoint: Path) -> optimisers.States:
    """Return how a trainer's checkpoint keeps the states of its optimiser."""
    return "8bit" if (checkpoint / QUANTISED).exists() else "fp32"


def seen_by_all(data: Dataset, stage: Stage) -> Dataset:
    """Return rows as trainers of several processes need them: the first leaves beside them what it makes of them."""
    if stage.world == 1:
        return data
    folder = stage.folder / "rows"
    parallel.first(lambda: data.save_to_disk(folder))
    return load_from_disk(folder)


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
    names: Mapping[str, str]
    commit_every: int
    heed: Heed | None
    snapshots: int
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
        if is_due(state.global_step, state.max_steps, self.snapshots):
            self.stage.save_snapshot(state.global_step, kwargs["model"])
        if state.global_step % self.commit_every:
            return
        stopping, due = parallel.any_of_each([self.stage.stopping, self.timer.due])
        if stopping and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = True
        control.should_save = control.should_save or self.stopped or due

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        written = self.folder / f"checkpoint-{state.global_step}"
        if room.arranged().states == "8bit" and parallel.rank() == 0:
            (written / QUANTISED).touch()
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
        if not logs or "loss" not in logs:
            return  # the trainer's summary at the end
        if not math.isfinite(logs["loss"]):
            raise _not_finite(state.global_step, "the loss")
        told = {name: float(value) for name, value in logs.items() if name not in (*LEFT_OUT, *TOKENS)}
        metrics = {self.names.get(name, name): value for name, value in told.items() if math.isfinite(value)}
        tokens, now = max(float(logs.get(name, 0.0)) for name in TOKENS), time.monotonic()
        if tokens:  # some trainers do not count them
            metrics["tokens_per_second"] = (tokens - self.tokens) / max(now - self.began, 1e-9)
        self.tokens, self.began = tokens, now
        self.stage.log(state.global_step, state.max_steps, metrics)
        if self.heed:
            self.heed(state.global_step, metrics)


def _not_finite(step: int, what: str) -> NotFiniteError:
    remedy = "lower the learning rate, or look for odd rows in the data"
    return NotFiniteError(f"{what} of optimiser step {step} is not a finite number", remedy=remedy)


def _move_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        shutil.move(file, target / file.name)
    source.rmdir()
