"""Methods on a policy's own answers beside another one: what every method must keep, judges, and who answers."""

import pytest
from alignkit_online import nash_md, online_dpo, remax, xpo

from alignkit import Judge
from alignkit.testing import RecordingStage, conformance, run_method, same_weights, write_inputs

SETTINGS = {
    "learning_rate": 1e-3,
    "updates": 2,
    "batch": 8,
    "epochs": 2,
    "minibatches": 2,
    "precision": "fp32",
    "measured": 4,
    "generation": {"max_new_tokens": 5, "unfinished": "subtract", "penalty": 0.0},
}
slow = pytest.mark.slow

TestOnlineDPO = conformance(
    online_dpo,
    SETTINGS | {"answers": 4},
    effects=["kl.coef=1.0", "loss=ipo", "loss=hinge", "loss=sppo", "labels=soft", "lora.rank=4"],
    without_effect=["mixture"],  # two small updates leave the mixture where the policy is; a test below moves it
)
TestXPO = slow(conformance(xpo, SETTINGS, effects=["kl.coef=1.0", "loss=ipo", "labels=soft", "lora.rank=4"]))
TestNashMD = slow(
    conformance(nash_md, SETTINGS, effects=["kl.coef=1.0", "clip=0.001", "lora.rank=4"], without_effect=["mixture"])
)
TestReMax = slow(conformance(remax, SETTINGS, effects=["kl.coef=1.0", "clip=0.001", "answers=2", "lora.rank=4"]))


def critic(folder, rule: str) -> Judge:
    return Judge(name="critic", fingerprint="0", path=folder, address=f"rule:{rule}")


RULES = """
from alignkit import Settings, hookimpl, judge


class NoSettings(Settings):
    pass


@judge("shorter")
def shorter(questions, settings: NoSettings) -> list[float]:
    "Prefer the shorter answer."
    lengths = [(len(one.text), len(other.text)) for one, other, _ in questions]
    return [0.5 + 0.5 * ((a < b) - (a > b)) for a, b in lengths]


@judge("first")
def first(questions, settings: NoSettings) -> list[float]:
    "Prefer whatever stands first."
    return [1.0 for _ in questions]


@hookimpl
def alignkit_judges():
    return [shorter, first]
"""


@pytest.fixture
def judged(tmp_path):
    """Run a method with a judge that is a rule, and give its stage and what it made."""
    (tmp_path / "rules.py").write_text(RULES, "utf-8")

    def run(method, rule, settings, *more):
        inputs = write_inputs(method, tmp_path / f"{method.name}-{rule}")
        inputs["rewards"] = (critic(tmp_path, rule), *more)
        stage = RecordingStage(tmp_path / f"stage-{method.name}-{rule}", plugin_files=[tmp_path / "rules.py"])
        return stage, run_method(method, SETTINGS | settings, stage, **inputs), inputs

    return run


@pytest.mark.parametrize("method", [online_dpo, *(pytest.param(method, marks=slow) for method in (xpo, nash_md))])
def test_a_judge_is_enough(judged, method) -> None:
    stage, _, _ = judged(method, "shorter", {"updates": 12, "batch": 32, "learning_rate": 1e-2, "measured": 8})

    assert stage.results.keys() == {"win_rate", "kl", "length", "eos_rate"}
    _, won, floor = stage.results["win_rate"]
    assert floor == 0.5
    assert won > 0.5
    assert {"prompt", "before", "after", "better"} == stage.samples[0].keys()


def test_a_judge_that_likes_a_place_has_no_opinion(judged) -> None:
    stage, made, inputs = judged(online_dpo, "first", {"patience": 0})

    assert same_weights(made, inputs["policy"])
    assert stage.results["win_rate"] == (None, 0.5, 0.5)
    assert [figures["val/groups_without_signal"] for _, _, figures in stage.logs] == [1.0, 1.0]


def test_rewards_beside_a_judge_are_measured(judged, tmp_path) -> None:
    reward = write_inputs(online_dpo, tmp_path / "reward")["rewards"][0]

    alone, made, _ = judged(online_dpo, "shorter", {})
    beside, also, _ = judged(online_dpo, "shorter", {}, reward)

    assert same_weights(made, also)
    assert beside.results.keys() - alone.results.keys() == {"reward"}


def figures_of(method, tmp_path, **settings) -> dict[str, float]:
    """Return the metrics of the last update."""
    stage = RecordingStage(tmp_path / "stage")
    run_method(method, SETTINGS | settings, stage, **write_inputs(method, tmp_path / "inputs"))
    return stage.logs[-1][2]


@pytest.mark.parametrize("method", [online_dpo, pytest.param(nash_md, marks=slow)])
def test_a_mixture_answers_otherwise_than_the_policy(method, tmp_path) -> None:
    moving = {"updates": 4, "learning_rate": 3e-2, "epochs": 4}
    alone, mixed = (
        figures_of(method, tmp_path / str(share), mixture=share, **moving)["policy/grad_norm"] for share in (0.0, 0.9)
    )

    assert alone != mixed


def test_before_anything_is_learnt_the_loss_is_ln_2(tmp_path) -> None:
    figures = figures_of(online_dpo, tmp_path, updates=1, epochs=1, minibatches=1)

    assert figures["loss/policy_avg"] == pytest.approx(0.693147, abs=1e-6)
    assert figures["policy/margin_avg"] == pytest.approx(0, abs=1e-6)


def test_the_policys_own_answers_alone_say_how_far_it_is(tmp_path) -> None:
    """Answers of the start, which have a negative estimate, are no part of the figures."""
    figures = figures_of(xpo, tmp_path, updates=1, epochs=1, minibatches=1)

    assert figures["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert figures["episode"] == 8


def test_without_a_start_in_any_part_none_is_opened(tmp_path) -> None:
    stage = RecordingStage(tmp_path / "stage")
    settings = SETTINGS | {"kl": {"coef": 0.0}, "mixture": 0.0}

    run_method(nash_md, settings, stage, **write_inputs(nash_md, tmp_path / "inputs"))

    assert "kl" not in stage.results
