"""Ensembles of rewards: what a recipe may combine, and what is refused before anything runs."""

import pytest

from alignkit.errors import RecipeError
from alignkit.plan.planner import make_plan

COMBINED = {"align.ppo.reward.combine": "conservative"}


def refusal(tmp_path, **given: object) -> str:
    with pytest.raises(RecipeError) as caught:
        make_plan("rlhf.toml", set={**COMBINED, **given}, runs=tmp_path)
    return str(caught.value)


def test_heads_of_a_reward_model_of_the_recipe_are_combined(tmp_path) -> None:
    plan = make_plan("rlhf.toml", set={**COMBINED, "reward.reward.heads": 3}, runs=tmp_path)

    assert plan.stage("align").settings.reward.combine == "conservative"


def test_one_head_is_refused(tmp_path) -> None:
    assert refusal(tmp_path).endswith(
        "stage 'align': ppo.reward.combine = 'conservative' does nothing: 'reward' has one head; "
        "set reward's reward.heads = 3, name several reward models, or leave combine out"
    )


def test_what_is_no_learned_reward_is_refused(tmp_path) -> None:
    assert refusal(tmp_path, **{"align.inputs.rewards": ["gold"]}).endswith(
        "stage 'align': ppo.reward.combine = 'conservative' does nothing: no reward of the stage is a model whose "
        "weight is above 0; name a reward model under inputs.rewards, or leave combine out"
    )


def test_at_its_default_nothing_of_it_changes_a_fingerprint(tmp_path) -> None:
    plain, said, heads = (
        make_plan("rlhf.toml", set=given, runs=tmp_path)
        for given in ({}, {"align.ppo.reward.combine": "mean"}, {"reward.reward.heads": 3})
    )

    assert [stage.fingerprint for stage in said.stages] == [stage.fingerprint for stage in plain.stages]
    assert heads.stage("reward").fingerprint != plain.stage("reward").fingerprint


def test_not_all_rewards_are_held_out(tmp_path) -> None:
    said = {"align.inputs.rewards": ["reward", "gold"], "align.ppo.reward.held_out": ["reward", "gold"]}

    with pytest.raises(RecipeError) as caught:
        make_plan("rlhf.toml", set=said, runs=tmp_path)

    assert str(caught.value).endswith(
        "stage 'align': ppo.reward.held_out leaves nothing to learn from; name further rewards under inputs.rewards"
    )


def test_what_has_no_weight_need_not_be_held_out(tmp_path) -> None:
    said = {
        "align.inputs.rewards": ["reward", "gold"],
        "align.ppo.reward.held_out": ["gold"],
        "gold.weight": 0,
    }

    with pytest.raises(RecipeError) as caught:
        make_plan("rlhf.toml", set=said, runs=tmp_path)

    assert str(caught.value).endswith(
        "stage 'align': ppo.reward.held_out does nothing for 'gold': its weight is 0; leave it out of one of them"
    )


def test_a_model_that_is_held_out_is_no_member(tmp_path) -> None:
    said = {"align.inputs.rewards": ["reward", "gold"], "align.ppo.reward.held_out": ["reward"]}

    assert "no reward of the stage is a model whose weight is above 0" in refusal(tmp_path, **said)
