"""For authors of methods: a tiny policy, a stage that writes down what it is told, and a conformance suite.

Where alignkit is installed, pytest has its fixtures `alignkit_tiny_policy`, `alignkit_stage` and `alignkit_records`.
The suite is one line:

    TestSimPO = conformance(simpo, {"learning_rate": 1e-2, "batch": 4}, effects=["beta=2.0"])
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import finalize

import pytest

from alignkit.contract.events import Event, Metrics, Result, Sample, Warned
from alignkit.contract.kinds import (
    Artifact,
    Demonstrations,
    Policy,
    Preferences,
    Prompts,
    Ratings,
    Records,
    Reward,
    RewardModel,
    Text,
)
from alignkit.contract.method import Input, Method
from alignkit.contract.settings import Settings, merged, over_default
from alignkit.data.records import Part
from alignkit.errors import NotFiniteError
from alignkit.plugins import load_plugins
from alignkit.run.order import Order
from alignkit.run.stopping import Stop
from alignkit.run.working_stage import Left, WorkingStage

SENTENCES = (
    "the food was good bad and we liked it not at all my room is cold warm they said hello how are you i am fine "
    "thanks for asking what a lovely day no rain today again never always maybe one two three"
)
ROWS = 48
CLOSE = 1e-4
"""How far weights may lie apart that should be equal but for rounding."""

RecordsT = TypeVar("RecordsT", bound=Records)
EventT = TypeVar("EventT", bound=Event)


class RecordingStage(WorkingStage):
    """A stage for tests: the one that methods get in a run, with a folder of its own, and what it is told in lists.

    `again` makes the next attempt, which goes on from the newest checkpoint, as a run would.
    """

    def __init__(
        self,
        root: Path,
        name: str = "stage",
        seed: int = 17,
        *,
        rank: int = 0,
        world: int = 1,
        stop_at: int | None = None,
        plugin_files: Sequence[Path] = (),
    ) -> None:
        self.root, self._files = root, plugin_files
        self.stop_at = stop_at
        """Ask to stop once this step was logged."""
        self.events: list[Event] = []
        self._told_by_commit = 0
        root.mkdir(parents=True, exist_ok=True)
        order = Order(
            attempt="",
            stage=name,
            method="",
            settings={},
            inputs={},
            seed=seed,
            fingerprint="0",
            offline=True,
            processes=world,
        )
        super().__init__(order, root, Stop(), rank, self.events.append, cache(partial(load_plugins, plugin_files)))
        if self._journal:
            self.close = finalize(self, self._journal.close)  # type: ignore[method-assign]

    @property
    def cache(self) -> Path:
        folder = self.root / "cache"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def stopping(self) -> bool:
        return self.stop_at is not None and bool(self.logs) and self.logs[-1][0] >= self.stop_at

    def commit(self, step: int, write: Callable[[Path], None]) -> None:
        super().commit(step, write)
        self._told_by_commit = len(self.events)

    def again(self, stop_at: int | None = None) -> "RecordingStage":
        """Return the next attempt, as it begins: what was told after the last commit is forgotten."""
        next_one = RecordingStage(
            self.root, self.name, self.seed, rank=self.rank, world=self.world, stop_at=stop_at, plugin_files=self._files
        )
        next_one.events[:0] = self.events[: self._told_by_commit]
        return next_one

    def _of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def logs(self) -> list[tuple[int, int | None, dict[str, float]]]:
        return [(event.step, event.of, dict(event.values)) for event in self._of(Metrics)]

    @property
    def results(self) -> dict[str, tuple[float | None, float | None, float | None]]:
        """Name -> before, after, floor."""
        return {event.name: (event.before, event.after, event.floor) for event in self._of(Result)}

    @property
    def measured(self) -> dict[str, int | None]:
        """On how many rows each result was measured."""
        return {event.name: event.rows for event in self._of(Result)}

    @property
    def samples(self) -> list[dict[str, str | float]]:
        return [dict(event.row) for event in self._of(Sample)]

    @property
    def warnings(self) -> list[tuple[str, str]]:
        return [(event.problem, event.remedy) for event in self._of(Warned)]


def write_tiny_policy(folder: Path) -> Policy:
    """Write a random Llama of two layers, with a byte-level tokenizer that has a pad token of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Policy(name="tiny", fingerprint="0", path=folder)


