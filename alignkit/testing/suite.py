"""What every method must keep: a class of tests that `conformance` makes for one method."""

import json
import math
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
from pydantic import ValidationError

from alignkit.contract.events import Metrics
from alignkit.contract.kinds import Artifact, Policy, Records, RewardModel
from alignkit.contract.method import Method
from alignkit.contract.mix import Mix
from alignkit.contract.needs import can_mix
from alignkit.contract.row_settings import RowSettings
from alignkit.contract.settings import Settings, described, merged
from alignkit.errors import NotFiniteError, RecipeError, StageError
from alignkit.run.stopping import Left
from alignkit.testing.examples import write_inputs, write_records
from alignkit.testing.processes import run_in_processes
from alignkit.testing.recording import RecordingStage, run_method, settings_of_recipe

CLOSE = 1e-4
"""How far weights may lie apart that should be equal but for rounding."""
RISING, FALLING = ("accuracy", "auc"), ("perplexity",)
"""Results that get better in a few steps on the rows that `write_inputs` makes, and in which direction."""
COMMON = ("learning_rate", "epochs")
"""Settings that always count, though it is not the method's own class that declares them."""

Inputs = Callable[[Path], Mapping[str, Any]]
Factory = pytest.TempPathFactory


class Run(NamedTuple):
    """One run of a method."""

    made: Artifact
    stage: RecordingStage
    inputs: Mapping[str, Any]

    def is_like(self, other: "Run") -> bool:
        """Return whether two runs came to the same: what was made, told and shown."""
        told = [(run.stage.results, run.stage.samples) for run in (self, other)]
        return told[0] == told[1] and same_artifact(self.made, other.made)


