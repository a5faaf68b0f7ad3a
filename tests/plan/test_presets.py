"""Presets: settings by the name of a paper, below what the recipe says, and gone from the stage's identity."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from planning import CHAIN, METHODS, Desk, make_desk

from alignkit import Policy, Prompts, Settings, Stage
from alignkit.cli import main
from alignkit.contract.method import method
from alignkit.contract.paper import Paper
from alignkit.contract.settings import identity
from alignkit.plan.schema import recipe_schema
from alignkit.plugins import load_plugins
from alignkit.show.planned import as_dict, show_plan

WILD = """papers=(
    Paper("wild", "Wild Things", "arXiv 2501.00001", {"rate": 0.5, "pull": {"coef": 2.0}, "max_length": 64}),
    Paper("plain", "Plain Things", "arXiv 2501.00002"),
)"""
PAPERS = METHODS.replace('@method("lift")', f'@method("lift", {WILD})').replace("Policy, Pref", "Paper, Policy, Pref")
PRESET = f'{CHAIN}lift.preset = "wild"\n'


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    made = make_desk(tmp_path)
    made.plugin.write_text(PAPERS)
    return made


def settings(desk: Desk, text: str, **more: object) -> dict[str, object]:
    return desk.plan(text, **more).stage("align").settings.model_dump()  # type: ignore[arg-type]


def test_a_preset_gives_the_settings_of_its_paper(desk: Desk) -> None:
    found = settings(desk, PRESET)

    assert (found["rate"], found["max_length"]) == (0.5, 64)
    assert found["pull"] == {"coef": 2.0, "estimator": "k1"}


@pytest.mark.parametrize(
    "text",
    [
        f"{PRESET}lift.rate = 0.1\nlift.pull.coef = 1.0\nlift.max_length = 8\n",
        f"{PRESET}lift.rate = 0.1\nlift.pull = {{ coef = 1.0 }}\nmax_length = 8\n",
        f"{PRESET}lift.rate = 0.1\nlift.pull.coef = 1.0\n[defaults]\nmax_length = 8\n",
    ],
)
def test_what_the_recipe_says_wins(desk: Desk, text: str) -> None:
    found = settings(desk, text)

    assert (found["rate"], found["pull"], found["max_length"]) == (0.1, {"coef": 1.0, "estimator": "k1"}, 8)


def test_the_command_line_chooses_a_preset_and_overrides_it(desk: Desk) -> None:
    found = settings(desk, CHAIN, sets={"align.lift.preset": "wild", "align.lift.pull.coef": "3.0"})

    assert (found["rate"], found["pull"]) == (0.5, {"coef": 3.0, "estimator": "k1"})


def test_a_preset_and_its_settings_written_out_are_one_stage(desk: Desk) -> None:
    written = f"{CHAIN}lift.rate = 0.5\nlift.pull.coef = 2.0\nlift.max_length = 64\n"

    one, other, plain = (desk.plan(text).stage("align").fingerprint for text in (PRESET, written, CHAIN))

    assert one == other
    assert one != plain


def test_a_preset_that_is_none_is_refused_with_the_near_miss(desk: Desk) -> None:
    typo, other = (desk.problems(PRESET.replace("wild", name)) for name in ("wld", "thing"))

    where = "r.toml:14: stage 'align': lift.preset: there is no preset"
    assert typo == [f"{where} 'wld'; did you mean 'wild'?"]
    assert other == [f"{where} 'thing'; there are wild"]


@pytest.mark.parametrize("value", ["3", "true", '["wild"]', "{ of = 1 }"])
def test_a_preset_that_is_no_text_is_refused(desk: Desk, value: str) -> None:
    assert desk.problems(f"{CHAIN}lift.preset = {value}\n")[0].startswith(
        "r.toml:14: stage 'align': lift.preset: there is"
    )


def test_a_method_without_papers_has_no_presets(desk: Desk) -> None:
    assert desk.problems(f'{CHAIN.replace("lift", "swap")}swap.preset = "wild"\n') == [
        "r.toml:14: stage 'align': swap.preset: unknown setting; there are beta"
    ]


def test_a_preset_waits_for_its_method_as_other_settings_do(desk: Desk) -> None:
    swapped = PRESET.replace('method = "lift"', 'method = "swap"')

    assert desk.plan(swapped).stage("align").standing_by == ("lift.preset",)
    assert desk.problems(swapped.replace("wild", "wld")) == [
        "r.toml:14: stage 'align': lift.preset: there is no preset 'wld'; did you mean 'wild'?"
    ]


def test_plans_show_what_a_preset_sets_and_what_the_recipe_says_otherwise(desk: Desk) -> None:
    plain, changed = (desk.plan(text) for text in (PRESET, f"{PRESET}lift.pull.coef = 1.0\n"))

    told = "align  preset: wild sets lift.rate = 0.5, lift.pull.coef = 2.0, lift.max_length = 64"
    assert told in show_plan(plain, {}, {}, None)
    assert f"{told}; the recipe says lift.pull.coef = 1.0" in show_plan(changed, {}, {}, None)
    assert as_dict(plain)["stages"]["align"]["preset"] == "wild"
    assert as_dict(desk.plan(CHAIN))["stages"]["align"]["preset"] is None


class OwnSettings(Settings):
    preset: str = "mine"
    rate: float = 0.1


def test_a_method_may_have_a_setting_of_that_name() -> None:
    @method("own", papers=(Paper("wild", "Wild", "arXiv 2501.00001", {"rate": 0.5}),))
    def own(settings: OwnSettings, stage: Stage, *, policy: Policy, prompts: Prompts) -> Policy:
        return policy

    assert own.presets == {}


def test_methods_and_editors_know_the_presets(desk: Desk) -> None:
    told = CliRunner().invoke(main, ["methods", "lift", "-p", str(desk.plugin), "--json"]).output
    first = json.loads(told)["settings"][0]
    assert (first["key"], first["default"]) == ("lift.preset", "-")
    assert first["summary"] == "Settings of a paper, by its name: wild. What is said besides wins."
    assert (
        'or, shorter: lift.preset = "wild"'
        in CliRunner().invoke(main, ["methods", "wild", "-p", str(desk.plugin)]).output
    )

    validator = Draft202012Validator(recipe_schema(load_plugins([desk.plugin])))
    recipes = ({"stage": {"align": {"lift": {"preset": name}}}} for name in ("wild", "wld"))
    assert [len(list(validator.iter_errors(recipe))) for recipe in recipes] == [0, 1]


class GrownGroup(Settings):
    added = frozenset({"newer"})
    old: int = 1
    newer: int = 2


class GrownSettings(Settings):
    added = frozenset({"new"})
    old: int = 1
    new: float | None = None
    group: GrownGroup = GrownGroup()


def test_a_setting_that_was_added_counts_where_it_is_set() -> None:
    assert identity(GrownSettings()) == {"old": 1, "group": {"old": 1}}
    assert identity(GrownSettings(old=3, new=0.0, group=GrownGroup(newer=5))) == {
        "old": 3,
        "new": 0.0,
        "group": {"old": 1, "newer": 5},
    }
