"""A reward model with several heads, from pairs to a policy that learns by it."""

import json

import pytest

from alignkit.contract.events import Metrics
from alignkit.contract.kinds import Preferences, Prompts
from alignkit.contract.settings import LoRA
from alignkit.errors import RecipeError
from alignkit.methods.ppo import PPOSettings, ppo
from alignkit.methods.reward import RewardSettings, reward
from alignkit.methods.rloo import RLOOSettings, rloo
from alignkit.testing import RecordingStage

ONLINE = {"updates": 2, "batch": 8, "minibatches": 2, "epochs": 1, "generation": {"max_new_tokens": 6}}


def pairs(count):
    return [
        {
            "prompt": f"how was the food {i % 9}?",
            "chosen": " it was good",
            "rejected": " it was bad" + " again" * (i % 2),
        }
        for i in range(count)
    ]


def logged(stage):
    return [event.values for event in stage.events if isinstance(event, Metrics)]


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_each_head_learns_which_answer_is_preferred(policy, records, stage, lora) -> None:
    settings = RewardSettings(learning_rate=3e-3, batch=8, epochs=2, samples=1, heads=3, lora=lora)

    made = reward(settings, stage, policy=policy, pairs=records(Preferences, pairs(100), pairs(40)))

    facts = json.loads((made.path / "reward.json").read_text())
    assert stage.results["accuracy"][1] == 1.0
    assert [stage.results[f"accuracy of head {head}"][1] for head in (1, 2, 3)] == [1.0, 1.0, 1.0]
    assert 0 < stage.results["spread of heads"][1] < 1
    assert facts["mean"] == pytest.approx(sum(facts["heads"]) / 3)
    assert len(set(facts["heads"])) == 3


def test_one_head_tells_nothing_of_heads(policy, records, stage) -> None:
    reward(RewardSettings(batch=8, samples=0), stage, policy=policy, pairs=records(Preferences, pairs(8), pairs(8)))

    assert list(stage.results) == ["accuracy"]


@pytest.fixture
def headed(policy, records, tmp_path):
    settings = RewardSettings(learning_rate=3e-3, batch=8, samples=0, heads=2)
    data = records(Preferences, pairs(16), pairs(8))
    made = reward(settings, RecordingStage(tmp_path / "reward"), policy=policy, pairs=data)
    return made.model_copy(update={"name": "taste"})


@pytest.mark.parametrize(("method", "kind"), [(ppo, PPOSettings), (rloo, RLOOSettings)], ids=["ppo", "rloo"])
def test_what_is_learnt_from_lies_below_the_mean_by_the_doubt(method, kind, policy, headed, records, stage) -> None:
    grouped = {"answers": 4} if kind is RLOOSettings else {}
    shape = {"combine": "conservative", "spread": 2.0, "held_out": ["aside"]}
    settings = kind.model_validate(ONLINE | grouped | {"reward": shape} | {"generation": {
        "max_new_tokens": 6, "unfinished": "subtract", "penalty": 0}})  # fmt: skip
    aside = headed.model_copy(update={"name": "aside"})
    asked = records(Prompts, [{"prompt": f"day {i}?"} for i in range(8)], [])

    method(settings, stage, policy=policy, rewards=(headed, aside), prompts=asked)

    for figures in logged(stage):
        mean, spread = figures["scores/taste"], figures["objective/spread"]
        assert figures["objective/scores"] == pytest.approx(mean - 2 * spread, abs=1e-5)
        assert (figures["scores/taste/1"] + figures["scores/taste/2"]) / 2 == pytest.approx(mean, abs=1e-5)
        assert figures["held_out/aside"] == figures["scores/aside"] == pytest.approx(mean, abs=1e-5)
        assert spread > 0
    assert len(logged(stage)) == 2


def test_one_head_is_refused_before_the_first_update(policy, reward_model, records, stage) -> None:
    settings = PPOSettings.model_validate(ONLINE | {"reward": {"combine": "worst"}})

    with pytest.raises(RecipeError, match="the stage learns from one head of one reward model"):
        ppo(settings, stage, policy=policy, rewards=(reward_model,), prompts=records(Prompts, [{"prompt": "a"}], []))

    assert logged(stage) == []
