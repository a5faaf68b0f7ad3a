"""What both sides of a PPO benchmark are told and tell: a job, a clock of an update's phases, counts and memory.

A side is a script that a benchmark starts in a process of its own. Memory is read from /proc, so this needs Linux.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedTokenizerBase, set_seed

HERE = Path(__file__).parent
TRL = "1.12.0"
"""The last TRL that had PPO."""
ABRIDGED = 4000
"""Characters of a failed side's output that are shown."""


@dataclass(frozen=True)
class Job:
    """One run of PPO, in words that both sides understand."""

    policy: str
    """The model's folder; its tokenizer has a pad token of its own, padded on the left."""
    reward: str
    """The folder of a decoder with one score, which the critic starts from, too."""
    prompts: list[str]
    updates: int
    batch: int
    epochs: int
    minibatches: int
    """Optimiser steps in an epoch."""
    max_new_tokens: int
    learning_rate: float
    kl_coef: float
    seed: int
    ends: bool = True
    """Answers end with the end-of-sequence token; else they are as long as they may be."""
    penalty: float = 0.0
    """Taken off the score of an answer that was cut."""
    ours: dict[str, Any] = field(default_factory=dict)
    """Further settings of `ppo`, nested as in a recipe; they win over the fields above."""
    trl: dict[str, Any] = field(default_factory=dict)
    """Further arguments of TRL's PPOConfig; they win over the fields above."""
    answers: list[list[int]] = field(default_factory=list)
    """What is answered to each prompt instead of sampling."""
    held_out: list[str] = field(default_factory=list)
    """Prompts on which the gold score is measured."""
    every: int = 0
    """Updates from one measurement of gold to the next; 0: none are made."""


@dataclass
class Update:
    """Seconds of one update by phase: until answers are there, until learning starts, and learning."""

    generate: float
    passes: float
    learn: float
    processor: float
    """Seconds that all cores together worked on it; other work on the machine disturbs these less."""

    @property
    def seconds(self) -> float:
        return self.generate + self.passes + self.learn


@dataclass
class Result:
    """What a side tells."""

    versions: dict[str, str]
    updates: list[Update]
    figures: list[dict[str, float]]
    """What the trainer logged, update by update."""
    steps: list[int]
    """Optimiser steps until the end of each update; where there are several optimisers, those of the busiest."""
    optimisers: int
    answered: list[float]
    """Tokens of the mean answer, update by update."""
    memory: int
    """Peak of the bytes beyond those after imports; on a GPU, of the bytes allocated there."""
    gold: list[tuple[int, float, float]] = field(default_factory=list)
    """Updates done, seconds of training until then, and the mean gold score of answers to held-out prompts."""


class Recorder:
    """Watches one side: call `begin`, then in every update `answered`, `learning` and `done`, in this order."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._after_imports = psutil.Process().memory_info().rss
        self._counts: Counter[int] = Counter()
        self._marks: list[float] = []
        self._worked = 0.0
        self._updates: list[Update] = []
        self._figures: list[dict[str, float]] = []
        self._steps: list[int] = []
        self._lengths: list[float] = []
        self._gold: list[tuple[int, float, float]] = []
        register_optimizer_step_post_hook(self._count)

    def begin(self, gold: Callable[[], float]) -> None:
        """Start the clock, and forget the peak of memory that loading has reached."""
        self._measure_gold(gold)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        forget_peak()
        self._restart()

    def answered(self) -> None:
        self._marks.append(now())

    def learning(self) -> None:
        """Mark the start of the optimiser steps; only the first call of an update counts."""
        if len(self._marks) == 2:
            self._marks.append(now())

    def done(self, figures: Mapping[str, float], length: float, gold: Callable[[], float]) -> None:
        """End an update; what is measured now is not on the clock."""
        begun, answered, learning = self._marks
        ended = now()
        worked = time.process_time() - self._worked
        self._updates.append(Update(answered - begun, learning - answered, ended - learning, worked))
        self._figures.append({name: float(value) for name, value in figures.items()})
        self._steps.append(max(self._counts.values(), default=0))
        self._lengths.append(length)
        self._measure_gold(gold)
        self._restart()

    def write(self, place: Path, versions: dict[str, str]) -> None:
        result = Result(
            versions,
            self._updates,
            self._figures,
            self._steps,
            len(self._counts),
            self._lengths,
            self._peak(),
            self._gold,
        )
        place.write_text(json.dumps(asdict(result)), "utf-8")

    def _restart(self) -> None:
        self._marks, self._worked = [now()], time.process_time()

    def _measure_gold(self, gold: Callable[[], float]) -> None:
        if self.job.every and len(self._updates) % self.job.every == 0:
            seconds = sum(update.seconds for update in self._updates)
            self._gold.append((len(self._updates), seconds, gold()))

    def _count(self, optimiser: torch.optim.Optimizer, *_: object) -> None:
        self._counts[id(optimiser)] += 1

    def _peak(self) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return peak_memory() - self._after_imports


def now() -> float:
    """Give the time after all that was handed to a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak() -> None:
    """Let the peak of this process's memory be what it has now."""
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


def peak_memory() -> int:
    """Give the most bytes that this process had in memory since `forget_peak`."""
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


@torch.no_grad()
def gold_score(model: Any, tokenizer: PreTrainedTokenizerBase, job: Job) -> float:
    """Answer the held-out prompts, each time with the same random numbers, and give the mean gold score."""
    from alignkit.demo.gold import gold

    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    inputs = tokenizer(job.held_out, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(1)
        told = model.eval().generate(
            **{name: inputs[name] for name in ("input_ids", "attention_mask")},
            max_new_tokens=job.max_new_tokens,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    model.train(training)
    answers = told[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    ended = (answers == tokenizer.eos_token_id).any(dim=1).tolist()
    scores = [gold(*row) for row in zip(job.held_out, texts, ended, strict=True)]
    return sum(scores) / len(scores)


def run_side(script: str, job: Job, folder: Path, trl: Path | None = None) -> Result:
    """Run one side in a process of its own; `trl` is the folder that its TRL is imported from.

    Raises RuntimeError with the end of what the side printed where it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told, tells = folder / "job.json", folder / "result.json"
    told.write_text(json.dumps(asdict(job)), "utf-8")
    tells.unlink(missing_ok=True)
    ways = [str(path) for path in (trl and trl.resolve(), HERE.parent) if path]
    environment = os.environ | {
        "OMP_WAIT_POLICY": "passive",  # with shared cores, spinning threads slow both sides down by far
        "PYTHONPATH": os.pathsep.join(ways),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    command = [sys.executable, str(HERE / script), str(told), str(tells)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode or not tells.is_file():
        raise RuntimeError(
            f"{script} failed (exit status {ended.returncode}):\n{(ended.stdout + ended.stderr)[-ABRIDGED:]}"
        )
    plain = json.loads(tells.read_text("utf-8"))
    plain["updates"] = [Update(**update) for update in plain["updates"]]
    plain["gold"] = [tuple(row) for row in plain["gold"]]
    return Result(**plain)


def read_job(argv: Sequence[str]) -> tuple[Job, Recorder, Path]:
    """Begin a side: give its job, a recorder, and where its result belongs."""
    job = Job(**json.loads(Path(argv[1]).read_text("utf-8")))
    set_seed(job.seed)
    return job, Recorder(job), Path(argv[2])


def install_trl(folder: Path) -> Path:
    """See to it that a folder holds TRL 1.12.0, apart from any other, and give the folder."""
    if not (folder / f"trl-{TRL}.dist-info").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, f"trl=={TRL}"], check=True)
    return folder
