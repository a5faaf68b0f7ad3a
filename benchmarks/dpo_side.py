"""Run one side of the DPO benchmark: `python dpo_side.py trl|alignkit JOB RESULT`. `dpo_vs_trl.py` calls it."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from job import forget_peak, peak_memory
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from alignkit.testing import RecordingStage, write_records


def main() -> None:
    side, told, tells = sys.argv[1], json.loads(Path(sys.argv[2]).read_text("utf-8")), Path(sys.argv[3])
    set_seed(1)
    logging: Any = transformers.utils.logging  # untyped
    logging.set_verbosity_error()
    result = theirs(told) if side == "trl" else ours(told)
    tells.write_text(json.dumps(result), "utf-8")


def theirs(told: dict[str, Any]) -> dict[str, Any]:
    """TRL's DPOTrainer in fp32, without activation checkpointing, all of a batch at once, rows in the given order."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    before = psutil.Process().memory_info().rss
    tokenizer = AutoTokenizer.from_pretrained(told["model"])
    policy, reference = (AutoModelForCausalLM.from_pretrained(told["model"], dtype=torch.float32) for _ in range(2))
    known = DPOConfig.__dataclass_fields__
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            output_dir=folder,
            beta=told["beta"],
            learning_rate=told["learning_rate"],
            lr_scheduler_type="constant",
            per_device_train_batch_size=told["micro"],
            gradient_accumulation_steps=told["batch"] // told["micro"],
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            max_length=None,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            dataloader_pin_memory=False,
            precompute_ref_log_probs=told["cached"],
            **{checkpointing: False},
        )
        began = time.perf_counter()
        trainer = DPOTrainer(
            model=policy,
            ref_model=reference,
            args=args,
            train_dataset=Dataset.from_list(told["rows"]),
            processing_class=tokenizer,
        )
        filled = time.perf_counter()
        forget_peak()
        trainer.train()
        ended = time.perf_counter()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if told["save"]:
        policy.save_pretrained(told["save"])
    return {
        "losses": losses,
        "filling": filled - began if told["cached"] else 0.0,
        "seconds": ended - filled,
        "memory": peak_memory() - before,
    }


def ours(told: dict[str, Any]) -> dict[str, Any]:
    """alignkit's `dpo`, which computes what the start says in the stage, or finds it on disk."""
    from alignkit_dpo import DPOSettings, dpo, pair_learning

    from alignkit import Policy, Preferences

    before = psutil.Process().memory_info().rss
    clock: dict[str, float] = {}
    given = DPOSettings.model_validate(
        {
            "beta": told["beta"],
            "learning_rate": told["learning_rate"],
            "batch": told["batch"],
            "precision": "fp32",
            "max_lost": 1.0,
            "optimisation": {"schedule": "constant", "warmup": 0.0},
        }
    )
    watched: Any = pair_learning  # what it calls is replaced, to see when
    started = watched.started

    def timed(*words: Any, check: bool) -> Any:
        clock["opened"] = time.perf_counter()
        found = started(*words, check=False)
        clock["known"] = time.perf_counter()
        return found

    def told_nothing(*_: Any) -> None:
        clock["ended"] = time.perf_counter()

    watched.started, watched.tell = timed, told_nothing
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage = RecordingStage(folder / "stage", seed=told["seed"])
        pairs = write_records(Preferences, folder / "pairs", told["pairs"])
        policy = Policy(name="policy", fingerprint="0", path=Path(told["model"]))
        if told["cached"]:
            dpo(given, RecordingStage(folder / "stage", seed=told["seed"]), policy=policy, pairs=pairs)
            filling = clock["known"] - clock["opened"]
        forget_peak()
        dpo(given, stage, policy=policy, pairs=pairs)
        if told["save"]:
            (stage.root / "artifact").rename(told["save"])
    return {
        "losses": [figures["loss"] for _, _, figures in stage.logs],
        "filling": filling if told["cached"] else 0.0,
        "seconds": clock["ended"] - clock["opened"],
        "memory": peak_memory() - before,
    }


if __name__ == "__main__":
    main()
