"""Answers that do not end: told in the first update, with a remedy by which the run learns."""

import os
from pathlib import Path
from statistics import fmean

import pytest

from alignkit.contract.kinds import Demonstrations, FunctionReward, Policy, Prompts
from alignkit.data.records import Part
from alignkit.errors import StageError
from alignkit.methods.grpo import grpo
from alignkit.methods.sft import sft
from alignkit.testing import RecordingStage, run_method, write_inputs
from alignkit.training.configs import taught_by, taught_length
from alignkit.training.encoding import NOT_LEARNT, LabelledTokens
from alignkit.training.lengths import answer_limit, learnt_runs
from alignkit.training.models import load_policy

ONLINE = {"updates": 6, "batch": 16, "answers": 4, "minibatches": 1, "learning_rate": 1e-3, "measured": 8, "samples": 1}


def run(stage: RecordingStage, folder: Path, policy: Policy | None = None, **generation: object) -> Policy:
    inputs = write_inputs(grpo, folder)
    if policy:
        inputs["policy"] = policy
    made: Policy = run_method(grpo, {**ONLINE, "generation": generation}, stage, **inputs)
    return made


@pytest.fixture
def stage(tmp_path: Path) -> RecordingStage:
    return RecordingStage(tmp_path / "stage")


def test_answers_that_are_cut_and_paid_alike_end_the_stage_with_what_to_do(stage, tmp_path) -> None:
    with pytest.raises(StageError) as caught:
        run(stage, tmp_path, max_new_tokens=2)

    problem = "16 of 16 answers were cut at 2 tokens and score -1 instead of by the reward"
    remedy = (
        'set generation.unfinished = "subtract" and generation.penalty = 0, so that the reward counts, or raise '
        "generation.max_new_tokens"
    )
    assert stage.warnings[0] == (f"update 1: {problem}", remedy)
    assert str(caught.value) == (
        f"all answers of each of 4 updates score the same (-1), so nothing is learnt: {problem}; {remedy}"
    )
    assert len(stage.logs) == 4


def test_with_the_remedy_the_run_learns(tmp_path) -> None:
    stage = RecordingStage(tmp_path / "stage", plugin_files=[tmp_path / "vowels.py"])
    inputs = write_inputs(grpo, tmp_path) | {"rewards": (vowels(tmp_path),)}
    longer = {"updates": 60, "batch": 32, "answers": 8, "learning_rate": 1e-2}
    generation = {"max_new_tokens": 4, "unfinished": "subtract", "penalty": 0.0}

    run_method(grpo, {**ONLINE, **longer, "kl": {"coef": 0.0}, "generation": generation}, stage, **inputs)

    scores = [values["objective/scores"] for _, _, values in stage.logs]
    assert fmean(scores[-10:]) > fmean(scores[:10]) + 1.0
    assert [problem for problem, _ in stage.warnings if not problem.startswith("reward was measured on 8 rows")] == []


def test_a_stage_with_patience_0_goes_on(stage, tmp_path) -> None:
    inputs = write_inputs(grpo, tmp_path)

    made = run_method(grpo, {**ONLINE, "patience": 0, "generation": {"max_new_tokens": 2}}, stage, **inputs)

    assert made.path.is_dir()
    assert len(stage.logs) == ONLINE["updates"]


def demos(folder: Path, count: int, words: int) -> Demonstrations:
    file = folder / "demos.jsonl"
    row = '{{"prompt": "how was the food {}?", "completion": " it was good{}"}}\n'
    file.write_text("".join(row.format(n, " and good" * words) for n in range(count)))
    return Demonstrations(
        name="demos", fingerprint="0", path=file, parts=(Part(name="demos", paths=(file,), held_out=0.2),)
    )


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_policy_that_is_taught_answers_knows_how_long_they_are(stage, tmp_path, lora) -> None:
    policy = write_inputs(sft, tmp_path)["policy"]

    made = run_method(sft, {"batch": 8, "lora": lora}, stage, policy=policy, demos=demos(tmp_path, 30, words=10))

    model, _ = load_policy(made)
    assert taught_by(policy.path) is None
    assert taught_length(model) == taught_by(made.path) == 32


