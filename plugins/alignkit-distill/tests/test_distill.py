"""Distillation on a policy's own answers: what every method must keep, its settings, and what it learns."""

import sys

import pytest
from alignkit_distill.distill import DistillSettings, distill
from alignkit_distill.teachers import Hint
from pydantic import ValidationError
from transformers import AutoTokenizer

from alignkit import DataError, Demonstrations, Judge, Prompts, RecipeError
from alignkit.estimate.desk import desk_for
from alignkit.estimate.preflight import preflight
from alignkit.plan.planner import make_plan
from alignkit.testing import RecordingStage, conformance, run_method
from alignkit.testing.examples import write_inputs, write_records, write_tiny_policy

SETTINGS = {
    "updates": 2,
    "batch": 8,
    "minibatches": 2,
    "learning_rate": 1e-2,
    "generation": {"max_new_tokens": 6},
    "precision": "fp32",
    "samples": 2,
}


def with_teacher(folder):
    return {"teacher": write_tiny_policy(folder / "teacher", seed=5)}


TestDistill = conformance(
    distill,
    SETTINGS,
    inputs=with_teacher,
    effects=["lora.rank=4", "loss=total-variation", "on_policy=0.5", "top_k=4", "hint=the food"],
    learns="-teacher_kl",
)


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(distill, tmp_path / "inputs", with_teacher(tmp_path))


def ran(folder, inputs, **settings):
    stage = RecordingStage(folder)
    run_method(distill, {**SETTINGS, **settings}, stage, **inputs)
    return stage


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"beta": 0.0}, marks=pytest.mark.slow),
        pytest.param({"beta": 0.5}, marks=pytest.mark.slow),
        {"loss": "skew"},
        pytest.param({"loss": "total-variation"}, marks=pytest.mark.slow),
        {"target": 0.3},
        pytest.param({"on_policy": 0.5}, marks=pytest.mark.slow),
        {"loss": "policy-gradient", "learning_rate": 3e-3, "batch": 128, "minibatches": 1},
    ],
    ids=str,
)
def test_every_loss_brings_the_policy_nearer_to_its_teacher(tmp_path, inputs, settings) -> None:
    told = ran(tmp_path / "stage", inputs, **{"updates": 4, "batch": 16, **settings}).results["teacher_kl"]

    assert told[1] < told[0]


def test_answers_of_the_teacher_are_learnt_as_they_stand(tmp_path, inputs) -> None:
    stage = ran(tmp_path / "stage", inputs, loss="likelihood", on_policy=0.0, updates=4, batch=16)

    losses = [values["loss/policy_avg"] for _, _, values in stage.logs]
    assert losses[-1] < losses[0]
    assert "length" not in stage.logs[0][2]


def test_demonstrations_may_be_the_given_answers(tmp_path, inputs) -> None:
    rows = [{"prompt": "the", "completion": f" food was {word}"} for word in ("good", "bad", "cold", "warm")] * 4
    demos = write_records(Demonstrations, tmp_path / "demos", rows)

    with_demos = ran(tmp_path / "demos-stage", {**inputs, "demos": demos}, on_policy=0.5)
    without = ran(tmp_path / "stage", inputs, on_policy=0.5)

    assert with_demos.logs[0][2]["length"] == without.logs[0][2]["length"]
    assert with_demos.logs[0][2]["loss/policy_avg"] != without.logs[0][2]["loss/policy_avg"]


def test_the_policy_learns_what_it_says_with_a_hint(tmp_path, inputs) -> None:
    del inputs["teacher"]

    stage = ran(tmp_path / "stage", inputs, hint="not at all: ", updates=4, batch=16, learning_rate=1e-3)

    before, after, _ = stage.results["teacher_kl"]
    assert 0 < after < before


def test_a_column_of_the_prompts_may_be_the_hint(tmp_path, inputs) -> None:
    rows = [{"prompt": f"the {word}", "secret": f"{word} is bad. "} for word in ("food", "room", "day", "rain")]
    asked = write_records(Prompts, tmp_path / "asked", rows, rows)
    parts = tuple(part.model_copy(update={"keep": ("secret",)}) for part in asked.parts)
    inputs |= {"prompts": asked.model_copy(update={"parts": parts})}
    del inputs["teacher"]

    stage = ran(tmp_path / "stage", inputs, hint="they said ", hint_column="secret")

    assert stage.results["teacher_kl"][0] > 0


def test_a_hint_that_leaves_no_room_for_an_answer_is_refused(tmp_path, inputs) -> None:
    with pytest.raises(DataError) as refused:
        ran(tmp_path / "stage", inputs, hint="not at all: " * 100)

    assert refused.value.problem.startswith("the teacher reads at most 256 tokens, and a prompt with its answer has up")
    assert refused.value.remedy == "lower max_length, shorten the hint, or take another teacher"


