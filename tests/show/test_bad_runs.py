"""Runs that are bad on purpose: the first sentence of the verdict says so. Real models, minutes each: `make slow`."""

import json
from pathlib import Path
from random import Random

import pytest

from alignkit import run_recipe
from alignkit.show.verdict import verdict_on
from alignkit.store.runs import open_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

REWARDS = '''
from alignkit import Settings, hookimpl, reward


class Plain(Settings):
    """No settings."""


@reward("words")
def words(answers, settings: Plain) -> list[float]:
    """Pay for every word, up to 60."""
    return [min(len(one.text.split()), 60) / 20 for one in answers]


@reward("praise")
def praise(answers, settings: Plain) -> list[float]:
    """Pay for each word of praise."""
    return [sum(one.text.count(word) for word in ("great", "lovely", "superb", "wonderful")) - 1.0 for one in answers]


@hookimpl
def alignkit_rewards():
    return [words, praise]
'''

ALIGN = """
name = "{name}"
seed = 3
[sources]
start   = {{ policy  = "{start}" }}
prompts = {{ prompts = "builtin:reviews" }}
paid    = {{ reward  = "function:{reward}" }}
[stage.align]
method = "ppo"
ppo.layout = "shared"
ppo.updates = 24
ppo.batch = 64
ppo.learning_rate = {rate}
ppo.kl.coef = {coef}
ppo.measured = 128
ppo.generation.max_new_tokens = {longest}
ppo.generation.penalty = {penalty}
ppo.generation.unfinished = "{unfinished}"
"""

USUAL = {"reward": "praise", "rate": 5e-4, "coef": 0.05, "longest": 48, "penalty": 3.0, "unfinished": "replace"}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model after it was taught to answer."""
    runs = tmp_path_factory.mktemp("taught")
    return run_recipe("rlhf.toml", runs=runs, until="finetune").artifact("finetune").path


def lead(tmp_path: Path, taught: Path, name: str, **changed: object) -> str:
    """Return the first words of the verdict on a run with these settings."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    recipe = tmp_path / f"{name}.toml"
    recipe.write_text(ALIGN.format(name=name, start=taught, **{**USUAL, **changed}))
    return verdict_on(open_run(run_recipe(recipe, runs=tmp_path, plugins=[tmp_path / "rewards.py"]).folder)).lead


def test_a_reward_that_pays_for_length(tmp_path: Path, taught: Path) -> None:
    told = lead(tmp_path, taught, "hacked", reward="words", longest=96)

    assert told.startswith("What align learnt is length: answers grew ")


def test_a_kl_coefficient_of_zero(tmp_path: Path, taught: Path) -> None:
    told = lead(tmp_path, taught, "unheld", coef=0.0, rate=1e-3)

    assert told.startswith("Nothing holds align to its start (kl.coef is 0): KL ")


def test_answers_that_never_end(tmp_path: Path, taught: Path) -> None:
    told = lead(tmp_path, taught, "endless", longest=12, penalty=0.0, unfinished="subtract")

    assert told.startswith("Answers of align do not end: ")


def test_a_reward_model_that_is_worse_than_its_floor(tmp_path: Path, taught: Path) -> None:
    random, words = Random(1), ["good", "bad", "warm", "cold", "large", "small", "red", "blue"]
    rows = [
        {
            "prompt": f"How was the house {n}?",
            "chosen": " " + " ".join(random.choices(words, k=random.randint(4, 9))) + ".",
            "rejected": " " + " ".join(random.choices(words, k=random.randint(3, 8))) + ".",
        }
        for n in range(900)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "floor.toml").write_text(
        f'name = "floor"\nseed = 3\n[sources]\nstart = {{ policy = "{taught}" }}\n'
        'pairs = { preferences = "pairs.jsonl", held_out = 0.25 }\nprompts = { prompts = "builtin:reviews" }\n'
        "[stage.reward]\nreward.epochs = 1\nreward.learning_rate = 1e-6\n"
        '[stage.align]\nmethod = "ppo"\nppo.updates = 2\nppo.batch = 16\nppo.measured = 64\n'
        "ppo.generation.max_new_tokens = 48\n"
    )

    told = verdict_on(open_run(run_recipe(tmp_path / "floor.toml", runs=tmp_path).folder)).lead

    assert told.startswith("Reward is no better than its floor (accuracy 0.")
    assert ", and align learnt from it" in told