def write_tiny_reward(folder: Path) -> RewardModel:
    """Write a reward model of the same shape and tokens, which scores at random."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from alignkit.training.saving import save_reward

    base = write_tiny_policy(folder / "base").path
    kind: Any = AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind.from_pretrained(base, num_labels=1)
    save_reward(model, AutoTokenizer.from_pretrained(base), folder / "reward", mean=0.0, std=0.02)
    return RewardModel(name="reward", fingerprint="0", path=folder / "reward")


def write_records(
    kind: type[RecordsT],
    folder: Path,
    train: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]] = (),
) -> RecordsT:
    """Write rows as records of a kind, some of them held out."""
    parts = []
    folder.mkdir(parents=True, exist_ok=True)
    for side, rows in (("train", train), ("held_out", held_out)):
        file = folder / f"{kind.__name__.lower()}-{side}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        if rows:
            parts.append(Part.model_validate({"name": "rows", "paths": (file,), "side": side}))
    return kind(name="rows", fingerprint="0", path=folder, parts=tuple(parts))


def write_inputs(method: Method, folder: Path) -> dict[str, Any]:
    """Make something for each input that a method must have: the tiny policy, short rows, a known reward.

    Raises ValueError for a kind that nobody but its author can make; give that one to `conformance`.
    """
    made = {role: _input(role, wanted, folder) for role, wanted in method.consumes.items() if not wanted.optional}
    return {role: (one,) if method.consumes[role].several else one for role, one in made.items()}


def _input(role: str, wanted: Input, folder: Path) -> Artifact:
    for kind in wanted.kinds:
        if kind is Policy:
            return write_tiny_policy(folder / role)
        if kind in (Reward, RewardModel):
            return write_tiny_reward(folder / role)
        if issubclass(kind, Records) and kind in EXAMPLES:
            rows = [EXAMPLES[kind](number) for number in range(ROWS)]
            return write_records(kind, folder / role, rows[8:], rows[:8])
    raise ValueError(f"input {role!r} takes a {wanted.words}, which only its author can make")


def _words(number: int, count: int) -> str:
    words = SENTENCES.split()
    return " ".join(words[(number * 7 + place * (number % 5 + 1)) % len(words)] for place in range(count))


def _pair(number: int) -> dict[str, Any]:
    chosen, rejected = f" good {_words(number, 3 + number % 4)}", f" bad {_words(number + 1, 2 + number % 3)}"
    return {"prompt": _words(number, 2 + number % 3), "chosen": chosen, "rejected": rejected}


def _answered(number: int) -> dict[str, Any]:
    return {"prompt": _words(number, 2), "completion": f" {_words(number + 3, 3 + number % 4)}"}


EXAMPLES: Mapping[type[Records], Callable[[int], dict[str, Any]]] = {
    Text: lambda number: {"text": _words(number, 9)},
    Prompts: lambda number: {"prompt": _words(number, 2 + number % 3)},
    Demonstrations: lambda number: {
        "prompt": _words(number, 2),
        "completion": f" {_words(number + 3, 3 + number % 4)}",
    },
    Preferences: _pair,
    Ratings: lambda number: {
        "prompt": _words(number, 2),
        "completion": f" {_words(number, 3)}",
        "label": number % 2 == 0,
    },
}
"""Rows of each kind, by number; prompts and answers are ragged."""


def run_method(method: Method, settings: Mapping[str, Any], stage: RecordingStage, **inputs: Any) -> Any:
    """Run a method as a worker would, with settings as a recipe has them; give its artifact."""
    import torch

    torch.manual_seed(stage.seed)
    fields = method.settings.model_fields
    groups = {key: over_default(fields[key], value) for key, value in settings.items() if isinstance(value, Mapping)}
    return method(method.settings.model_validate({**settings, **groups}), stage, **inputs)


def weights_of(artifact: Artifact) -> dict[str, Any]:
    """Read all weights of a made policy or reward model, by name."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(artifact.path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same_weights(one: Artifact, other: Artifact, within: float = 0.0) -> bool:
    """Tell whether two artifacts have the same weights, or none further apart than this."""
    a, b = weights_of(one), weights_of(other)
    return a.keys() == b.keys() and all(bool((a[name] - b[name]).abs().max() <= within) for name in a)


def _several(given: Any) -> Sequence[Artifact]:
    return given if isinstance(given, tuple) else (given,)