def test_a_row_without_the_hint_is_refused(tmp_path, inputs) -> None:
    with pytest.raises(DataError) as refused:
        ran(tmp_path / "stage", inputs, hint_column="solution")

    assert refused.value.problem == "a prompt has no text in the column 'solution', which is the teacher's hint"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("how?", "Be kind. how?"),
        (
            [{"role": "user", "content": "how?"}],
            [{"role": "system", "content": "Be kind. "}, {"role": "user", "content": "how?"}],
        ),
        (
            [{"role": "system", "content": "You help."}, {"role": "user", "content": "how?"}],
            [{"role": "system", "content": "Be kind. \n\nYou help."}, {"role": "user", "content": "how?"}],
        ),
    ],
)
def test_a_hint_stands_before_a_text_and_in_the_system_turn_of_a_chat(prompt, expected) -> None:
    assert Hint("Be kind. ").before(prompt, {}) == expected


def test_a_teacher_with_other_tokens_is_refused(tmp_path, inputs) -> None:
    tokenizer = AutoTokenizer.from_pretrained(inputs["teacher"].path)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(inputs["teacher"].path)

    with pytest.raises(DataError) as refused:
        ran(tmp_path / "stage", inputs)

    assert refused.value.problem.startswith("the tokens of 'tiny' are not the policy's: ")
    assert refused.value.remedy == "take a model of the policy's family, which has the same tokenizer"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "policy-gradient", "beta": 0.5}, "loss policy-gradient has no beta; take loss jsd or skew, or leave"),
        ({"gamma": 0.5}, "loss jsd has no gamma; take loss policy-gradient, or leave it out"),
        ({"loss": "skew", "beta": 0.5}, "loss skew has two ends and nothing between them; set beta to 0 or 1"),
        ({"loss": "policy-gradient", "on_policy": 0.5}, "loss policy-gradient learns from the policy's own answers"),
        ({"loss": "likelihood"}, "loss likelihood would teach the policy its own answers; set on_policy to 0"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(settings, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        DistillSettings(**settings)

    assert message in refused.value.errors()[0]["msg"]


def test_an_endpoint_without_its_package_is_refused(tmp_path, inputs, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "alignkit_rlaif.endpoint", None)
    endpoint = Judge(name="far", fingerprint="0", path=tmp_path, address="openai:m", options={})

    with pytest.raises(RecipeError) as refused:
        ran(tmp_path / "stage", {**inputs, "teacher": endpoint})

    assert refused.value.problem == "a teacher at an endpoint needs the package alignkit-rlaif"
    assert refused.value.remedy == 'pip install "alignkit-distill[endpoint]"'


RECIPE = """
[sources]
base = { policy = "builtin:tiny" }
other = { policy = "builtin:tiny" }
prompts = { prompts = "builtin:reviews" }
demos = { demonstrations = "builtin:reviews" }

[stage.distil]
method = "distill"
inputs.policy = "base"
"""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "stage 'distil': distill has no teacher; name one, inputs.teacher"),
        ('inputs.teacher = "other"\ninputs.demos = "demos"', "no answer of inputs.demos would be learnt from; set on"),
        (
            'inputs.teacher = "other"\ninputs.demos = "demos"\ndistill.loss = "likelihood"\ndistill.on_policy = 0',
            "loss likelihood learns inputs.demos as they stand, and asks no teacher; take the method sft",
        ),
        (
            'inputs.demos = "demos"\ndistill.hint = "x"\ndistill.on_policy = 0.5',
            "the teacher is told its hint before prompts alone, and demos are answers; leave out one of the two",
        ),
    ],
)
def test_the_plan_refuses_settings_without_the_inputs_that_they_need(tmp_path, lines: str, message: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE + lines + "\n", "utf-8")

    with pytest.raises(RecipeError) as refused:
        make_plan(recipe, runs=tmp_path / "runs")

    assert message in str(refused.value)


@pytest.mark.slow
def test_a_check_refuses_a_teacher_with_other_tokens_and_counts_one_that_fits(tmp_path) -> None:
    def found_of(teacher):
        recipe = tmp_path / "recipe.toml"
        line = f'other = {{ policy = "{teacher}" }}'
        text = RECIPE.replace('other = { policy = "builtin:tiny" }', line)
        recipe.write_text(f'{text}inputs.teacher = "other"\n', "utf-8")
        desk, _ = desk_for(make_plan(recipe, runs=tmp_path / "runs"), tmp_path / "runs", offline=True)
        return preflight(desk)

    same, other = found_of("builtin:tiny"), found_of(write_tiny_policy(tmp_path / "teacher").path)

    assert same.stages[0]["method"] == "distill"
    assert ["the tokens of 'other' are not the policy's: " in str(one) for one in other.problems] == [True]
