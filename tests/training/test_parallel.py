"""Several processes share a stage: each does its part, and together they make what one makes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from counted import counted

from alignkit import Method
from alignkit.contract.events import Metrics
from alignkit.contract.kinds import Artifact
from alignkit.errors import RecipeError
from alignkit.methods.evaluate import evaluate
from alignkit.methods.grpo import grpo
from alignkit.methods.ppo import ppo
from alignkit.methods.reward import reward
from alignkit.methods.rloo import rloo
from alignkit.testing import RecordingStage, run_method, weights_of, write_inputs
from alignkit.testing.examples import write_tied_policy
from alignkit.testing.processes import run_in_processes
from alignkit.training import parallel

ONLINE: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch": 8,
    "updates": 4,
    "minibatches": 2,
    "precision": "fp32",
    "generation": {"max_new_tokens": 6, "unfinished": "subtract", "penalty": 0},
}
EXCHANGING = ONLINE | {
    "answers": 4,
    "dynamic_sampling": 2,
    "uncertain": 0.5,
    "reward": {"clip": 1e-3},
    "kl": {"term": "reward", "coef": 1e-4},
    "scale": "tokens",
}
FROZEN = ONLINE | {"layout": "frozen", "trained_layers": 1}
ROWS: dict[str, Any] = {"learning_rate": 1e-3, "batch": 6, "epochs": 1, "precision": "fp32"}


def figures(events: Any) -> list[dict[str, float]]:
    """Return what was told of each step, but for times."""
    metrics = [event.values for event in events if isinstance(event, Metrics)]
    return [{name: value for name, value in step.items() if "per_second" not in name} for step in metrics]


WORLDS = [2, pytest.param(3, marks=pytest.mark.slow)]


class Alone(NamedTuple):
    """What one process made and told."""

    method: Method
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    made: Artifact
    told: list[dict[str, float]]


CASES: dict[str, tuple[Method, Mapping[str, Any]]] = {
    "rows": (counted, ROWS),
    "rows, tied": (counted, ROWS),
    "rows, lora": (counted, ROWS | {"lora": {"rank": 4}}),
    "ppo": (ppo, ONLINE),
    "ppo, shared": (ppo, ONLINE | {"layout": "shared"}),
    "ppo, frozen": (ppo, FROZEN),
    "grpo, lora": (grpo, ONLINE | {"answers": 4, "lora": {"rank": 4}}),
    "grpo, exchanging": (grpo, EXCHANGING),
    "rloo": (rloo, ONLINE | {"answers": 4}),
}


@pytest.fixture(scope="module", params=CASES)
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    (method, settings), folder = CASES[request.param], tmp_path_factory.mktemp("alone")
    given = {"policy": write_tied_policy(folder / "tied")} if "tied" in request.param else {}
    inputs, stage = write_inputs(method, folder / "inputs", given), RecordingStage(folder / "stage")
    return Alone(method, settings, inputs, run_method(method, settings, stage, **inputs), figures(stage.events))


@pytest.mark.parametrize("world", WORLDS)
def test_every_step_is_that_of_one_process(alone: Alone, world: int, tmp_path: Path) -> None:
    check_shared(alone, world, tmp_path, sharded=False)


@pytest.mark.parametrize(
    "alone", [name for name, (_, settings) in CASES.items() if settings not in (FROZEN, EXCHANGING)], indirect=True
)
@pytest.mark.parametrize("world", WORLDS)
def test_every_step_with_weights_cut_up_is_that_of_one_process(alone: Alone, world: int, tmp_path: Path) -> None:
    check_shared(alone, world, tmp_path, sharded=True)


def check_shared(alone: Alone, world: int, tmp_path: Path, *, sharded: bool) -> None:
    made, events = run_in_processes(alone.method, alone.settings, tmp_path, alone.inputs, world, sharded=sharded)

    assert len(alone.told) >= 4
    assert figures(events) == [pytest.approx(step, rel=1e-5, abs=5e-6) for step in alone.told]
    weights = weights_of(made)
    apart = [float((weight - weights[name]).abs().max()) for name, weight in weights_of(alone.made).items()]
    assert max(apart) < 1e-5


def test_frozen_layers_are_not_cut_up(tmp_path: Path) -> None:
    inputs = write_inputs(ppo, tmp_path / "inputs")

    with pytest.raises(RecipeError) as raised:
        run_in_processes(ppo, FROZEN, tmp_path / "shared", inputs, sharded=True)

    assert str(raised.value) == (
        "trained_layers: a policy whose lower layers are frozen cannot be sharded; "
        "set sharded = false for the machine in machines.toml"
    )


def test_each_row_is_learnt_by_one_of_the_processes(tmp_path: Path) -> None:
    inputs = write_inputs(counted, tmp_path / "inputs")
    run_method(counted, ROWS, RecordingStage(tmp_path / "alone"), **inputs)
    whole = (tmp_path / "alone" / "cache" / "seen-0.txt").read_text().split()

    run_in_processes(counted, ROWS, tmp_path / "shared", inputs)

    parts = [(tmp_path / "shared" / "stage" / "cache" / f"seen-{rank}.txt").read_text().split() for rank in (0, 1)]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == sorted(whole)


def test_policies_are_measured_by_all_processes(tmp_path: Path) -> None:
    inputs, alone = write_inputs(evaluate, tmp_path / "inputs"), RecordingStage(tmp_path / "alone")
    settings = {"prompts": 7, "max_new_tokens": 6, "precision": "fp32", "ceiling": {"samples": 16}}
    one = run_method(evaluate, settings, alone, **inputs)

    made, _ = run_in_processes(evaluate, settings, tmp_path / "shared", inputs)

    (ours,), (theirs,) = made.rows(), one.rows()  # type: ignore[attr-defined]
    assert ours.pop("each")["reward"] == pytest.approx(theirs.pop("each")["reward"], abs=1e-5)
    assert ours["ceiling"]["reward"] == pytest.approx(theirs["ceiling"]["reward"], abs=1e-5)
    assert {name: ours[name] for name in ("length", "distinct_1", "eos_rate")} == {
        name: theirs[name] for name in ("length", "distinct_1", "eos_rate")
    }


@pytest.mark.slow
def test_heads_are_taught_by_all_processes(tmp_path: Path) -> None:
    settings, stage = ROWS | {"heads": 3}, RecordingStage(tmp_path / "alone")
    inputs = write_inputs(reward, tmp_path / "inputs")
    one = run_method(reward, settings, stage, **inputs)

    alone = Alone(reward, settings, inputs, one, figures(stage.events))
    check_shared(alone, 2, tmp_path / "shared", sharded=False)

    ours, theirs = (
        json.loads((folder / "reward.json").read_text())
        for folder in (one.path, tmp_path / "shared" / "stage" / "artifact")
    )
    assert theirs["heads"] == pytest.approx(ours["heads"], abs=1e-5)


def test_one_process_does_all_and_says_all() -> None:
    assert (parallel.world(), parallel.rank()) == (1, 0)
    assert parallel.deal_weighted(["a", "b"]) == [("a", 1.0), ("b", 1.0)]
    assert (parallel.agreed(True), parallel.any_of(False), parallel.first(lambda: 3)) == (True, False, 3)
    assert parallel.add_up(torch.ones(2)).tolist() == [1.0, 1.0]