class Conformance:
    """What every method that makes weights must keep. Made by `conformance`; each test stands for itself."""

    method: Method
    settings: Mapping[str, Any] = {}
    effects: Sequence[str] = ()
    inputs: Callable[[Path], Mapping[str, Any]] | None = None

    def given(self, folder: Path) -> dict[str, Any]:
        return dict(self.inputs(folder)) if self.inputs else write_inputs(self.method, folder)

    def ran(self, folder: Path, settings: Mapping[str, Any] | None = None, **stage: Any) -> Any:
        inputs = self.given(folder / "inputs")
        told = merged(self.settings, settings or {})
        return run_method(self.method, told, RecordingStage(folder / "stage", **stage), **inputs)

    def test_it_is_found_without_torch(self) -> None:
        code = f"import sys, {self.method.module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ended.stdout.strip() == "[]", ended.stdout + ended.stderr

    def test_every_setting_is_documented(self) -> None:
        assert list(undocumented(self.method.settings)) == []

    def test_what_it_tells_is_what_it_declares(self, tmp_path: Path) -> None:
        inputs = self.given(tmp_path / "inputs")
        stage = RecordingStage(tmp_path / "stage")
        run_method(self.method, self.settings, stage, **inputs)
        names = {role: [one.name for one in _several(given)] for role, given in inputs.items()}
        assert [result for result in stage.results if not self.method.tells(result, names)] == []

    def test_the_summary_is_a_sentence(self) -> None:
        assert self.method.summary.endswith("."), self.method.summary

    def test_the_same_seed_gives_the_same_weights(self, tmp_path: Path) -> None:
        assert same_weights(self.ran(tmp_path / "one"), self.ran(tmp_path / "other"))

    def test_a_setting_has_an_effect(self, tmp_path: Path) -> None:
        plain = self.ran(tmp_path / "plain")
        idle = [
            effect
            for number, effect in enumerate(self.effects)
            if same_weights(plain, self.ran(tmp_path / str(number), read_setting(effect)))
        ]
        assert idle == []

    def test_stopped_and_resumed_it_makes_the_same(self, tmp_path: Path) -> None:
        whole = self.ran(tmp_path / "whole")
        inputs = self.given(tmp_path / "parts" / "inputs")
        stopped = RecordingStage(tmp_path / "parts" / "stage", stop_at=1)
        with pytest.raises(Left):
            run_method(self.method, self.settings, stopped, **inputs)
        again = stopped.again()
        assert again.latest() is not None
        assert same_weights(whole, run_method(self.method, self.settings, again, **inputs))

    def test_how_much_goes_through_at_once_changes_nothing(self, tmp_path: Path) -> None:
        whole = self.ran(tmp_path / "whole")
        with little_at_once():
            assert same_weights(whole, self.ran(tmp_path / "parts"), CLOSE)

    def test_the_side_of_padding_changes_nothing(self, tmp_path: Path) -> None:
        made = []
        for side in ("left", "right"):
            inputs = self.given(tmp_path / side / "inputs")
            for policy in policies_of(inputs):
                pad_on(policy.path, side)
            made.append(run_method(self.method, self.settings, RecordingStage(tmp_path / side / "stage"), **inputs))
        assert same_weights(made[0], made[1], CLOSE)

    def test_what_it_makes_opens_in_plain_transformers(self, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        made = self.ran(tmp_path)
        kind: Any = AutoModelForSequenceClassification if isinstance(made, RewardModel) else AutoModelForCausalLM
        model = kind.from_pretrained(made.path)
        tokenizer = AutoTokenizer.from_pretrained(made.path)
        logits = model(**tokenizer("the food was good", return_tensors="pt")).logits
        assert bool(logits.isfinite().all())

    def test_weights_that_are_not_finite_stop_it(self, tmp_path: Path) -> None:
        inputs = self.given(tmp_path / "inputs")
        for policy in policies_of(inputs):
            spoil(policy.path)
        stage = RecordingStage(tmp_path / "stage")
        with pytest.raises(NotFiniteError):
            run_method(self.method, self.settings, stage, **inputs)
        assert not (stage.root / "artifact").exists()


def conformance(
    method: Method,
    settings: Mapping[str, Any],
    *,
    effects: Sequence[str] = (),
    inputs: Callable[[Path], Mapping[str, Any]] | None = None,
) -> type[Conformance]:
    """Make the conformance suite of a method, a class that pytest runs; its name must begin with `Test`.

    `settings` are such that the method takes at least two steps and logs each. Every one of `effects`, `KEY=VALUE` as
    in a recipe, must change the result. `inputs` makes, in a folder, inputs that `write_inputs` cannot make.
    """
    given = {"method": method, "settings": settings, "effects": effects, "inputs": inputs and staticmethod(inputs)}
    return type("Conformance", (Conformance,), given)


def undocumented(settings: type[Settings], prefix: str = "") -> Iterator[str]:
    """Give the settings that nothing is said about, those in groups, too."""
    for name, described in settings.model_fields.items():
        if not described.description:
            yield prefix + name
        if isinstance(described.annotation, type) and issubclass(described.annotation, Settings):
            yield from undocumented(described.annotation, f"{prefix}{name}.")


def read_setting(line: str) -> dict[str, Any]:
    """Read `KEY=VALUE` as a line of a recipe; a word needs no quotes."""
    key, _, value = line.partition("=")
    try:
        return tomllib.loads(f"{key} = {value}")
    except tomllib.TOMLDecodeError:
        return tomllib.loads(f"{key} = {json.dumps(value)}")


def policies_of(inputs: Mapping[str, Any]) -> list[Policy]:
    """Give the policies among a method's inputs."""
    flat = [one for given in inputs.values() for one in (given if isinstance(given, tuple) else (given,))]
    return [one for one in flat if isinstance(one, Policy)]


def pad_on(folder: Path, side: str) -> None:
    """Let a tokenizer pad on this side."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"padding_side": side}), "utf-8")


def spoil(folder: Path) -> None:
    """Make one weight of a model NaN."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in sorted(weights) if "mlp" in name)
    weights[name][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


@contextmanager
def little_at_once() -> Iterator[None]:
    """Let only a few tokens go through a model at once, as where memory is short."""
    from alignkit.training import packing, rollouts, trainers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TOKENS_IN_A_PACK", 16)
        patch.setattr(rollouts, "TOKENS_IN_A_PASS", 32)
        patch.setattr(trainers, "ACTIVATIONS_ON_A_CPU", 1)
        yield
