"""Prove on a GPU what a processor cannot show: `python prove.py OUT JOB [ARGUMENTS]`; `prove.sh` runs all jobs.

Each job appends lines of JSON to OUT/gpu.jsonl, so that a run which is cut short still tells what it found. Models have
the shapes of well-known ones and random weights; nothing is downloaded. With REHEARSE=1 all is in miniature, and runs
on a processor.
"""

import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from made_models import words_tokenizer

from alignkit import FunctionReward, Policy, Preferences, Prompts, RewardModel
from alignkit.contract.method import Method
from alignkit.contract.settings import LoRA
from alignkit.estimate.estimator import QUANTISED
from alignkit.estimate.formulas import Facts, Held, Job, estimated
from alignkit.estimate.sizes import sizes_of
from alignkit.estimate.timing import gauge
from alignkit.plugins import load_plugins
from alignkit.testing import RecordingStage, run_method, write_records
from alignkit.testing.examples import write_inputs
from alignkit.testing.recording import settings_of_recipe
from alignkit.training import room
from alignkit.training.arithmetic import device

REHEARSING = os.environ.get("REHEARSE") == "1"
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Multiplications and additions a second of dense matrix products in bf16, as the makers give them."""
CLOCKED = ("per_second", "lr", "learning_rate")
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")


@dataclass(frozen=True)
class Shape:
    """A Llama's, with the sizes of a well-known model."""

    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool = True


SHAPES = {
    "0.5B": Shape(24, 896, 4864, 14, 2, 151_936),  # Qwen2.5-0.5B
    "1.5B": Shape(28, 1536, 8960, 12, 2, 151_936),  # Qwen2.5-1.5B
    "7B": Shape(28, 3584, 18_944, 28, 4, 152_064, tied=False),  # Qwen2.5-7B
}
WORDS = 4096
SMALL = Shape(2, 32, 64, 4, 2, WORDS)


@dataclass(frozen=True)
class Lengths:
    """Of rows, in tokens."""

    prompt: int
    answer: int


PAIRS = Lengths(8, 8) if REHEARSING else Lengths(128, 192)
ASKED = Lengths(8, 4) if REHEARSING else Lengths(64, 128)
TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "clm": ("clm", {"batch": 4, "max_length": 32}),
    "sft": ("sft", {"batch": 8}),
    "reward": ("reward", {"batch": 8}),
    "dpo": ("dpo", {"batch": 8}),
    "dpo lora": ("dpo", {"batch": 8, "lora": {"rank": 4}}),
    "ppo separate": ("ppo", {"batch": 8, "updates": 3, "layout": "separate"}),
    "ppo shared": ("ppo", {"batch": 8, "updates": 3, "layout": "shared"}),
    "ppo frozen": ("ppo", {"batch": 8, "updates": 3, "layout": "frozen", "trained_layers": 1}),
    "grpo": ("grpo", {"batch": 8, "updates": 3, "answers": 4}),
    "rloo": ("rloo", {"batch": 8, "updates": 3, "answers": 4}),
}
"""Methods in miniature, by the names of what is compared."""
if REHEARSING:
    TINY = {name: TINY[name] for name in ("dpo", "grpo")}


class Stage(RecordingStage):
    """A stage that keeps and saves nothing."""

    def commit(self, step: int, write: Callable[[Path], None]) -> None: ...

    def leave(self) -> NoReturn:
        raise RuntimeError("nobody asked this stage to stop")

    def save_policy(self, model: Any, tokenizer: Any) -> Policy:
        return Policy(name="made", fingerprint="0", path=self.root)


class Out:
    """Where figures go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def tell(self, job: str, **figures: object) -> None:
        line = json.dumps({"job": job, "card": card(), **figures})
        with (self.folder / "gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def card() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "processor"


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def start_again() -> None:
    """Forget the peak of memory, and what nobody holds."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def gigabytes(count: float) -> float:
    return round(count / 1e9, 2)


def peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


@contextmanager
def folder_in_memory(name: str) -> Iterator[Path]:
    folder = MEMORY / f"prove-{name}-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def config_of(shape: Shape, pad: int, end: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
    )


