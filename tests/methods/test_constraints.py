"""Costs are measured like rewards, bounded, and never added to them."""

import pytest

from alignkit import FunctionReward
from alignkit.contract.constraint import Constraint
from alignkit.contract.events import Result
from alignkit.contract.kinds import Prompts
from alignkit.errors import PluginError
from alignkit.methods.ppo import ppo
from alignkit.methods.rloo import rloo
from alignkit.testing import Left, RecordingStage, run_method
from alignkit.testing.processes import run_in_processes
from alignkit.testing.suite import same_weights
from alignkit.training.multipliers import Multiplier, ascend

SETTINGS = {
    "learning_rate": 1e-2,
    "updates": 3,
    "batch": 8,
    "answers": 2,
    "epochs": 1,
    "minibatches": 2,
    "precision": "fp32",
    "generation": {"max_new_tokens": 6, "unfinished": "subtract", "penalty": 0.0},
}


def length(**constraint) -> FunctionReward:
    given = Constraint(**constraint) if constraint else None
    settings = {"target": 30, "unit": "characters"}
    return FunctionReward(
        name="brevity", fingerprint="0", path=".", function="length", settings=settings, constraint=given
    )


@pytest.fixture
def inputs(policy, records, reward_model):
    words = ["hello", "how", "are", "you", "today"]
    rows = [{"prompt": f"{a} {b}"} for a in words for b in words]
    return {"policy": policy, "rewards": (reward_model,), "prompts": records(Prompts, rows[4:], rows[:4])}


def told(stage: RecordingStage, name: str) -> list[float]:
    return [row[name] for _, _, row in stage.logs]


def test_a_cost_is_told_beside_its_bound_and_is_no_part_of_the_reward(inputs, tmp_path) -> None:
    stage = RecordingStage(tmp_path)

    run_method(rloo, SETTINGS, stage, **inputs, costs=(length(min=-0.1, start=2.0),))

    assert "cost/brevity" in stage.results
    assert [event.bounds for event in stage.events if isinstance(event, Result) and event.bounds] == [(-0.1, None)]
    assert "reward/brevity" not in stage.results
    assert told(stage, "scores/reward") == pytest.approx([score / 10 for score in told(stage, "objective/scores")])


def test_a_multiplier_follows_by_steps_and_answers_to_the_last_update() -> None:
    """By hand: scale 0.4 / 0.2 ** 2 = 10; 0.5 + 0.1 * 10 * 0.3 = 0.8, and 1 * 10 * 0.3 on top; then back by 0.1."""
    multiplier = Multiplier.of(Constraint(max=0.2, start=0.5, gain=1.0))

    multiplier.ascend(mean=0.5, cost_std=0.2, reward_std=0.4)
    first = multiplier.value
    multiplier.ascend(mean=0.1, cost_std=0.9, reward_std=0.9)

    assert first == pytest.approx(0.8 + 3.0)
    assert (multiplier.followed, multiplier.value) == (pytest.approx(0.7), 0.0)


def test_a_multiplier_waits_until_costs_differ() -> None:
    multiplier = Multiplier.of(Constraint(min=0.9))

    multiplier.ascend(mean=0.0, cost_std=0.0, reward_std=1.0)

    assert multiplier.value == 0.0


def test_a_method_that_keeps_the_costs_to_itself_is_blamed() -> None:
    with pytest.raises(PluginError) as caught:
        ascend({"harm": Multiplier.of(Constraint(max=0.2))}, {"loss": 1.0})

    told = "an update was ended without its cost/harm; pass the metrics of its Seen on"
    assert str(caught.value) == told


def test_a_multiplier_rises_while_its_bound_is_broken_and_is_capped(inputs, tmp_path) -> None:
    stage = RecordingStage(tmp_path)

    run_method(rloo, SETTINGS, stage, **inputs, costs=(length(min=0.0, learning_rate=1e3, start=0.5, cap=0.6),))

    assert told(stage, "lambda/brevity") == [0.5, 0.6, 0.6]


def test_a_bound_that_is_kept_leaves_the_training_as_it_was(inputs, tmp_path) -> None:
    free = run_method(rloo, SETTINGS, RecordingStage(tmp_path / "free"), **inputs)

    kept = run_method(rloo, SETTINGS, RecordingStage(tmp_path / "kept"), **inputs, costs=(length(min=-1.0),))
    bound = run_method(rloo, SETTINGS, RecordingStage(tmp_path / "bound"), **inputs, costs=(length(min=-1.0, start=1),))

    assert same_weights(free, kept)
    assert not same_weights(free, bound)


@pytest.mark.parametrize("method", [ppo, rloo], ids=["ppo", "rloo"])
def test_a_stage_that_was_interrupted_goes_on_with_its_multipliers(method, inputs, tmp_path) -> None:
    given = {**inputs, "costs": (length(min=0.0, learning_rate=0.5),)}
    whole, stopped = RecordingStage(tmp_path / "whole"), RecordingStage(tmp_path / "stopped", stop_at=2)
    made = run_method(method, SETTINGS, whole, **given)

    with pytest.raises(Left):
        run_method(method, SETTINGS, stopped, **given)
    again = stopped.again()
    resumed = run_method(method, SETTINGS, again, **given)

    assert same_weights(made, resumed)
    assert told(again, "lambda/brevity") == told(whole, "lambda/brevity")
    assert told(whole, "lambda/brevity")[2] > 0
    assert again.results == whole.results


@pytest.mark.slow
def test_two_processes_have_the_same_multipliers(inputs, tmp_path) -> None:
    given = {**inputs, "costs": (length(min=0.0, learning_rate=0.5),)}
    stage = RecordingStage(tmp_path / "alone")
    made = run_method(rloo, SETTINGS, stage, **given)

    shared, events = run_in_processes(rloo, SETTINGS, tmp_path / "shared", given, sharded=False)

    assert same_weights(made, shared, 1e-4)
    found = [event.values["lambda/brevity"] for event in events if "lambda/brevity" in getattr(event, "values", {})]
    assert found == pytest.approx(told(stage, "lambda/brevity"))
