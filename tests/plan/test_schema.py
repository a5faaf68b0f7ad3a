"""The JSON Schema of recipes: right recipes fit it, wrong ones do not, and editors find it."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from alignkit.cli import main
from alignkit.plan.schema import recipe_schema
from alignkit.plugins import load_plugins

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml"))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = recipe_schema(load_plugins(()))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_packaged_recipes_fit(validator: Draft202012Validator, path: Path) -> None:
    assert [error.message for error in validator.iter_errors(tomllib.loads(path.read_text("utf-8")))] == []


RECIPE: dict[str, Any] = {
    "seed": 1,
    "defaults": {"lora": False},
    "sources": {
        "base": {"policy": "hf:x", "load": "4bit"},
        "pairs": {"preferences": ["a.jsonl", "b.jsonl"], "format": "alpaca", "on_bad_rows": "skip", "max_bad": 0.1},
        "judge": {"judge": "openai:x", "url": "http://x"},
    },
    "stage": {
        "align": {"method": "ppo", "lora": {"rank": 4}, "ppo": {"kl": {"coef": 0.1}}, "gates": {"kl": {"max": 20}}},
        "other": {"method": "strange", "strange": {"anything": 1}},
    },
    "repeat": {"late": {"stages": ["align"], "rounds": 3, "reference": "fixed", "split": ["pairs"]}},
    "compare": {
        "seeds": 2,
        "vary": {"align": {"ppo": {"epochs": [1, 2]}}},
        "variants": {"far": {"ppo": {"epochs": 3}}},
    },
    "expect": [{"figure": "far/reward", "minus": "start/reward", "at_least": 0.1, "paper": "more"}],
    "smoke": {"set": {"align.ppo.updates": 2}, "variants": ["far"], "expect": [{"figure": "far/kl", "at_most": 9}]},
}


def test_a_recipe_that_uses_it_all_fits(validator: Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(RECIPE)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["sed"], 1),
        (["repeat", "late", "round"], 3),
        (["compare", "seed"], 3),
        (["expect", 0, "papr"], 3),
        (["smoke", "expect", 0, "at_lest"], 3),
        (["repeat"], {"stages": ["align"]}),
        (["seed"], "one"),
        (["stage", "align", "ppo", "kl", "coeff"], 0.1),
        (["stage", "align", "ppo", "kl", "coef"], "much"),
        (["stage", "align", "gates", "kl", "maximum"], 3),
        (["stage", "align", "lroa"], 3),
        (["sources", "pairs", "format"], "sharegptt"),
        (["sources", "pairs", "on_bad_rows"], "drop"),
        (["sources", "pairs", "helt_out"], 0.1),
    ],
)
def test_a_mistake_does_not(validator: Draft202012Validator, path: list[str], value: Any) -> None:
    recipe = json.loads(json.dumps(RECIPE))
    table = recipe
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value

    assert list(validator.iter_errors(recipe)) != []


def test_init_lets_editors_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    CliRunner().invoke(main, ["init", "mine.toml"], catch_exceptions=False)

    assert (tmp_path / "mine.toml").read_text().splitlines()[0] == "#:schema ./alignkit.schema.json"
    printed = CliRunner().invoke(main, ["schema"], catch_exceptions=False).stdout
    assert json.loads((tmp_path / "alignkit.schema.json").read_text()) == json.loads(printed)


def test_init_writes_over_no_file_of_anybody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alignkit.schema.json").write_text("{}")

    result = CliRunner().invoke(main, ["init", "mine.toml"])

    assert result.exit_code == 2
    assert (tmp_path / "alignkit.schema.json").read_text() == "{}"