def write_model(shape: Shape, folder: Path, scores: bool = False) -> LlamaConfig:
    """Write random weights of a shape in bf16, with a tokenizer whose tokens are words."""
    tokenizer = words_tokenizer(WORDS)  # a small one is made and read quickly; the model has more tokens
    config = config_of(shape, tokenizer.pad_token_id, tokenizer.eos_token_id)
    config.num_labels = 1 if scores else 2
    kind: Any = LlamaForSequenceClassification if scores else LlamaForCausalLM
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    try:
        with device():
            model = kind(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return config


def words(count: int, chance: torch.Generator) -> str:
    return " ".join(f"w{number}" for number in torch.randint(2000, (count,), generator=chance).tolist())


def pairs_in(folder: Path, rows: int) -> Preferences:
    chance = torch.Generator().manual_seed(1)
    # The end of an answer is a token, too.
    return write_records(
        Preferences,
        folder,
        [
            {
                "prompt": words(PAIRS.prompt, chance),
                "chosen": " " + words(PAIRS.answer - 1, chance),
                "rejected": " " + words(PAIRS.answer - 1, chance),
            }
            for _ in range(rows)
        ],
    )


def prompts_in(folder: Path, rows: int) -> Prompts:
    chance = torch.Generator().manual_seed(2)
    return write_records(Prompts, folder, [{"prompt": words(ASKED.prompt, chance)} for _ in range(rows)])


def method_called(name: str) -> Method:
    return load_plugins(()).method(name)


def equal(out: Out) -> None:
    """Run every method in miniature, in fp32, and keep what it logs; run on a GPU and without it, this is compared."""
    told: dict[str, list[dict[str, float]]] = {}
    for name, (method, given) in TINY.items():
        with folder_in_memory("equal") as folder:
            settings = {"learning_rate": 1e-3, "precision": "fp32", **given}
            stage = RecordingStage(folder / "stage")
            # Reward models are read in bf16 on a GPU, whatever a stage's own arithmetic is.
            gold = FunctionReward(name="gold", fingerprint="0", path=folder, function="reviews-gold")
            rewards = {"rewards": (gold,)} if "rewards" in method_called(method).consumes else {}
            run_method(method_called(method), settings, stage, **write_inputs(method_called(method), folder, rewards))
            told[name] = [values for _, _, values in stage.logs]
    (out.folder / f"equal-{device().type}.json").write_text(json.dumps(told), "utf-8")


def compare(out: Out) -> None:
    """Tell, method by method, the worst difference of a logged figure between a GPU and a processor."""
    theirs, ours = (
        json.loads((out.folder / f"equal-{kind}.json").read_text("utf-8"))
        for kind in ("cpu", "cpu" if REHEARSING else "cuda")
    )
    for name in TINY:
        worst = max(_differences(theirs[name], ours[name]))
        out.tell("equal", method=name, steps=len(ours[name]), worst=f"{worst[0]:.1e}", figure=worst[1])


def _differences(
    theirs: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]]
) -> Iterator[tuple[float, str]]:
    for here, there in zip(theirs, ours, strict=True):
        for name in here:
            if not any(part in name for part in CLOCKED):
                yield abs(here[name] - there[name]) / max(abs(here[name]), 0.01), name


def pairwise(out: Out, shape: str, batch: str, *words_of_job: str) -> None:
    """DPO on pairs of 512 tokens: speed, share of the card's arithmetic, memory, and what was estimated.

    Words: `padded`, `lora`, `4bit`, `again` (layers are computed again for the gradient), `compiled`.
    """
    lora, form = "lora" in words_of_job, "padded" if "padded" in words_of_job else "packed"
    load = "4bit" if "4bit" in words_of_job else ""
    room.arrange(room.Arrangement(True if "again" in words_of_job else "auto", "compiled" in words_of_job))
    rows, steps = int(batch), 2 if REHEARSING else 6
    with folder_in_memory("dpo") as folder:
        config = write_model(_shape(shape), folder / "policy")
        given = {"batch": rows, "learning_rate": 1e-5, **({"lora": {"rank": 16}} if lora else {})}
        if not torch.cuda.is_available():
            load = ""
        policy = Policy(name="policy", fingerprint="0", path=folder / "policy", load=load or None)
        pairs = pairs_in(folder / "pairs", rows * steps)
        start_again()
        began = now()
        with laid_out(form), sized() as passes:
            stage = Stage(folder / "stage")
            run_method(method_called("dpo"), given, stage, policy=policy, pairs=pairs)
        seconds = now() - began
        each = median(values["rows_per_second"] for _, _, values in stage.logs[1:])
    tokens = PAIRS.prompt + 2 * PAIRS.answer
    answered = 2 * PAIRS.answer
    work = each * arithmetic_of(_shape(shape), tokens, answered, lora)
    taken = peak()
    facts = Facts(rows * steps, 0, PAIRS.prompt, PAIRS.answer, PAIRS.prompt + PAIRS.answer)
    need = need_of("dpo", given, config, facts, quantised=QUANTISED.get(load))
    out.tell(
        "dpo",
        shape=shape,
        words=list(words_of_job),
        batch=rows,
        tokens_per_second=round(each * tokens),
        mfu=_share(work),
        peak_gb=gigabytes(taken),
        estimated_gb=gigabytes(need["memory"]),
        seconds=round(seconds, 1),
        passes=passes,
        parts=need["parts"],
    )


