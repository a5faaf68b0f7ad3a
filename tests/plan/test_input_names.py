"""Settings that name inputs of their stage: slips are told before anything runs, and a round has names of its own."""

from pathlib import Path

import pytest

from alignkit.errors import RecipeError
from alignkit.plan.planner import make_plan


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("align.ppo.reward.held_out", ["rewrad"], "'rewrad' is none of the stage's rewards; did you mean 'reward'?"),
        ("scores.evaluate.deciding", ["gold", "x"], "'x' is none of the stage's rewards; its rewards are gold"),
        (
            "scores.evaluate.ceiling.start",
            "fin",
            "'fin' is none of the stage's policies; its policies are pretrain, finetune, align",
        ),
    ],
)
def test_a_name_that_the_stage_has_not_is_refused(tmp_path: Path, key: str, value: object, told: str) -> None:
    stage, _, setting = key.partition(".")

    with pytest.raises(RecipeError) as caught:
        make_plan("rlhf.toml", set={key: value}, runs=tmp_path)

    assert str(caught.value).endswith(f"stage {stage!r}: {setting}: {told}")


def test_a_round_has_names_of_its_own(tmp_path: Path) -> None:
    said = {
        "align.inputs.rewards": ["reward", "gold"],
        "align.ppo.reward.held_out": ["reward"],
        "scores.evaluate.ceiling": {"samples": 16, "start": "align"},
        "scores.inputs.policies": ["finetune", "align-1", "align-2", "align"],
    }
    plan = make_plan("iterated-rlhf.toml", set=said, runs=tmp_path)

    held_out = [plan.stage(f"align-{number}").settings.reward.held_out for number in (1, 2, 3)]
    assert held_out == [("reward-1",), ("reward-2",), ("reward-3",)]
    assert plan.stage("scores").settings.ceiling.start == "align-3"  # as everywhere: the last round
    assert plan.stage("scores").settings.ceiling.samples == 16
