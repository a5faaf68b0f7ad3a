"""Methods of other papers and packages, as signatures only: recipes wire them without a word more than they need."""

from pathlib import Path

import pytest
from planning import Desk, make_desk, write_rows

FOREIGN = '''
from collections.abc import Sequence

from alignkit import (
    Answer, Demonstrations, Judge, Policy, Preferences, Prompts, Question, Ratings, Reward, Settings, Stage, hookimpl,
    judge, method, reward,
)


class Beta(Settings):
    beta: float = 0.1


class Many(Settings):
    n: int = 4


class Exact(Settings):
    points: float = 1.0


@method("odds")
def odds(settings: Beta, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """ORPO."""


@method("prospect")
def prospect(settings: Beta, stage: Stage, *, policy: Policy, answers: Ratings | Preferences) -> Policy:
    """KTO."""


@method("best-of")
def best_of(
    settings: Many, stage: Stage, *, policy: Policy, prompts: Prompts, rewards: tuple[Reward, ...]
) -> Demonstrations:
    """Best of n."""


@method("opinion")
def opinion(settings: Many, stage: Stage, *, policy: Policy, prompts: Prompts, judge: Judge) -> Preferences:
    """RLAIF."""


@method("chosen")
def chosen(
    settings: Many, stage: Stage, *, policy: Policy, prompts: Prompts, rewards: tuple[Reward | Judge, ...]
) -> Policy:
    """Online DPO."""


@reward("arithmetic")
def arithmetic(answers: Sequence[Answer], settings: Exact) -> list[float]:
    """A verifiable reward."""
    return [settings.points * (answer.text.strip() == str(answer.row["answer"])) for answer in answers]


@hookimpl
def alignkit_methods():
    return [odds, prospect, best_of, opinion, chosen]


@judge("longer")
def longer(questions: Sequence[Question], settings: Exact) -> list[float]:
    """A rule."""
    return [float(len(question.first.text) > len(question.second.text)) for question in questions]


@hookimpl
def alignkit_rewards():
    return [arithmetic]


@hookimpl
def alignkit_judges():
    return [longer]
'''

SOURCES = """
[sources]
base = { policy = "model" }
sums = { prompts = "sums.jsonl", keep = ["answer"] }
right = { reward = "function:arithmetic", settings = { points = 2 }, weight = 0.5 }
"""
JUDGE = '[sources.critic]\njudge = "rule:longer"\n'


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    desk = make_desk(tmp_path)
    (tmp_path / "fakes.py").write_text(FOREIGN, "utf-8")
    write_rows(tmp_path / "sums.jsonl", [{"prompt": "2+2?", "answer": 4}])
    write_rows(tmp_path / "rated.jsonl", [{"prompt": "2+2?", "completion": "4", "label": True}])
    return desk


def wires(desk: Desk, text: str, stage: str) -> dict[str, tuple[str, ...]]:
    return dict(desk.plan(text).stage(stage).inputs)


def test_best_of_n_makes_demonstrations_for_what_follows(desk: Desk) -> None:
    text = f"{SOURCES}[stage.best]\nmethod = 'best-of'\n[stage.finetune]\nmethod = 'sft'\n"

    assert wires(desk, text, "best") == {"policy": ("base",), "prompts": ("sums",), "rewards": ("right",)}
    assert wires(desk, text, "finetune") == {"policy": ("base",), "demos": ("best",)}


def test_a_judge_makes_preferences_for_any_method_that_takes_them(desk: Desk) -> None:
    text = f"{SOURCES}{JUDGE}[stage.judged]\nmethod = 'opinion'\n[stage.align]\nmethod = 'METHOD'\n"

    assert wires(desk, text.replace("METHOD", "odds"), "judged")["judge"] == ("critic",)
    assert wires(desk, text.replace("METHOD", "odds"), "align") == {"policy": ("base",), "pairs": ("judged",)}
    assert wires(desk, text.replace("METHOD", "prospect"), "align") == {"policy": ("base",), "answers": ("judged",)}


def test_what_chooses_may_be_rewards_or_judges(desk: Desk) -> None:
    text = f"{SOURCES}[stage.align]\nmethod = 'chosen'\n"
    only = text.replace('right = { reward = "function:arithmetic", settings = { points = 2 }, weight = 0.5 }\n', JUDGE)
    both = f"{text}inputs.rewards = ['critic', 'right']\n{JUDGE}"

    assert wires(desk, text, "align")["rewards"] == ("right",)
    assert wires(desk, only, "align")["rewards"] == ("critic",)
    assert wires(desk, both, "align")["rewards"] == ("critic", "right")


def test_a_union_takes_either_kind_of_source(desk: Desk) -> None:
    text = f"{SOURCES}[sources.rated]\nratings = 'rated.jsonl'\n[stage.align]\nmethod = 'prospect'\n"

    assert wires(desk, text, "align") == {"policy": ("base",), "answers": ("rated",)}


def test_a_union_does_not_choose_between_two_sources(desk: Desk) -> None:
    text = (
        f"{SOURCES}[sources.rated]\nratings = 'rated.jsonl'\n[sources.pairs]\npreferences = 'pairs.jsonl'\n"
        "[stage.align]\nmethod = 'prospect'\n"
    )

    assert desk.problems(text) == [
        "r.toml:10: stage 'align': prospect needs Ratings or Preferences as answers, and several sources are that: "
        'rated, pairs; name it: inputs.answers = "rated"'
    ]


def test_a_judge_is_never_taken_for_a_policy(desk: Desk) -> None:
    text = f"{JUDGE}[sources.pairs]\npreferences = 'pairs.jsonl'\n[stage.align]\nmethod = 'odds'\n"

    assert desk.problems(text)[0].startswith("r.toml:5: stage 'align': odds needs Policy as policy, and nothing ")


def test_a_verifiable_reward_steers_a_built_in_method(desk: Desk) -> None:
    plan = desk.plan(f"{SOURCES}[stage.align]\nmethod = 'ppo'\n")

    assert plan.stage("align").inputs["rewards"] == ("right",)
    assert plan.sources["right"].artifact().model_dump(include={"function", "settings", "weight"}) == {
        "function": "arithmetic",
        "settings": {"points": 2},
        "weight": 0.5,
    }


def test_settings_of_a_reward_are_checked(desk: Desk) -> None:
    text = f"{SOURCES.replace('points', 'pionts')}[stage.best]\nmethod = 'best-of'\n"

    assert desk.problems(text) == ["r.toml:5: source 'right': settings.pionts: unknown setting; did you mean 'points'?"]


def test_a_kept_column_must_be_there(desk: Desk) -> None:
    kept = SOURCES.replace("answer", "answr")
    text = f"{kept}[stage.best]\nmethod = 'best-of'\n"

    assert desk.problems(text) == [
        "FOLDER/sums.jsonl:1: sources.sums.keep names 'answr', which the row lacks; it has prompt, answer; "
        "did you mean 'answer'?"
    ]
