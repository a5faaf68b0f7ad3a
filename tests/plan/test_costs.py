"""Bounds of a stage: what a recipe may say of them, and what is refused before anything runs."""

from pathlib import Path

import pytest

from alignkit.contract.constraint import Constraint
from alignkit.errors import RecipeError
from alignkit.plan.plan import Plan
from alignkit.plan.planner import make_plan
from alignkit.show.planned import as_kept, show_plan


def planned(tmp_path: Path, **given: object) -> Plan:
    return make_plan("rlhf.toml", set=dict(given), runs=tmp_path)


def test_a_bounded_reward_is_a_cost_and_no_reward(tmp_path) -> None:
    plan = planned(tmp_path, **{"align.constraints.gold.min": 0.5})

    stage = plan.stage("align")
    assert stage.inputs["costs"] == ("gold",)
    assert stage.inputs["rewards"] == ("reward",)
    assert stage.constraints == {"gold": Constraint(min=0.5)}
    assert ("align     constraint: mean gold at least 0.5") in show_plan(plan, {}, {}, None)


def test_of_two_reward_models_the_one_without_a_bound_is_the_reward(tmp_path) -> None:
    plan = planned(tmp_path, **{"align.constraints.reward.max": 0.5, "align.inputs.rewards": ["gold"]})
    alone = planned(tmp_path, **{"align.constraints.reward.max": 0.5})

    assert plan.stage("align").inputs["costs"] == ("reward",)
    assert alone.stage("align").inputs["rewards"] == ("gold",)


def test_only_what_is_bounded_changes_a_fingerprint(tmp_path) -> None:
    prints = {
        planned(tmp_path, **given).stage("align").fingerprint
        for given in ({}, {"align.constraints": {}}, {"align.constraints.gold.min": 0.5})
    }
    other = planned(tmp_path, **{"align.constraints.gold.min": 0.6}).stage("align").fingerprint

    assert len(prints) == 2
    assert other not in prints


def test_a_bound_is_kept_with_the_settings_of_its_multiplier(tmp_path) -> None:
    facts = as_kept(planned(tmp_path, **{"align.constraints.gold": {"max": 1.0, "cap": 3.0}}))["stages"]["align"]

    assert facts["constraints"]["gold"]["max"] == 1.0
    assert "costs" not in facts["inferred"]
    assert ("constraints.gold.cap", "3.0") in [(one["key"], one["value"]) for one in facts["described"]]


def test_a_reward_may_have_a_bound_where_that_is_asked_for(tmp_path) -> None:
    plan = planned(
        tmp_path,
        **{"align.constraints.reward": {"max": 1.0, "rewarded": True}, "align.inputs.rewards": ["reward"]},
    )

    assert plan.stage("align").inputs["rewards"] == plan.stage("align").inputs["costs"] == ("reward",)


def test_a_gate_on_a_cost_is_planned(tmp_path) -> None:
    plan = planned(tmp_path, **{"align.constraints.gold.min": 0.5, "align.gates.cost/gold.min": 0.5})

    assert plan.stage("align").gates == {"cost/gold": {"min": 0.5}}


NO_TABLE = "constraints must be a table of rewards, each with a max or a min; write constraints.NAME.max = 0.05"
NO_SETTING = "unknown setting; there are max, min, learning_rate, gain, start, cap, rewarded"
TWICE = "leave it out of the stage's rewards, or set constraints.reward.rewarded = true"
IN_VAIN = "name it under inputs.rewards, or leave `rewarded` out"
MISTAKES = [
    ({"constraints": 3}, NO_TABLE),
    ({"constraints.gold": 3}, NO_TABLE),
    ({"constraints.gold.start": 1.0}, "constraints.gold: must have a max or a min"),
    ({"constraints.gold": {"max": 1, "min": 0}}, "constraints.gold: must have a max or a min, not both"),
    ({"constraints.gold": {"max": 1, "start": 2.0, "cap": 1.0}}, "constraints.gold: start 2 is above cap 1"),
    ({"constraints.gold.most": 1}, f"constraints.gold.most: {NO_SETTING}"),
    ({"constraints.gold": {"max": "x"}}, 'constraints.gold.max: must be a number, and is "x"'),
    (
        {"constraints.gol.max": 1},
        "constraints names 'gol', which is no source or earlier stage; did you mean 'gold'?",
    ),
    (
        {"constraints.demos.max": 1},
        "ppo takes Reward as costs, and 'demos' is Demonstrations; of that kind there are gold, reward",
    ),
    (
        {"constraints.scores.max": 1},
        "constraints names 'scores', which comes later; move that stage up in the recipe",
    ),
    (
        {"inputs.costs": ["gold"]},
        "inputs.costs are the rewards that have a bound; write constraints.NAME.max = 0.05 in its place",
    ),
    (
        {"constraints.reward.max": 1, "inputs.rewards": ["reward"]},
        f"constraints.reward: 'reward' is also a reward of the stage, so it would count twice; {TWICE}",
    ),
    (
        {"constraints.gold": {"max": 1, "rewarded": True}},
        f"constraints.gold.rewarded does nothing: 'gold' is no reward of the stage; {IN_VAIN}",
    ),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_a_mistake_in_a_bound(tmp_path, given, message) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, **{f"align.{key}": value for key, value in given.items()})

    assert str(caught.value) == f"--set align.{next(iter(given))}: stage 'align': {message}"


def test_a_method_that_takes_no_constraints_is_refused_with_those_that_do(tmp_path) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, **{"finetune.constraints.gold.max": 1})

    told = "stage 'finetune': sft takes no constraints; methods that do: grpo, ppo, rloo"
    assert str(caught.value) == f"--set finetune.constraints.gold.max: {told}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"scale": "beta"},
            'grpo.scale = "beta" needs scores from 0 to 1, and constraints take costs off them; set another scale',
        ),
        (
            {"best_of": 2},
            "grpo.best_of counts the best of a team, and constraints bound the mean of all; leave one of them out",
        ),
    ],
)
def test_what_bounded_costs_cannot_do_beside_is_refused(tmp_path, given, message) -> None:
    bound = {"align.method": "grpo", "align.constraints.gold.min": 0.5}

    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, **bound, **{f"align.grpo.{key}": value for key, value in given.items()})

    assert str(caught.value).partition(": ")[2] == f"stage 'align': {message}"


def test_a_weight_of_what_is_only_bounded_is_refused(tmp_path) -> None:
    bound = {"gold.weight": 2.0, "align.constraints.gold.min": 0.5}

    assert planned(tmp_path, **bound).stage("align").inputs["costs"] == ("gold",)  # and `scores` takes it as a reward
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, **bound, **{"scores.inputs.rewards": ["reward"]})

    told = "source 'gold': weight does nothing: its mean is bounded, and it is nowhere a reward"
    assert str(caught.value) == f"--set gold.weight: {told}; leave it out, or name 'gold' under inputs.rewards"
