"""Run one side of the CLM, SFT and reward benchmark: `python rows_side.py trl|alignkit JOB RESULT`."""

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from job import forget_peak, peak_memory
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from alignkit.testing import RecordingStage


def main() -> None:
    side, told, tells = sys.argv[1], json.loads(Path(sys.argv[2]).read_text("utf-8")), Path(sys.argv[3])
    set_seed(1)
    logging: Any = transformers.utils.logging  # untyped
    logging.set_verbosity_error()
    before = psutil.Process().memory_info().rss
    kind: Any = AutoModelForSequenceClassification if told["method"] == "reward" else AutoModelForCausalLM
    model = kind.from_pretrained(told["model"], dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        losses, seconds = (theirs if side == "trl" else ours)(told, model, Path(folder))
    if told["save"]:
        model.save_pretrained(told["save"])
    result = {"losses": losses, "seconds": seconds, "memory": peak_memory() - before}
    tells.write_text(json.dumps(result), "utf-8")


def theirs(told: dict[str, Any], model: Any, folder: Path) -> tuple[list[float], float]:
    """TRL's trainer in fp32, without activation checkpointing, on rows that are tokens already."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    args = {
        "output_dir": str(folder),
        "learning_rate": told["learning_rate"],
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": told["micro"],
        "gradient_accumulation_steps": told["batch"] // told["micro"],
        "num_train_epochs": 1,
        "train_sampling_strategy": told["strategy"],
        "max_length": None,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
        "activation_checkpointing": False,
    }
    tokenizer = AutoTokenizer.from_pretrained(told["model"])
    named = ("chosen_ids", "rejected_ids") if told["method"] == "reward" else ("input_ids", "labels")
    rows = {name: [row[place] for row in told["ordered"]] for place, name in enumerate(named)}
    data = {"train_dataset": Dataset.from_dict(rows), "processing_class": tokenizer}
    if told["method"] == "reward":
        trainer: Any = RewardTrainer(model=model, args=RewardConfig(**args), **data)
    else:
        options = SFTConfig(**args, packing=False, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = SFTTrainer(model=model, args=options, **data)
    forget_peak()
    began = time.process_time()
    trainer.train()
    seconds = time.process_time() - began
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], seconds


def ours(told: dict[str, Any], model: Any, folder: Path) -> tuple[list[float], float]:
    """alignkit's loop."""
    from alignkit import TrainingSettings
    from alignkit.training.encoding import LabelledTokens, TokenPair
    from alignkit.training.likelihood import train_language_model
    from alignkit.training.pair_scores import train_scores

    settings = TrainingSettings.model_validate(
        {
            "learning_rate": told["learning_rate"],
            "batch": told["batch"],
            "precision": "fp32",
            "optimisation": {"schedule": "constant", "warmup": 0.0},
        }
    )
    stage = RecordingStage(folder, seed=told["seed"])
    if told["method"] == "reward":
        pairs = [TokenPair(chosen, rejected, {}) for chosen, rejected in told["rows"]]
        train = partial(train_scores, model, pairs)
    else:
        rows = [LabelledTokens(*row) for row in told["rows"]]
        train = partial(train_language_model, model, rows)
    forget_peak()
    began = time.process_time()
    train(stage, settings)
    seconds = time.process_time() - began
    return [figures["loss"] for _, _, figures in stage.logs], seconds


if __name__ == "__main__":
    main()