def arithmetic_of(shape: Shape, tokens: int, answered: int, lora: bool) -> float:
    """Count the operations of learning from one row of so many tokens; what is computed again is not counted."""
    wide = shape.width // shape.heads * shape.key_heads
    layer = shape.width * (2 * shape.width + 2 * wide + 3 * shape.inner)
    attention = 2 * 2 * shape.width * (PAIRS.prompt + PAIRS.answer) ** 2 / 2 * 2  # two rows, each sees what is before
    forward = shape.layers * (2 * layer * tokens + attention) + 2 * shape.width * shape.vocabulary * answered
    return forward * (2 if lora else 3)


def _share(work: float) -> float | None:
    known = next((most for name, most in PEAKS.items() if name in card()), None)
    return round(work / known, 3) if known else None


@contextmanager
def sized() -> Iterator[dict[str, int]]:
    """Watch how many tokens are let through a model at once, and how many bytes each keeps."""
    found: dict[str, int] = {}
    fitting = room.fitting

    def watched(card: float, taken: float, kept: float) -> int:
        found["tokens"], found["kept"] = fitting(card, taken, kept), round(kept)
        return found["tokens"]

    room.fitting = watched
    try:
        yield found
    finally:
        room.fitting = fitting


@contextmanager
def laid_out(form: str) -> Iterator[None]:
    """Let models read rows in this form for a while, whatever is fastest."""
    from alignkit.training import ways

    own = ways.form_by
    if form == "padded":
        ways.form_by = lambda *_: "padded"
    try:
        yield
    finally:
        ways.form_by = own


def online(out: Out, method: str, shape: str, batch: str, layout: str = "") -> None:
    """PPO or GRPO: speed of each phase, memory, and what was estimated."""
    rows, updates = (8, 2) if REHEARSING else (int(batch), 3)
    given: dict[str, Any] = {
        "batch": rows,
        "updates": updates,
        "epochs": 1,
        "minibatches": 2,
        "learning_rate": 1e-6,
        "patience": 0,
        "generation": {"max_new_tokens": ASKED.answer},
    }
    given |= {"layout": layout} if layout else {"answers": 8}
    with folder_in_memory(method) as folder:
        config = write_model(_shape(shape), folder / "policy")
        write_model(_shape(shape), folder / "reward", scores=True)
        policy = Policy(name="policy", fingerprint="0", path=folder / "policy")
        reward = RewardModel(name="reward", fingerprint="0", path=folder / "reward")
        prompts = prompts_in(folder / "prompts", 4 * rows)
        start_again()
        stage, began = Stage(folder / "stage"), now()
        with sized() as passes:
            run_method(method_called(method), given, stage, policy=policy, rewards=(reward,), prompts=prompts)
        seconds = now() - began
    taken = peak()
    logs = [values for _, _, values in stage.logs[1:]]
    speeds = {
        phase or "update": round(median(values[f"tokens_per_second{phase}"] for values in logs))
        for phase in ("", "/sample", "/score", "/learn")
    }
    facts = Facts(4 * rows, 0, ASKED.prompt, ASKED.answer, ASKED.prompt + ASKED.answer)
    need = need_of(method, given, config, facts, [Held(sizes_of(config, scores=True), trains=False, bytes=2)])
    out.tell(
        method,
        shape=shape,
        layout=layout,
        batch=rows,
        answer_tokens_per_second=speeds,
        peak_gb=gigabytes(taken),
        estimated_gb=gigabytes(need["memory"]),
        seconds=round(seconds, 1),
        passes=passes,
        parts=need["parts"],
    )


