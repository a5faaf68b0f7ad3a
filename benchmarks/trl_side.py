"""Run a job with TRL 1.12.0's PPOTrainer: `PYTHONPATH=TRL python trl_side.py JOB RESULT`. Benchmarks call it.

The trainer is used as it comes, in its fastest fp32 setting: no activation checkpointing, one pass per minibatch, no
micro-batches, all of a batch sampled and scored at once. With one pass a minibatch its `num_mini_batches` works; the
optimiser's steps are counted all the same.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from job import TRL, Job, Recorder, gold_score, read_job
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from alignkit.training.weight_files import normalisation_of


def main() -> None:
    if trl.__version__ != TRL:
        raise SystemExit(f"this is TRL {trl.__version__}, not {TRL}")
    job, recorder, place = read_job(sys.argv)
    tokenizer = AutoTokenizer.from_pretrained(job.policy, padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(job.policy, dtype=torch.float32) for _ in range(2))
    reward, critic = (open_scorer(job) for _ in range(2))
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    rows = [{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in job.prompts]
    watcher = Watcher(job, recorder, policy, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(**arguments(job, folder)),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=critic,
            train_dataset=Dataset.from_list(rows),
            callbacks=[watcher],
        )
        watch(watcher)
        recorder.begin(watcher.gold)
        trainer.train()
    recorder.write(
        place, {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    )


def arguments(job: Job, folder: str) -> dict[str, Any]:
    """Put the job into TRL's words."""
    return {
        "output_dir": folder,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": 1,
        "local_rollout_forward_batch_size": job.batch,
        "num_mini_batches": job.minibatches,
        "num_ppo_epochs": job.epochs,
        "total_episodes": job.updates * job.batch,
        "response_length": job.max_new_tokens,
        "stop_token": "eos" if job.ends else None,
        "missing_eos_penalty": job.penalty or None,
        "temperature": 1.0,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "linear",
        "adam_epsilon": 1e-5,
        "kl_coef": job.kl_coef,
        "seed": job.seed,
        "num_sample_generations": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    } | job.trl


def open_scorer(job: Job) -> Any:
    """Open the reward model, its scores normalised as alignkit normalises them."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(job.reward, dtype=torch.float32, num_labels=1)
    mean, std = normalisation_of(Path(job.reward))
    if (mean, std) != (0.0, 1.0):
        model.score.weight.data /= std
        model.score.bias = nn.Parameter(torch.tensor([-mean / std]))
    return model


class Watcher(TrainerCallback):
    """Ends updates; TRL calls it by what happens."""

    def __init__(self, job: Job, recorder: Recorder, policy: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.job, self.recorder, self.policy, self.tokenizer = job, recorder, policy, tokenizer
        self.length = 0.0
        self.figures: dict[str, float] = {}

    def gold(self) -> float:
        return gold_score(self.policy, self.tokenizer, self.job)

    def on_log(self, *_: object, **named: Any) -> None:
        self.figures = dict(named["logs"])

    def on_step_end(self, *_: object, **__: Any) -> None:
        self.recorder.done(self.figures, self.length, self.gold)


def watch(watcher: Watcher) -> None:
    """Mark the end of sampling, and the first pass with gradients; answer from the job where it has answers."""
    pad = watcher.tokenizer.pad_token_id
    generate, forward = ppo_trainer.batch_generation, ppo_trainer.forward

    def timed_generate(model: nn.Module, queries: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        made = given(model, queries) if watcher.job.answers else generate(model, queries, *rest)
        watcher.recorder.answered()
        watcher.length = float((made[0][:, queries.shape[1] :] != pad).sum(dim=1).float().mean())
        return made

    def timed_forward(*rest: Any) -> Any:
        if torch.is_grad_enabled():
            watcher.recorder.learning()
        return forward(*rest)

    @torch.no_grad()
    def given(model: nn.Module, queries: Tensor) -> tuple[Tensor, Tensor]:
        asked = [tuple(row[row != pad].tolist()) for row in queries]
        answers = torch.tensor([answer_to[row] for row in asked], device=queries.device)
        whole = torch.cat([queries, answers], dim=1)
        return whole, forward(model, whole, pad).logits[:, queries.shape[1] - 1 : -1]

    prompts = [tuple(watcher.tokenizer(prompt)["input_ids"]) for prompt in watcher.job.prompts]
    answer_to = dict(zip(prompts, watcher.job.answers, strict=False))
    ppo_trainer.batch_generation, ppo_trainer.forward = timed_generate, timed_forward


if __name__ == "__main__":
    main()
