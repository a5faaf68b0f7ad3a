"""Several processes share a stage: each does its part, and together they make what one makes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from counted import counted

from alignkit import Method
from alignkit.contract.events import Metrics
from alignkit.methods.evaluate import evaluate
from alignkit.methods.grpo import grpo
from alignkit.methods.ppo import ppo
from alignkit.methods.rloo import rloo
from alignkit.testing import RecordingStage, run_method, weights_of, write_inputs
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
ROWS: dict[str, Any] = {"learning_rate": 1e-3, "batch": 6, "epochs": 1, "precision": "fp32"}


def figures(events: Any) -> list[dict[str, float]]:
    """Return what was told of each step, but for times."""
    metrics = [event.values for event in events if isinstance(event, Metrics)]
    return [{name: value for name, value in step.items() if "per_second" not in name} for step in metrics]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (counted, ROWS),
        (ppo, ONLINE),
        (ppo, ONLINE | {"layout": "shared"}),
        (ppo, ONLINE | {"layout": "frozen", "trained_layers": 1}),
        (grpo, ONLINE | {"answers": 4, "lora": {"rank": 4}}),
        (rloo, ONLINE | {"answers": 4}),
    ],
    ids=["rows", "ppo", "ppo, shared", "ppo, frozen", "grpo, lora", "rloo"],
)
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_step_is_that_of_one_process(
    method: Method, settings: Mapping[str, Any], world: int, tmp_path: Path
) -> None:
    inputs, alone = write_inputs(method, tmp_path / "inputs"), RecordingStage(tmp_path / "alone")
    made = run_method(method, settings, alone, **inputs)

    shared, events = run_in_processes(method, settings, tmp_path / "shared", inputs, world)

    ours, theirs = figures(events), figures(alone.events)
    assert len(theirs) >= 4
    assert ours == [pytest.approx(step, rel=1e-5, abs=5e-6) for step in theirs]
    weights = weights_of(shared)
    assert max(float((weight - weights[name]).abs().max()) for name, weight in weights_of(made).items()) < 1e-5


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
    settings = {"prompts": 7, "max_new_tokens": 6, "precision": "fp32"}
    one = run_method(evaluate, settings, alone, **inputs)

    made, _ = run_in_processes(evaluate, settings, tmp_path / "shared", inputs)

    (ours,), (theirs,) = made.rows(), one.rows()  # type: ignore[attr-defined]
    assert ours.pop("each")["reward"] == pytest.approx(theirs.pop("each")["reward"], abs=1e-5)
    assert {name: ours[name] for name in ("length", "distinct_1", "eos_rate")} == {
        name: theirs[name] for name in ("length", "distinct_1", "eos_rate")
    }


def test_one_process_does_all_and_says_all() -> None:
    assert (parallel.world(), parallel.rank()) == (1, 0)
    assert parallel.deal_weighted(["a", "b"]) == [("a", 1.0), ("b", 1.0)]
    assert (parallel.agreed(True), parallel.any_of(False), parallel.first(lambda: 3)) == (True, False, 3)
    assert parallel.add_up(torch.ones(2)).tolist() == [1.0, 1.0]
