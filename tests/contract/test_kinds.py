"""Kinds of a package: rows whose columns hold more than texts, and rewards that say how they are opened."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit import Columns, DataError, RecipeError, Records, Text, run_recipe
from alignkit.contract.kinds import Artifact, Policy, RewardModel, can_be_opened
from alignkit.plan.planner import make_plan
from alignkit.testing import RecordingStage


class StepLabels(Records):
    """Steps of an answer, and whether each is right."""

    columns = (Columns(prompt=str, steps=list[str], labels=list[int], share=float),)


ROW: dict[str, Any] = {"prompt": "2 + 2?", "steps": ["it is", "4"], "labels": [1, 1], "share": 0.5, "held_out": False}


def test_columns_hold_what_the_kind_says(tmp_path: Path) -> None:
    made = RecordingStage(tmp_path).save_rows(StepLabels, [ROW])

    assert list(made.train()) == [{name: value for name, value in ROW.items() if name != "held_out"}]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"labels": [1, "a"]}, "'labels' must be list[int], and is [1, 'a']"),
        ({"labels": "1"}, "'labels' must be list[int], and is '1'"),
        ({"share": "half"}, "'share' must be float, and is 'half'"),
        ({"prompt": 3}, "'prompt' must be text, and is 3"),
    ],
)
def test_rows_that_hold_something_else_are_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError) as refusal:
        RecordingStage(tmp_path).save_rows(StepLabels, [ROW | change])

    assert refusal.value.where == "row 1 of what it made"
    assert refusal.value.problem == problem


def test_rows_without_any_text_of_ours_are_on_different_sides(tmp_path: Path) -> None:
    class Numbers(Records):
        columns = (Columns(values=list[int]),)

    made = RecordingStage(tmp_path).save_rows(Numbers, ({"values": [number]} for number in range(200)))

    assert 0 < len(list(made.held_out())) < 40


PLUGIN = '''
from alignkit import Answer, Policy, Prompts, Reward, Settings, Stage, Text, hookimpl, method


class None_(Settings):
    pass


class ProcessReward(Reward):
    """A reward of a kind of its own."""
{open}

@method("process")
def process(settings: None_, stage: Stage) -> ProcessReward:
    """Make the reward."""
    stage.save_rows(Text, [{"text": "x"}])
    return ProcessReward(name=stage.name, fingerprint="0", path=stage.artifact)


@method("use")
def use(settings: None_, stage: Stage, *, rewards: tuple[Reward, ...]) -> Text:
    """Use a reward."""
    scores = stage.open_reward(rewards[0])([Answer("a", "bcd", True)])
    return stage.save_rows(Text, [{"text": str(scores[0])}])


@method("own")
def own(settings: None_, stage: Stage, *, reward: ProcessReward) -> Text:
    """Use a reward of this kind alone."""
    return stage.save_rows(Text, [{"text": "fine"}])


@hookimpl
def alignkit_methods():
    return [process, use, own]
'''
OPEN = """
    def open(self, cache):
        return lambda answers: [float(len(answer.text)) for answer in answers]
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    file = tmp_path / "r.toml"
    file.write_text("[stage.process]\n[stage.use]\n")
    return file


def test_a_reward_that_nobody_can_open_is_refused_by_the_plan(recipe: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.replace("{open}", ""))

    with pytest.raises(RecipeError) as refusal:
        make_plan(recipe, plugins=[plugin])

    assert refusal.value.problem == (
        "stage 'use': use takes 'process' as rewards, and a ProcessReward cannot score answers"
    )
    assert refusal.value.remedy == "its package must say how it is opened (ProcessReward.open)"


def test_a_method_that_takes_that_kind_alone_may_have_it(recipe: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.replace("{open}", ""))
    recipe.write_text("[stage.process]\n[stage.own]\n")

    assert make_plan(recipe, plugins=[plugin]).stage("own").inputs == {"reward": ("process",)}


def test_a_reward_that_says_how_it_is_opened_scores(recipe: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.replace("{open}", OPEN))

    run = run_recipe(recipe, plugins=[plugin], runs=tmp_path / "runs", inline=True)

    made = run.artifact("use")
    assert isinstance(made, Text)
    assert [row["text"] for row in (*made.train(), *made.held_out())] == ["3.0"]


STEPS = """
from alignkit import Columns, Records, Settings, Stage, Text, hookimpl, method


class Nothing(Settings):
    pass


class StepLabels(Records):
    \"\"\"Steps of an answer, and whether each is right.\"\"\"

    columns = (Columns(prompt=str, steps=list[str], labels=list[int]),)


@method("count")
def count(settings: Nothing, stage: Stage, *, steps: StepLabels) -> Text:
    \"\"\"Count steps.\"\"\"
    return stage.save_rows(Text, [{"text": str(sum(row["labels"]))} for row in steps.train()])


@hookimpl
def alignkit_methods():
    return [count]
"""


def test_rows_of_a_packages_kind_are_a_source(recipe: Path, tmp_path: Path) -> None:
    plugin, rows = tmp_path / "steps.py", tmp_path / "steps.jsonl"
    plugin.write_text(STEPS)
    lines = [{"question": f"{n} + {n}?", "steps": [str(2 * n)], "labels": [1, n]} for n in range(3)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe.write_text(
        "[sources]\n"
        'labels = { step-labels = "steps.jsonl", columns.prompt = "question", held_out = 0.0 }\n'
        "[stage.count]\n"
    )

    run = run_recipe(recipe, plugins=[plugin], runs=tmp_path / "runs", inline=True)
    made = run.artifact("count")
    assert isinstance(made, Text)
    assert sorted(row["text"] for row in (*made.train(), *made.held_out())) == ["1", "2", "3"]

    rows.write_text(rows.read_text().replace("[1, 2]", '[1, "two"]'))
    with pytest.raises(DataError) as refusal:
        make_plan(recipe, plugins=[plugin])
    assert refusal.value.problem == "'labels' must be list[int], and is [1, 'two']"
    assert refusal.value.where == f"{rows}:3"


def test_what_is_no_kind_of_any_package_is_none(recipe: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "steps.py"
    plugin.write_text(STEPS)
    recipe.write_text('[sources]\nlabels = { step-label = "steps.jsonl" }\n[stage.count]\n')

    with pytest.raises(RecipeError) as refusal:
        make_plan(recipe, plugins=[plugin])

    assert refusal.value.problem == "source 'labels' says no kind (it has step-label)"
    assert refusal.value.remedy == "did you mean 'step-labels'?"


@pytest.mark.parametrize(("kind", "can"), [(RewardModel, True), (Policy, False)])
def test_our_own_rewards_can_be_opened(kind: type[Artifact], can: bool) -> None:
    assert can_be_opened(kind) is can