class Conformance:
    """What every method must keep. Made by `conformance`; each test stands for itself."""

    method: Method
    settings: Mapping[str, Any] = {}
    effects: Sequence[str] = ()
    without_effect: Sequence[str] = ()
    inputs: Inputs | None = None
    draws: bool = True
    learns: str = ""
    kept: ClassVar[list[Run]] = []
    """The plain run, once it was made: most tests compare with it."""

    def whole(self, factory: Factory) -> Run:
        """Return the plain run of the method, which is made once."""
        if not self.kept:
            folder = factory.mktemp("whole")
            given = self.inputs(folder) if self.inputs else {}
            self.kept.append(self.ran(folder, write_inputs(self.method, folder / "inputs", given)))
        return self.kept[0]

    def ran(
        self, folder: Path, inputs: Mapping[str, Any], settings: Mapping[str, Any] | None = None, **stage: Any
    ) -> Run:
        recording = RecordingStage(folder / "stage", **stage)
        made = run_method(self.method, merged(self.settings, settings or {}), recording, **inputs)
        return Run(made, recording, inputs)

    def test_it_is_found_without_torch(self) -> None:
        code = f"import sys, {self.method.module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ended.stdout.strip() == "[]", ended.stdout + ended.stderr

    def test_what_it_says_of_itself_can_be(self) -> None:
        self.method.examine()

    def test_every_setting_is_documented(self) -> None:
        assert list(undocumented(self.method.settings)) == []

    def test_the_summary_is_a_sentence(self) -> None:
        assert self.method.summary.endswith("."), self.method.summary

    def test_what_it_tells_is_what_it_declares(self, tmp_path_factory: Factory) -> None:
        whole = self.whole(tmp_path_factory)
        names = {role: [one.name for one in _several(given)] for role, given in whole.inputs.items()}
        assert [result for result in whole.stage.results if not self.method.tells(result, names)] == []

    def test_the_same_seed_makes_the_same(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        whole = self.whole(tmp_path_factory)
        assert same_artifact(whole.made, self.ran(tmp_path, whole.inputs).made)

    def test_another_seed_makes_something_else(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        whole = self.whole(tmp_path_factory)
        assert not same_artifact(whole.made, self.ran(tmp_path, whole.inputs, seed=whole.stage.seed + 1).made)

    def test_a_setting_has_an_effect(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        whole = self.whole(tmp_path_factory)
        told = [*map(read_setting, self.effects), *other_numbers(self.method.settings, self.settings)]
        changes = [change for change in told if not change.keys() & set(self.without_effect)]
        idle = [
            change
            for number, change in enumerate(changes)
            if whole.is_like(self.ran(tmp_path / str(number), whole.inputs, change))
        ]
        assert idle == []

    def test_stopped_and_resumed_it_makes_the_same(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        whole = self.whole(tmp_path_factory)
        stopped = RecordingStage(tmp_path / "stage", stop_at=1)
        with pytest.raises(Left):
            run_method(self.method, self.settings, stopped, **whole.inputs)
        again = stopped.again()
        assert again.latest() is not None
        assert same_artifact(whole.made, run_method(self.method, self.settings, again, **whole.inputs))
        assert _steps(again) == _steps(whole.stage), "what was done before the stop is done again"


class WeightsConformance(Conformance):
    """What a method must keep besides where it makes a policy or a reward model."""

    def test_it_tells_a_result_beside_what_it_was_or_what_anybody_reaches(self, tmp_path_factory: Factory) -> None:
        results = self.whole(tmp_path_factory).stage.results
        assert any(before is not None or floor is not None for before, _, floor in results.values()), results

    def test_what_it_learns_gets_better(self, tmp_path_factory: Factory) -> None:
        before, after, floor = self.whole(tmp_path_factory).stage.results[self.learns.lstrip("-")]
        start = floor if before is None else before
        assert after is not None
        assert start is not None
        assert after < start if self.learns.startswith("-") else (after > start or after >= 1), (start, after)

    def test_rows_that_are_held_out_are_not_learnt(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        whole = self.whole(tmp_path_factory)
        inputs = {role: _with_other_held_out(given, tmp_path / role) for role, given in whole.inputs.items()}
        check_close(whole.made, self.ran(tmp_path, inputs).made)

    def test_a_mix_of_sources_is_heeded(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        """Of two sources the second has the weight 0; a method that cannot mix is refused one by the plan."""
        whole = self.whole(tmp_path_factory)
        needs = self.method.needs(settings_of_recipe(self.method.settings, self.settings))
        if not can_mix(needs):
            return
        inputs = {role: _mixed(given, tmp_path / role) for role, given in whole.inputs.items()}
        made = self.ran(tmp_path, inputs).made
        assert not same_weights(whole.made, made), "what it trains on has lost its order: kit.in_order_of keeps it"

    def test_how_much_goes_through_at_once_changes_nothing(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        whole = self.whole(tmp_path_factory)
        with little_at_once():
            check_close(whole.made, self.ran(tmp_path, whole.inputs).made)

    def test_the_side_of_padding_changes_nothing(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        whole = self.whole(tmp_path_factory)
        inputs = _with_other_policies(whole.inputs, tmp_path / "inputs", pad_left)
        check_close(whole.made, self.ran(tmp_path, inputs).made)

    def test_several_processes_share_the_work_or_are_refused(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        whole = self.whole(tmp_path_factory)
        try:
            one_of_two = self.ran(tmp_path, whole.inputs, world=2)
        except (RecipeError, StageError):  # its loop is ours, which knows that the other process is missing
            return
        assert not same_weights(whole.made, one_of_two.made), "each process does all the work"

    def test_two_processes_make_what_one_makes(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        self.check_shared(tmp_path, self.whole(tmp_path_factory), sharded=False)

    def test_two_sharded_processes_make_what_one_makes(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        self.check_shared(tmp_path, self.whole(tmp_path_factory), sharded=True)

    def check_shared(self, folder: Path, whole: Run, *, sharded: bool) -> None:
        """Compare the plain run with one in two processes, unless that is refused."""
        try:
            made, told = run_in_processes(self.method, self.settings, folder, whole.inputs, sharded=sharded)
        except RecipeError:
            return
        check_close(whole.made, made)
        steps = [(event.step, event.values.keys()) for event in told if isinstance(event, Metrics)]
        assert steps == [(step, values.keys()) for step, _, values in whole.stage.logs]

    def test_what_it_makes_opens_in_plain_transformers(self, tmp_path_factory: Factory) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        made = self.whole(tmp_path_factory).made
        kind: Any = AutoModelForSequenceClassification if isinstance(made, RewardModel) else AutoModelForCausalLM
        model = kind.from_pretrained(made.path)
        tokenizer = AutoTokenizer.from_pretrained(made.path)
        logits = model(**tokenizer("the food was good", return_tensors="pt")).logits
        assert bool(logits.isfinite().all())

    def test_the_tokenizer_is_saved_as_it_was_given(self, tmp_path_factory: Factory) -> None:
        from transformers import AutoTokenizer

        from alignkit.kit import load_policy

        whole = self.whole(tmp_path_factory)
        saved = AutoTokenizer.from_pretrained(whole.made.path)
        given = [load_policy(policy, trainable=False)[1] for policy in policies_of(whole.inputs)]
        assert not given or tokenizer_facts(saved) in map(tokenizer_facts, given)

    def test_weights_that_are_not_finite_stop_it(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        inputs = _with_other_policies(self.whole(tmp_path_factory).inputs, tmp_path / "inputs", spoil)
        stage = RecordingStage(tmp_path / "stage")
        with pytest.raises(NotFiniteError):
            run_method(self.method, self.settings, stage, **inputs)
        assert not stage.artifact.exists()


class RowsConformance(Conformance):
    """What a method must keep besides where it makes rows."""

    def test_stopped_and_resumed_it_makes_the_same(self, tmp_path: Path, tmp_path_factory: Factory) -> None:
        """A method that is quick enough may finish instead."""
        whole = self.whole(tmp_path_factory)
        stage = RecordingStage(tmp_path / "stage", stop_at=1)
        try:
            made = run_method(self.method, self.settings, stage, **whole.inputs)
        except Left:
            made = run_method(self.method, self.settings, stage.again(), **whole.inputs)
        assert same_artifact(whole.made, made)

    def test_rows_stay_on_the_side_of_their_prompt(self, tmp_path_factory: Factory) -> None:
        whole = self.whole(tmp_path_factory)
        assert isinstance(whole.made, Records)
        given = [one for several in whole.inputs.values() for one in _several(several) if isinstance(one, Records)]
        held_out, train = ({_prompt(row) for one in given for row in side(one)} for side in SIDES)
        strayed = [row for row in whole.made.train() if _prompt(row) in held_out - train]
        assert strayed == []


SIDES: Sequence[Callable[[Records], Iterator[Mapping[str, Any]]]] = (Records.held_out, Records.train)


def conformance(
    method: Method,
    settings: Mapping[str, Any],
    *,
    effects: Sequence[str] = (),
    without_effect: Sequence[str] = (),
    inputs: Inputs | None = None,
    draws: bool = True,
    learns: str | None = None,
) -> type[Conformance]:
    """Make the conformance suite of a method, a class that pytest runs; its name must begin with `Test`.

    `settings` are such that the method takes at least two steps and logs each. Every number among the settings that are
    the method's own must change something, and so must the learning rate, the epochs, and every one of `effects`,
    `KEY=VALUE` as in a recipe; those named in `without_effect` need not. `inputs` makes, in a folder, inputs that take
    the place of those of `write_inputs`. `draws` says that something depends on the seed. `learns` names a result that
    must rise or, with a minus before it, fall; unless it is given, that is an accuracy, an AUC or a perplexity that the
    method declares.
    """
    default = next((f"{'-' * (name in FALLING)}{name}" for name in (*RISING, *FALLING) if name in method.results), "")
    kind = RowsConformance if issubclass(method.produces, Records) else Conformance
    if issubclass(method.produces, Policy | RewardModel):
        kind = WeightsConformance
    facts: dict[str, Any] = {
        "method": method,
        "settings": settings,
        "effects": effects,
        "without_effect": without_effect,
        "inputs": inputs and staticmethod(inputs),
        "draws": draws,
        "learns": default if learns is None else learns,
        "kept": [],
    }
    if not draws:
        facts["test_another_seed_makes_something_else"] = None
    if not facts["learns"]:
        facts["test_what_it_learns_gets_better"] = None
    return type("Conformance", (kind,), facts)


def weights_of(artifact: Artifact) -> dict[str, Any]:
    """Read all weights of a made policy or reward model, by name."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(artifact.path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same_weights(one: Artifact, other: Artifact, within: float = 0.0) -> bool:
    """Return whether two artifacts have the same weights, or none further apart than this."""
    return furthest(one, other) <= within


def furthest(one: Artifact, other: Artifact) -> float:
    """Return by how much the weights of two artifacts differ at most; infinity where others are there."""
    a, b = weights_of(one), weights_of(other)
    return max(float((a[name] - b[name]).abs().max()) for name in a) if a.keys() == b.keys() else math.inf


def check_close(one: Artifact, other: Artifact) -> None:
    """Raise AssertionError where two artifacts are further apart than rounding, and say what may be the reason."""
    apart = furthest(one, other)
    assert apart <= CLOSE, (
        f"weights are up to {apart:.1e} apart, and rounding gives less than {CLOSE:.0e}; a high learning rate makes"
        " rounding grow: if they are near at a tenth of it, test with that"
    )


def same_artifact(one: Artifact, other: Artifact) -> bool:
    """Return whether two artifacts have the same weights, or the same rows."""
    rows = [one.path / "data.jsonl" for one in (one, other)]
    if rows[0].is_file():
        return rows[0].read_bytes() == rows[1].read_bytes()
    return same_weights(one, other)


def undocumented(settings: type[Settings], prefix: str = "") -> Iterator[str]:
    """Yield the settings that nothing is said about, those in groups, too."""
    for name, field in described(settings).model_fields.items():
        if not field.description:
            yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from undocumented(field.annotation, f"{prefix}{name}.")


def read_setting(line: str) -> dict[str, Any]:
    """Read `KEY=VALUE` as a line of a recipe; a word needs no quotes."""
    key, _, value = line.partition("=")
    try:
        return tomllib.loads(f"{key} = {value}")
    except tomllib.TOMLDecodeError:
        return tomllib.loads(f"{key} = {json.dumps(value)}")


def other_numbers(kind: type[Settings], given: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Yield another value for each number among the settings that a method's own class declares."""
    bases = (base for base in kind.__mro__ if issubclass(base, Settings))
    ours = next(base for base in bases if base.__module__.startswith("alignkit.contract."))
    shared = {*ours.model_fields, *RowSettings.model_fields}.difference(COMMON)
    plain = valid(kind, given)
    assert plain is not None, f"{kind.__name__} refuses {dict(given)}"
    for name in kind.model_fields:
        value = getattr(plain, name)
        if name in shared or type(value) not in (int, float):
            continue
        half = value // 2 if isinstance(value, int) else value / 2
        for other in (half, 2 * value, value + 1, 0.25):
            if other != value and valid(kind, {**given, name: other}):
                yield {name: other}
                break


def valid(kind: type[Settings], given: Mapping[str, Any]) -> Settings | None:
    """Return the settings as a recipe would give them; None where they are refused."""
    try:
        return settings_of_recipe(kind, given)
    except ValidationError:
        return None


def policies_of(inputs: Mapping[str, Any]) -> list[Policy]:
    """Return the policies among a method's inputs."""
    return [one for given in inputs.values() for one in _several(given) if isinstance(one, Policy)]


def _several(given: Any) -> Sequence[Artifact]:
    return given if isinstance(given, tuple) else (given,)


def _with_other_policies(
    inputs: Mapping[str, Any], folder: Path, change: Callable[[Path], None]
) -> dict[str, Artifact | tuple[Artifact, ...]]:
    """Return the inputs with changed copies of all policies."""

    def changed(one: Artifact, place: Path) -> Artifact:
        if not isinstance(one, Policy):
            return one
        shutil.copytree(one.path, place)
        change(place)
        return one.model_copy(update={"path": place})

    made: dict[str, Artifact | tuple[Artifact, ...]] = {}
    for role, given in inputs.items():
        copies = tuple(changed(one, folder / role / str(number)) for number, one in enumerate(_several(given)))
        made[role] = copies if isinstance(given, tuple) else copies[0]
    return made


def _with_other_held_out(given: Any, folder: Path) -> Any:
    """Return records whose held-out files say something else; anything else as it is."""
    if not isinstance(given, Records):
        return given
    folder.mkdir(parents=True)
    parts = []
    for part in given.parts:
        paths = [folder / path.name for path in part.paths]
        if part.side == "held_out":
            for old, new in zip(part.paths, paths, strict=True):
                rows = map(json.loads, old.read_text("utf-8").splitlines())
                new.write_text("".join(json.dumps(_otherwise(row)) + "\n" for row in rows), "utf-8")
        parts.append(part.model_copy(update={"paths": tuple(paths)}) if part.side == "held_out" else part)
    return given.model_copy(update={"parts": tuple(parts)})


def _mixed(given: Any, folder: Path) -> Any:
    """Return records whose rows to learn from are of two sources, of which the first alone is read."""
    if not isinstance(given, Records):
        return given
    folder.mkdir(parents=True, exist_ok=True)
    rows, held_out = list(given.train()), [part for part in given.parts if part.side == "held_out"]
    sides = {"first": rows[: len(rows) // 2], "second": rows[len(rows) // 2 :]}
    parts = [write_records(type(given), folder / name, some).parts[0] for name, some in sides.items()]
    named = [part.model_copy(update={"name": name}) for name, part in zip(sides, parts, strict=True)]
    mix = Mix(weights={"first": 1.0, "second": 0.0})
    kept = (part.model_copy(update={"name": "first"}) for part in held_out)
    return given.model_copy(update={"parts": (*named, *kept), "mix": mix})


def _otherwise(value: Any) -> Any:
    """Return a row in which every text is another one."""
    if isinstance(value, dict):
        return {key: one if key == "role" else _otherwise(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_otherwise(one) for one in value]
    return f"{value} never again" if isinstance(value, str) else value


def _prompt(row: Mapping[str, Any]) -> str:
    return json.dumps(row.get("prompt"))


def _steps(stage: RecordingStage) -> list[int]:
    return [step for step, _, _ in stage.logs]


def tokenizer_facts(tokenizer: Any) -> tuple[object, ...]:
    """Return what a tokenizer must keep: its words, how it closes and pads, and how it renders chats."""
    return tokenizer.get_vocab(), tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template


def pad_left(folder: Path) -> None:
    """Let a tokenizer pad on the left side."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"padding_side": "left"}), "utf-8")


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