def test_an_answer_may_be_as_long_as_the_policy_was_taught_where_nothing_else_is_said(stage, tmp_path) -> None:
    policy = write_inputs(sft, tmp_path)["policy"]
    taught = run_method(sft, {"batch": 8}, stage, policy=policy, demos=demos(tmp_path, 30, words=1))
    again = RecordingStage(tmp_path / "again")

    run(again, tmp_path, policy=taught, unfinished="subtract", penalty=0.0)

    assert taught_by(taught.path) == 16
    assert max(values["length"] for _, _, values in again.logs) <= 16


def test_sft_tells_where_no_answer_that_it_shows_ends(stage, tmp_path) -> None:
    policy = write_inputs(sft, tmp_path)["policy"]

    run_method(sft, {"batch": 8, "epochs": 1, "learning_rate": 1e-9}, stage, policy=policy,
               demos=demos(tmp_path, 30, words=1))  # fmt: skip

    assert stage.warnings[-1] == (
        "none of 4 answers that are shown ends by itself within 16 tokens",
        "train for more epochs; `alignkit check` shows which token is learnt as an answer's end",
    )


@pytest.mark.parametrize(("lengths", "limit"), [([], None), ([3], 16), ([10] * 95 + [900] * 5, 16), ([100], 128)])
def test_a_limit_covers_most_answers_and_some_more(lengths, limit) -> None:
    assert answer_limit(lengths) == limit


def test_answers_are_runs_of_learnt_tokens() -> None:
    rows = [LabelledTokens([1] * 6, [NOT_LEARNT, 1, 1, NOT_LEARNT, 1, NOT_LEARNT]), LabelledTokens([1], [NOT_LEARNT])]

    assert list(learnt_runs(rows)) == [2, 1]


@pytest.mark.real
def test_a_real_model_that_ends_no_answer_learns_with_the_remedy(tmp_path) -> None:
    stage = RecordingStage(tmp_path / "stage", plugin_files=[tmp_path / "vowels.py"])
    data = Path(os.environ["ALIGNKIT_DATA"])
    stories = Policy(name="stories", fingerprint="0", path=data / "models" / "stories260K")
    inputs = {"policy": stories, "prompts": prompts_in(data), "rewards": (vowels(tmp_path),)}
    settings = {"updates": 40, "batch": 64, "answers": 8, "learning_rate": 3e-4}

    with pytest.raises(StageError) as caught:
        run_method(grpo, {**settings, "generation": {"max_new_tokens": 24}}, stage, **inputs)

    assert stage.warnings[0][0].startswith("update 1: 64 of 64 answers were cut at 24 tokens")
    assert 'set generation.unfinished = "subtract" and generation.penalty = 0' in str(caught.value)
    again = RecordingStage(tmp_path / "again", plugin_files=[tmp_path / "vowels.py"])
    remedy = {"max_new_tokens": 24, "unfinished": "subtract", "penalty": 0}
    run_method(grpo, {**settings, "generation": remedy}, again, **inputs)
    before, after, _ = again.results["reward"]
    assert after > before + 1.0


def prompts_in(data: Path) -> Prompts:
    file = data / "prompts_sentiment.jsonl.gz"
    part = Part(name="asks", paths=(file,), rows=800, held_out=0.05)
    return Prompts(name="asks", fingerprint="0", path=file, parts=(part,))


VOWELS = '''from alignkit import Settings, hookimpl, reward


class VowelsSettings(Settings):
    """It has none."""


@reward("vowels")
def vowels(answers, settings: VowelsSettings) -> list[float]:
    """Pay for vowels, by their share."""
    return [10 * sum(sign in "aeiou" for sign in one.text) / max(1, len(one.text)) for one in answers]


@hookimpl
def alignkit_rewards():
    return [vowels]
'''


def vowels(folder: Path) -> FunctionReward:
    """Give a reward that a small model learns quickly."""
    (folder / "vowels.py").write_text(VOWELS)
    return FunctionReward(name="vowels", fingerprint="0", path=folder, function="vowels")
