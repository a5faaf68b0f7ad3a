"""What a recipe says to a trainer of TRL: the field's settings by alignkit's names, all others by TRL's own.

A method's settings have the names and meanings of alignkit's own method, so that a recipe swaps one for the other. The
table `config` goes to TRL's config class as it stands. What alignkit says itself is refused there, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import JsonValue, field_validator

from alignkit import RecipeError, Settings, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

SETTINGS = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "max_steps": "epochs",
    "per_device_train_batch_size": "batch",
    "gradient_accumulation_steps": "batch",
    "auto_find_batch_size": "batch",
    "max_length": "max_length",
    "truncation_mode": "max_length",
    "bf16": "precision",
    "fp16": "precision",
    "lr_scheduler_type": "optimisation.schedule",
    "warmup_steps": "optimisation.warmup",
    "weight_decay": "optimisation.weight_decay",
    "max_grad_norm": "optimisation.max_grad_norm",
    "adam_beta1": "optimisation.beta1",
    "adam_beta2": "optimisation.beta2",
}
"""Options of all trainers, and the settings that say them."""
FILES = "the stage keeps files and checkpoints itself"
LOGS = "the stage takes the trainer's metrics itself"
MACHINE = "the machine says that, --on NAME names one"
MODEL = "alignkit opens the model, as the recipe's source says"
ROWS = "alignkit makes the tokens, the same for all methods"
SEED = "it comes from the recipe's seed, so that the stage can be resumed"
HELD_OUT = "alignkit measures on held-out rows itself"
OWNED = {
    "output_dir": FILES,
    "save_strategy": FILES,
    "save_steps": FILES,
    "save_total_limit": FILES,
    "save_only_model": FILES,
    "resume_from_checkpoint": FILES,
    "load_best_model_at_end": FILES,
    "push_to_hub": FILES,
    "logging_strategy": LOGS,
    "logging_steps": LOGS,
    "report_to": LOGS,
    "disable_tqdm": LOGS,
    "use_cpu": MACHINE,
    "fsdp": MACHINE,
    "deepspeed": MACHINE,
    "model_init_kwargs": MODEL,
    "trust_remote_code": MODEL,
    "chat_template_path": MODEL,
    "eos_token": MODEL,
    "pad_token": MODEL,
    "dataset_kwargs": ROWS,
    "dataset_text_field": ROWS,
    "packing": ROWS,
    "completion_only_loss": ROWS,
    "assistant_only_loss": ROWS,
    "remove_unused_columns": ROWS,
    "seed": SEED,
    "data_seed": SEED,
    "train_sampling_strategy": SEED,
    "shuffle_dataset": SEED,
    "ignore_data_skip": SEED,
    "eval_strategy": HELD_OUT,
    "eval_on_start": HELD_OUT,
    "do_eval": HELD_OUT,
}
"""Options of all trainers that no recipe says, and why."""
BEFORE = "the start is the policy as it was given, read once before the first step"
PRECOMPUTED = {"precompute_ref_log_probs": BEFORE, "sync_ref_model": BEFORE}
"""The same, of trainers that compare a policy with its start."""


class PassedOn(Settings):
    """Settings of every method that a trainer of TRL carries out."""

    trainer: ClassVar[str]
    """The trainer's name in TRL, without `Trainer`."""
    says: ClassVar[Mapping[str, str]] = {}
    """Options of this trainer, and the settings that say them."""
    fixed: ClassVar[Mapping[str, str]] = {}
    """Options of this trainer that no recipe says, and why."""

    config: dict[str, JsonValue] = {}
    """All other options of the trainer, by the names of TRL's config class; those that alignkit says are refused."""

    @field_validator("config")
    @classmethod
    def _names_are_known(cls, config: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in config:
            if setting := (SETTINGS | dict(cls.says)).get(name):
                raise ValueError(f"config.{name} is what the setting {setting} says; set that")
            if why := (OWNED | dict(cls.fixed)).get(name):
                raise ValueError(f"config.{name} cannot be set: {why}")
        if unknown := [name for name in config if name not in known_options(cls.trainer)]:
            near = get_close_matches(unknown[0], known_options(cls.trainer), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"config.{unknown[0]} is no option of TRL's {cls.trainer}Config{hint}")
        return config


def known_options(trainer: str) -> list[str]:
    """Return the options of a trainer's config class. It imports TRL, and so torch: only recipes with `config` pay."""
    import trl

    return list(getattr(trl, f"{trainer}Config").__dataclass_fields__)


def train(settings: PassedOn, options: Mapping[str, Any], arguments: Mapping[str, Any], stage: Stage) -> None:
    """Train by TRL's trainer: `options` and the recipe's own go to its config class, `arguments` to itself.

    Raises RecipeError where TRL refuses what the recipe's `config` says.
    """
    from alignkit.kit import run_trainer

    snapshots = dict(settings).get("snapshots", 0)  # one that makes a score has none
    run_trainer(maker(settings, options, arguments), stage, snapshots=snapshots)


def maker(settings: PassedOn, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> Callable[[], Trainer]:
    """Return what makes TRL's trainer, as `train` runs it. Raise RecipeError where TRL would make other logits."""
    import trl

    from alignkit.kit import trl_makes_its_logits

    model = arguments["model"]
    if settings.trainer != "Reward" and not trl_makes_its_logits(model) and is_finite(model):
        problem = f"TRL makes the logits of a {type(model).__name__} otherwise than the model does"
        raise RecipeError(problem, "method", f"take the method {settings.trainer.lower()} instead")

    def make() -> Trainer:
        try:
            args = getattr(trl, f"{settings.trainer}Config")(**{**options, **settings.config})
            made: Trainer = getattr(trl, f"{settings.trainer}Trainer")(args=args, **arguments)
        except (TypeError, ValueError, NotImplementedError) as error:
            if not settings.config:
                raise
            remedy = f"see TRL's documentation of {settings.trainer}Config"
            raise RecipeError(f"TRL refuses it: {error}", "config", remedy) from error
        return made

    return make


def is_finite(model: PreTrainedModel) -> bool:
    """Return whether all weights are finite numbers; of others nobody can say what logits they make."""
    return all(bool(weight.isfinite().all()) for weight in model.parameters())


def order_of_rows(rows: int, epochs: float, seed: int) -> list[int]:
    """Return the rows in the order in which they are learnt from, all epochs one behind the other.

    A trainer's own sampler draws from a random state that a resumed stage does not have.
    """
    shuffled = (Random(f"{seed} {epoch}").sample(range(rows), rows) for epoch in range(math.ceil(epochs)))  # noqa: S311
    return [row for epoch in shuffled for row in epoch][: max(1, round(epochs * rows))]


def equal_passes(options: Mapping[str, Any], rows: int, world: int) -> dict[str, int]:
    """Part the batch so that the last, short one falls into equal passes or is one pass, too.

    A trainer that takes the mean of its passes' means would else weigh rows by how many go through the model at once.
    """
    micro = int(options["per_device_train_batch_size"])
    batch = micro * int(options["gradient_accumulation_steps"])
    last = math.ceil(rows % (batch * world) / world)
    sizes = (size for size in range(micro, 0, -1) if batch % size == 0 and (last % size == 0 or last <= size))
    size = next(sizes)
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": batch // size}
