"""Which method is chosen for what somebody has, and what is told of the others."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from planning import write_rows

from alignkit.cli import main
from alignkit.contract.kinds import Demonstrations, Preferences, Prompts, RewardModel, Text
from alignkit.estimate.own_recipe import learner
from alignkit.plan.choosing import Choice, choices, choices_for
from alignkit.plugins import Plugins, load_plugins
from alignkit.show.choosing_table import choices_in_markdown, for_kind


@pytest.fixture(scope="module")
def loaded() -> Plugins:
    return load_plugins(())


def choice(plugins: Plugins, name: str) -> Choice:
    return next(one for one in choices(plugins) if one.method.name == name)


def test_methods_stand_by_what_they_learn_from_the_usual_one_first(loaded: Plugins) -> None:
    names = [one.method.name for one in choices(loaded)]

    assert names.index("clm") < names.index("sft") < names.index("dpo") < names.index("kto") < names.index("ppo")
    assert "evaluate" not in names


def test_init_takes_the_first_that_needs_nothing_but_the_rows(loaded: Plugins) -> None:
    words = {"text": Text, "demonstrations": Demonstrations, "preferences": Preferences}
    first = {word: next(choices_for(loaded, kind)) for word, kind in words.items()}

    assert {word: learner(loaded, word)[0] for word in words} == {word: one.method for word, (one, _) in first.items()}
    assert first["preferences"][1] == "pairs"
    assert next(choices_for(loaded, Preferences, RewardModel))[0].method.name == "reward"
    assert "ppo" not in {one.method.name for one, _ in choices_for(loaded, Prompts)}  # a reward is needed besides


def test_what_is_held_and_sampled_is_told_by_what_a_method_declares(loaded: Plugins) -> None:
    ppo, grpo, sft = (choice(loaded, name) for name in ("ppo", "grpo", "sft"))

    assert (ppo.takes, ppo.holds) == ("rewards and prompts", "policy + start + critic + reward models")
    assert ppo.time == "samples 6,400 answers"
    assert grpo.holds == "policy + start + reward models"
    assert (sft.takes, sft.holds, sft.time) == ("demonstrations", "policy", "reads rows in 2 epochs")


def test_every_method_of_ours_says_when_to_take_it(loaded: Plugins) -> None:
    silent = [one.method.name for one in choices(loaded) if one.method.advice is None]

    assert [name for name in silent if loaded.origins[f"method:{name}"].package == "alignkit"] == []
    assert not any(row.count("|") != 8 for row in choices_in_markdown(for_kind(choices(loaded), Text)).splitlines())


def test_files_are_told_apart_by_their_rows(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a?", "chosen": "a.", "rejected": "b."}])

    results = [CliRunner().invoke(main, ["methods", "--for", what, "--json"]) for what in (str(file), "preferences")]

    told = [json.loads(result.stdout) for result in results]
    assert told[0] == told[1]
    assert "ppo" not in {one["method"] for one in told[0]}
    assert told[0][0]["learns_from"].startswith("pairs")
