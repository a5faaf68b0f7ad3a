"""What tests share: a tiny model with its tokenizer, and a stage that writes down what it is told."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest

from alignkit.contract.kinds import Policy, Records, RewardModel
from alignkit.contract.records import Part

hypothesis.settings.register_profile("alignkit", deadline=None)
hypothesis.settings.load_profile("alignkit")

SENTENCES = (
    "the food was good bad and we liked it not at all my room is cold warm they said hello how are you i am fine "
    "thanks for asking what a lovely day no rain today again never always maybe one two three"
)


class LeftError(Exception):
    """The stage was left, to be resumed."""


@dataclass
class RecordingStage:
    """A stage for tests: keeps what it is told in lists, checkpoints and artifacts in a folder."""

    root: Path
    name: str = "stage"
    seed: int = 17
    offline: bool = True
    rank: int = 0
    world: int = 1
    stop_at: int | None = None
    """Ask to stop once this step was logged."""
    logs: list[tuple[int, int | None, dict[str, float]]] = field(default_factory=list)
    figures: dict[str, tuple[float | None, float | None, float | None]] = field(default_factory=dict)
    samples: list[dict[str, str | float]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        folder = self.root / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def cache(self) -> Path:
        folder = self.root / "cache"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def stopping(self) -> bool:
        return self.stop_at is not None and bool(self.logs) and self.logs[-1][0] >= self.stop_at

    def leave(self) -> NoReturn:
        raise LeftError

    def log(self, step: int, of: int | None, values: Mapping[str, float]) -> None:
        self.logs.append((step, of, dict(values)))

    def figure(self, name: str, before: float | None, after: float | None, floor: float | None = None) -> None:
        self.figures[name] = (before, after, floor)

    def sample(self, row: Mapping[str, str | float]) -> None:
        self.samples.append(dict(row))

    def warn(self, problem: str, remedy: str) -> None:
        self.warnings.append((problem, remedy))

    def commit(self, step: int, write: Callable[[Path], None]) -> None:
        staged = self.root / "checkpoints" / f"step-{step}.partial"
        staged.mkdir(parents=True)
        write(staged)
        staged.rename(staged.with_suffix(""))

    def latest(self) -> Path | None:
        found = sorted((self.root / "checkpoints").glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))
        return found[-1] if found else None

    def save_policy(self, model: Any, tokenizer: Any) -> Policy:
        from alignkit.learn.saving import save_policy

        save_policy(model, tokenizer, self.root / "artifact")
        return Policy(name=self.name, fingerprint="0", path=self.root / "artifact")

    def save_reward(self, model: Any, tokenizer: Any, mean: float, std: float) -> RewardModel:
        from alignkit.learn.saving import save_reward

        save_reward(model, tokenizer, self.root / "artifact", mean, std)
        return RewardModel(name=self.name, fingerprint="0", path=self.root / "artifact")

    def save_rows(self, kind: Any, rows: Iterable[Mapping[str, object]]) -> Any:
        folder = self.root / "artifact"
        folder.mkdir(parents=True)
        (folder / "data.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), "utf-8")
        if issubclass(kind, Records):
            part = Part(name=self.name, paths=(folder / "data.jsonl",))
            return kind(name=self.name, fingerprint="0", path=folder, parts=(part,))
        return kind(name=self.name, fingerprint="0", path=folder)


@pytest.fixture
def stage(tmp_path: Path) -> RecordingStage:
    return RecordingStage(tmp_path / "stage")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and a word tokenizer that has its own pad token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    special = ["<pad>", "<eos>", "<unk>"]
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    text = " ".join([SENTENCES] * 4) + " ### User:\n\n### Assistant:\n"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([text, text], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=256
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def policy(model_folder: Path) -> Policy:
    return Policy(name="tiny", fingerprint="0", path=model_folder)


@pytest.fixture(autouse=True)
def reproducible() -> None:
    """Leave no test a random state that another has moved."""
    import sys

    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)


@pytest.fixture
def records(tmp_path: Path) -> Callable[..., Any]:
    """Make records of a kind from rows, some of them held out."""

    def make(
        kind: type[Records], train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]] = ()
    ) -> Records:
        parts = []
        for side, rows in (("train", train), ("held_out", held_out)):
            file = tmp_path / f"{kind.__name__.lower()}-{side}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            if rows:
                parts.append(Part.model_validate({"name": "rows", "paths": (file,), "side": side}))
        return kind(name="rows", fingerprint="0", path=tmp_path, parts=tuple(parts))

    return make
