"""Weights cut up among processes: how much each keeps, what is written, and how many processes read it again."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kept import kept, read_alone, spoilt

from alignkit.contract.kinds import Policy
from alignkit.errors import StageError
from alignkit.store import checkpoints
from alignkit.testing import RecordingStage, run_method, same_weights, write_inputs
from alignkit.testing.processes import run_in_processes

SETTINGS = {"learning_rate": 1e-3, "precision": "fp32"}


class Ran(NamedTuple):
    """What a learner came to in some processes."""

    made: Policy
    notes: list[dict[str, Any]]
    """Of each process."""
    checkpoint: Path


def run(root: Path, inputs: Mapping[str, Any], world: int, sharded: bool = True, **settings: Any) -> Ran:
    stage = root / "stage"
    if world == 1:
        made = run_method(kept, SETTINGS | settings, RecordingStage(stage), **inputs)
    else:
        made, _ = run_in_processes(kept, SETTINGS | settings, root, inputs, world, sharded=sharded)
    notes = [json.loads((stage / "cache" / f"kept-{rank}.json").read_text()) for rank in range(world)]
    return Ran(made, notes, stage / "checkpoints" / "step-1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_inputs(kept, tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("alone"), inputs, 1)


@pytest.fixture(scope="module")
def shared(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("shared"), inputs, 2)


def test_the_first_process_alone_reads_a_model(shared: Ran) -> None:
    """The others would not find it: `kept` gives them no folder."""
    assert len(shared.notes) == 2


def test_each_of_two_processes_keeps_half_of_weights_and_optimiser(alone: Ran, shared: Ran) -> None:
    (whole,) = alone.notes

    assert all(note["bytes"] <= 0.55 * whole["bytes"] for note in shared.notes)


def test_what_is_saved_is_the_whole_model_under_its_own_name(alone: Ran, shared: Ran) -> None:
    config = json.loads((shared.made.path / "config.json").read_text())

    assert config["architectures"] == ["LlamaForCausalLM"]
    assert same_weights(alone.made, shared.made, within=1e-5)


def test_layers_that_are_computed_again_are_gathered_again(alone: Ran, inputs: dict[str, Any], tmp_path: Path) -> None:
    assert same_weights(alone.made, run(tmp_path, inputs, 2, again=True).made, within=1e-5)


def test_each_process_writes_its_own_part_of_a_checkpoint(shared: Ran) -> None:
    files = sorted(file.name for file in shared.checkpoint.iterdir())

    assert files == ["manifest.json", "policy.1-of-2.safetensors", "policy.2-of-2.safetensors", "state.json"]
    assert checkpoints.newest(shared.checkpoint.parent, lambda *wrong: None) is not None


@pytest.mark.parametrize("written_by", ["alone", "shared"])
@pytest.mark.parametrize(
    ("world", "sharded"), [(1, False), (2, True), (2, False), pytest.param(3, True, marks=pytest.mark.slow)]
)
def test_any_number_of_processes_reads_it_as_it_was(
    written_by: str,
    world: int,
    sharded: bool,
    inputs: dict[str, Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    written: Ran = request.getfixturevalue(written_by)

    read = run(tmp_path, inputs, world, sharded, folder=str(written.checkpoint))

    assert {note["state"] for note in read.notes} == {written.notes[0]["state"]}
    assert same_weights(read.made, written.made)


def test_a_missing_part_of_a_checkpoint_is_told(inputs: dict[str, Any], shared: Ran, tmp_path: Path) -> None:
    (tmp_path / "policy.2-of-2.safetensors").write_bytes((shared.checkpoint / "policy.2-of-2.safetensors").read_bytes())

    with pytest.raises(StageError) as raised:
        run(tmp_path / "read", inputs, 1, folder=str(tmp_path))

    assert str(raised.value) == (
        f"{tmp_path / 'policy.safetensors'}: the checkpoint cannot be used (of its parts only "
        f"policy.2-of-2.safetensors are there); remove the folder {tmp_path}, and the stage goes on from an older "
        "checkpoint or starts over"
    )


def test_an_error_of_one_process_while_it_writes_ends_all(tmp_path: Path) -> None:
    inputs, began = write_inputs(spoilt, tmp_path / "inputs"), time.monotonic()

    with pytest.raises(RuntimeError, match=r"process 0: (?s:.*)no space for step-1\.partial(?s:.*)process 1: "):
        run_in_processes(spoilt, {}, tmp_path / "shared", inputs, sharded=True)

    assert time.monotonic() - began < 30


def test_a_model_that_is_cut_up_is_not_asked_in_one_process_alone(tmp_path: Path) -> None:
    inputs = write_inputs(read_alone, tmp_path / "inputs")

    with pytest.raises(RuntimeError, match="a sharded model was to be read by one process alone"):
        run_in_processes(read_alone, SETTINGS, tmp_path / "shared", inputs, sharded=True)