def need_of(
    name: str,
    given: Mapping[str, Any],
    config: Any,
    facts: Facts,
    others: Sequence[Held] = (),
    quantised: float | None = None,
) -> dict[str, Any]:
    """Return what `alignkit check` would say that the stage needs."""
    method = method_called(name)
    settings = settings_of_recipe(method.settings, given)
    needs = method.needs(settings)
    assert needs
    lora = getattr(settings, "lora", None)
    assert lora is None or isinstance(lora, LoRA)
    job = Job(needs, facts, sizes_of(config, lora), gauge(config, lora, "auto"), others, quantised=quantised)
    need = estimated(needs, job)
    parts = {part: gigabytes(value) for part, value in need.parts.items() if value > 1e7}
    return {"memory": need.memory, "parts": parts}


def theirs(out: Out, shape: str, batch: str) -> None:
    """TRL's GRPO on the same prompts, with transformers' generate, in bf16."""
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rows, updates = (8, 2) if REHEARSING else (int(batch), 3)
    with folder_in_memory("trl") as folder:
        write_model(_shape(shape), folder / "policy")
        chance = torch.Generator().manual_seed(2)
        prompts = Dataset.from_list([{"prompt": words(ASKED.prompt, chance)} for _ in range(4 * rows)])
        start_again()
        args = GRPOConfig(
            output_dir=str(folder / "made"),
            per_device_train_batch_size=rows // 2,
            gradient_accumulation_steps=2,
            steps_per_generation=2,
            num_iterations=1,
            num_generations=8 if rows >= 8 else 4,
            max_completion_length=ASKED.answer,
            max_steps=2 * updates,
            learning_rate=1e-6,
            beta=0.05,
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=str(folder / "policy"),
            reward_funcs=lambda completions, **_: [float(len(one) % 7) for one in completions],
            args=args,
            train_dataset=prompts,
            processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        )
        marks: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                marks.append(now())

        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Clock())
        marks.append(now())
        trainer.train()
    ends = marks[::2]  # two steps learn from what was answered once
    taken = [late - early for early, late in itertools.pairwise(ends)][1:]
    out.tell(
        "trl grpo",
        shape=shape,
        batch=rows,
        answer_tokens_per_second=round(rows * ASKED.answer / median(taken)),
        peak_gb=gigabytes(peak()),
    )


def waits(out: Out) -> None:
    """Count how often an optimiser step waits for the GPU."""
    if not torch.cuda.is_available():
        return
    import warnings

    from alignkit.training import step

    own, counts = step.take_joint_step, []

    def counted(*given: Any, **named: Any) -> Any:
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return own(*given, **named)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                counts.append([str(one.filename) + f":{one.lineno}" for one in caught])

    step.take_joint_step = counted
    with folder_in_memory("waits") as folder:
        inputs = write_inputs(method_called("dpo"), folder)
        run_method(method_called("dpo"), {"batch": 8}, RecordingStage(folder / "stage"), **inputs)
    out.tell("waits", steps=len(counts), each=median(map(len, counts)), where=counts[-1])


def _shape(name: str) -> Shape:
    return SMALL if REHEARSING else SHAPES[name]


def table(out: Out) -> None:
    """Print what was found, job by job, for docs/benchmarks.md."""
    for line in (out.folder / "gpu.jsonl").read_text("utf-8").splitlines():
        told = json.loads(line)
        told.pop("parts", None)
        print(
            "| " + " | ".join(f"{name} {value}" for name, value in told.items() if value not in ("", [], None)) + " |"
        )


JOBS: Mapping[str, Callable[..., None]] = {
    "equal": equal,
    "compare": compare,
    "dpo": pairwise,
    "online": online,
    "theirs": theirs,
    "waits": waits,
    "table": table,
}


def main() -> None:
    out, quiet = Out(Path(sys.argv[1])), logging
    quiet.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    quiet.disable_progress_bar()  # type: ignore[no-untyped-call]
    for words_of_job in " ".join(sys.argv[2:]).split(" + "):
        name, *given = words_of_job.split()
        began = time.perf_counter()
        try:
            JOBS[name](out, *given)
        except Exception as error:
            import traceback

            traceback.print_exc()
            out.tell(name, given=given, error=f"{type(error).__name__}: {str(error)[:300]}")
        print(f"{words_of_job}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
