"""Plans: the swap, what is wanted, settings from everywhere, and every mistake that planning can see."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from planning import CHAIN, METHODS, Desk, make_desk, write_model, write_rows

from alignkit.contract.settings import LoRA
from alignkit.errors import AlignkitError, DataError, PluginError, RecipeError
from alignkit.plan.pin import pin
from alignkit.plan.plan import Plan, policies_of, policy_of
from alignkit.plan.planner import make_plan

MAKE = '''

@method("make")
def make(settings: SwapSettings, stage: Stage) -> Prompts:
    """Make prompts of nothing."""


@hookimpl(specname="alignkit_methods")
def more_methods():
    return [make]
'''
"""A method that takes nothing."""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    return make_desk(tmp_path)


def settings_of(plan: Plan, stage: str) -> dict[str, Any]:
    return plan.stage(stage).settings.model_dump()


def wanted(plan: Plan) -> list[str]:
    return [stage.name for stage in plan.stages if stage.wanted]


# The swap


def test_the_swap_is_one_word(desk: Desk) -> None:
    text = f"{CHAIN}lift.updates = 3\ninputs.rewards = ['judged']\nswap.beta = 0.3\n"

    before, after = desk.plan(text), desk.plan(text, {"align.method": "swap"})

    assert before.stage("align").standing_by == ("swap.beta",)
    assert after.stage("align").standing_by == ("lift.updates", "inputs.rewards")
    assert after.stage("align").inputs == {"policy": ("first",), "pairs": ("pairs",)}
    assert settings_of(after, "align") == {"beta": 0.3}
    assert (wanted(before), wanted(after)) == (["first", "judged", "align"], ["first", "align"])


def test_what_is_upstream_of_a_swap_keeps_its_fingerprint(desk: Desk) -> None:
    before, after = desk.plan(CHAIN), desk.plan(CHAIN, {"align.method": "swap"})

    same = [one.fingerprint == other.fingerprint for one, other in zip(before.stages, after.stages, strict=True)]
    assert same == [True, True, False]


def test_settings_of_a_method_that_is_not_installed_stand_by(desk: Desk) -> None:
    plan = desk.plan(f"{CHAIN}dpo.beta = 0.1\ninputs.favourites = ['pairs']\nzebra.stripes = 4\n")

    assert plan.stage("align").standing_by == ("dpo.beta", "zebra.stripes", "inputs.favourites")


def test_a_text_of_the_command_line_that_stands_by_is_read_as_it_was_typed(desk: Desk) -> None:
    plan = desk.plan(CHAIN, {"align.method": "swap", "align.lift.label": "1.50"})

    assert plan.stage("align").standing_by == ("lift.label",)


def test_shared_settings_stand_by_where_the_method_has_none(desk: Desk) -> None:
    plan = desk.plan(f"{CHAIN}max_length = 64\n", {"align.method": "swap"})

    assert plan.stage("align").standing_by == ("max_length",)


def test_a_method_that_is_not_installed_is_named_with_its_package(desk: Desk) -> None:
    problem = desk.problems(CHAIN, {"align.method": "orpo"})[0]

    assert problem.startswith(
        "--set align.method: stage 'align': no plugin offers a method 'orpo'; there are best-of-n, "
    )
    assert problem.endswith("; others come by pip install, perhaps alignkit-orpo")


def test_shared_settings_that_stand_by_are_checked(desk: Desk) -> None:
    text = f"{CHAIN}max_length = -1\nlora.rnak = 3\n"

    assert desk.problems(text, {"align.method": "swap"}) == [
        "r.toml:14: stage 'align': max_length: must be greater than 0, and is -1",
        "r.toml:15: stage 'align': lora.rnak: unknown setting; did you mean 'rank'?",
    ]


# What is wanted


@pytest.mark.parametrize(
    ("text", "until", "names"),
    [
        (CHAIN, None, ["first", "judged", "align"]),
        (CHAIN, "first", ["first"]),
        (f"result = ['judged']\n{CHAIN}", None, ["first", "judged"]),
        (f"result = 'first'\n{CHAIN}", "judged", ["first", "judged"]),
    ],
)
def test_only_what_is_wanted_and_what_that_needs_is_run(
    desk: Desk, text: str, until: str | None, names: list[str]
) -> None:
    assert wanted(desk.plan(text, until=until)) == names


def test_sources_that_only_unwanted_stages_take_are_not_used(desk: Desk) -> None:
    assert [source.name for source in desk.plan(CHAIN, until="first").used_sources()] == ["base", "demos"]


@pytest.mark.parametrize(
    ("stage", "policies"),
    [("first", ["base"]), ("align", ["base"]), ("mix", ["second", "base"]), ("table", ["second", "base"])],
)
def test_policies_are_followed_back_to_the_sources_that_they_come_from(
    desk: Desk, stage: str, policies: list[str]
) -> None:
    mix = "[stage.mix]\nmethod = 'blend'\ninputs = { one = 'second', other = 'align' }\n"
    table = "[stage.table]\nmethod = 'measure'\ninputs = { policies = ['mix', 'align'], against = 'first' }\n"
    text = f"{CHAIN}{mix}{table}[sources.second]\npolicy = 'model'\n"
    plan = desk.plan(text, {"first.inputs.policy": "base"})

    assert [source.name for source in policies_of(plan, plan.stage(stage))] == policies
    assert policy_of(plan, plan.stage(stage)) == plan.sources[policies[0]]


def test_of_a_stage_that_several_policies_go_into_the_first_is_followed(desk: Desk) -> None:
    mix = "[stage.mix]\nmethod = 'blend'\ninputs = { one = 'first', other = 'second' }\n"
    table = "[stage.table]\nmethod = 'measure'\ninputs.policies = ['mix']\n"
    text = f"{CHAIN}{mix}{table}[sources.second]\npolicy = 'model'\n"

    plan = desk.plan(text, {"first.inputs.policy": "base"})

    assert [source.name for source in policies_of(plan, plan.stage("table"))] == ["base"]


def test_a_stage_that_takes_no_policy_comes_from_none(desk: Desk) -> None:
    desk.plugin.write_text(f"{METHODS}{MAKE}")
    plan = desk.plan(f"{CHAIN}[stage.make]\n")

    assert policy_of(plan, plan.stage("make")) is None


# Settings


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("rate", "1e-5", 1e-5),
        ("rate", "1", 1.0),
        ("batch", "16", 16),
        ("batch", 16, 16),
        ("label", "POSITIVE", "POSITIVE"),
        ("label", '"POSITIVE"', "POSITIVE"),
        ("label", "1.50", "1.50"),
        ("label", "true", "true"),
        ("label", "2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("share", "0.25", 0.25),
        ("share", "half", "half"),
        ("pull", "{ coef = 2 }", {"coef": 2.0, "estimator": "k1"}),
        ("pull.estimator", "k3", {"coef": 0.05, "estimator": "k3"}),
    ],
)
def test_an_override_is_read_as_its_setting_wants(desk: Desk, key: str, value: Any, read: Any) -> None:
    plan = desk.plan(CHAIN, {f"align.lift.{key}": value})

    assert settings_of(plan, "align")[key.partition(".")[0]] == read


def test_defaults_reach_every_stage_whose_method_has_the_setting(desk: Desk) -> None:
    plan = desk.plan(f"[defaults]\nmax_length = 99\nlora = {{ rank = 4 }}\n{CHAIN}")

    lora = LoRA(rank=4).model_dump()
    assert [settings_of(plan, name).get("lora") for name in ("first", "judged", "align")] == [lora, None, lora]
    assert settings_of(plan, "align")["max_length"] == 99


def test_the_nearest_setting_wins_and_groups_are_merged(desk: Desk) -> None:
    text = f"[defaults]\nmax_length = 1\nlora = {{ rank = 1, alpha = 1 }}\n{CHAIN}max_length = 2\nlora.rank = 2\n"

    plan = desk.plan(text, {"align.lift.max_length": "3"})

    assert settings_of(plan, "align")["max_length"] == 3
    assert settings_of(plan, "align")["lora"] == LoRA(rank=2, alpha=1).model_dump()


@pytest.mark.parametrize("line", ["lora = false", "lift.lora = false"])
def test_a_group_that_defaults_give_is_switched_off_for_one_stage(desk: Desk, line: str) -> None:
    plan = desk.plan(f"[defaults]\nlora.rank = 4\n{CHAIN}{line}\n")

    assert [settings_of(plan, name)["lora"] for name in ("first", "align")] == [LoRA(rank=4).model_dump(), None]


def test_a_group_is_switched_off_and_on_from_the_command_line(desk: Desk) -> None:
    text = f"[defaults]\nlora.rank = 4\n{CHAIN}lora = false\n"

    plan = desk.plan(text, {"first.lora": "false", "align.lora.rank": "8"})

    assert [settings_of(plan, name)["lora"] for name in ("first", "align")] == [None, LoRA(rank=8).model_dump()]


def test_a_group_that_is_switched_off_stands_by_where_the_method_has_none(desk: Desk) -> None:
    assert desk.plan(f"{CHAIN}lora = false\n", {"align.method": "swap"}).stage("align").standing_by == ("lora",)


def test_a_seed_of_the_command_line_moves_all_but_fixed_seeds(desk: Desk) -> None:
    text = CHAIN.replace('method = "score"', 'method = "score"\nseed = 5')

    plan, other = desk.plan(text), desk.plan(text, seed=99)

    same = [one.seed == two.seed for one, two in zip(plan.stages, other.stages, strict=True)]
    assert (same, plan.stage("judged").seed) == ([False, True, False], 5)


def test_gates_are_read(desk: Desk) -> None:
    plan = desk.plan(f"{CHAIN}gates.kl.max = 20\ngates.reward = {{ min = 0, max = 1.5 }}\n")

    assert plan.stage("align").gates == {"kl": {"max": 20.0}, "reward": {"min": 0.0, "max": 1.5}}


def test_a_setting_that_must_be_given_is_asked_for_where_its_method_is_named(desk: Desk) -> None:
    desk.plugin.write_text(METHODS.replace("beta: PositiveFloat = 0.1", "beta: PositiveFloat"))

    assert desk.problems(CHAIN)[0] == "r.toml:10: stage 'judged': score.beta: must be given"


def test_a_gate_may_ask_for_exactly_one_value(desk: Desk) -> None:
    plan = desk.plan(f"{CHAIN}gates.kl = {{ min = 2, max = 2 }}\n")

    assert plan.stage("align").gates == {"kl": {"min": 2.0, "max": 2.0}}


def test_a_recipe_plans_without_a_method_where_the_stage_is_named_like_one(desk: Desk) -> None:
    text = CHAIN.replace('[stage.judged]\nmethod = "score"', "[stage.score]")

    assert desk.plan(text).stage("score").method.name == "score"


# What a recipe requires


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        (
            "nowhere-to-be-found>=2",
            "r.toml:1: the recipe needs the package 'nowhere-to-be-found>=2'; pip install 'nowhere-to-be-found>=2'",
        ),
        ("?", "r.toml:1: requires: '?' is no requirement; write [\"alignkit-dpo>=0.1\"]"),
    ],
)
def test_a_missing_package_is_the_one_error(desk: Desk, requires: str, message: str) -> None:
    text = f"requires = ['{requires}', 'pluggy>=1']\n{CHAIN}".replace('"lift"', '"of-that-package"')

    assert desk.problems(text) == [message]


def test_a_package_that_is_too_old_is_refused(desk: Desk) -> None:
    problem = desk.problems(f"requires = ['pluggy>=999']\n{CHAIN}")[0]

    assert problem.startswith("r.toml:1: the recipe needs 'pluggy>=999', and pluggy 1.")
    assert problem.endswith(" is installed; pip install 'pluggy>=999'")


# What is wrong with a recipe


def test_all_mistakes_are_told_at_once(desk: Desk) -> None:
    text = CHAIN.replace("model", "modle").replace('"tune"', '"tnue"') + "lift.rate = -1\nmax_lenght = 3\n"

    assert desk.problems(f"nmae = 'x'\n{text}", {"algn.x": 1, "judged.score.beta": "b"}) == [
        "--set algn.x: the recipe has no stage or source 'algn'; did you mean 'align'?",
        "r.toml:1: unknown key 'nmae'; did you mean 'name'?",
        "r.toml:4: source 'base': there is no 'modle'; did you mean 'model'?",
        "r.toml:10: stage 'first': no plugin offers a method 'tnue'; did you mean 'tune'?",
        "--set judged.score.beta: stage 'judged': score.beta: must be a number, and is \"b\"",
        "r.toml:16: stage 'align': unknown key 'max_lenght'; did you mean 'max_length'?",
        "r.toml:15: stage 'align': lift.rate: must be greater than 0, and is -1",
    ]


def kinds_list() -> str:
    return "policy, text, prompts, demonstrations, preferences, ratings, reward, judge"


RECIPE_MISTAKES = [
    ("nam = 'x'", "r.toml:1: unknown key 'nam'; did you mean 'name'?"),
    (
        "widgets = 1",
        "r.toml:1: unknown key 'widgets'; the keys of a recipe are name, seed, requires, trackers, defaults, sources, "
        "stage, repeat, result, compare, expect, smoke",
    ),
    ("name = 'My Recipe'", 'r.toml:1: the recipe\'s name must match [a-z][a-z0-9-]{0,40}; write name = "..."'),
    ("name = 'stages'", "r.toml:1: a recipe cannot be called 'stages'; give it another name"),
    ("name = 'sources'", "r.toml:1: a recipe cannot be called 'sources'; give it another name"),
    ("name = 'cache'", "r.toml:1: a recipe cannot be called 'cache'; give it another name"),
    ("seed = -1", "r.toml:1: seed must be a whole number, zero or more; write seed = 17"),
    ("seed = true", "r.toml:1: seed must be a whole number, zero or more; write seed = 17"),
    ("result = 3", 'r.toml:1: result must be a list of strings; write result = ["..."]'),
    ("result = ['algn']", "r.toml:1: there is no stage 'algn'; did you mean 'align'?"),
    ("result = ['zzz']", "r.toml:1: there is no stage 'zzz'; the stages are first, judged, align"),
    ("defaults = 3", "r.toml:1: 'defaults' must be a table; write [defaults]"),
    ("defaults.max_lenth = 3", "r.toml:1: defaults.max_lenth: no method has this setting; did you mean 'max_length'?"),
    ("defaults.max_length = -3", "r.toml:1: defaults.max_length: must be greater than 0, and is -3"),
    ("defaults.lora.rank = 0", "r.toml:1: defaults.lora.rank: must be greater than 0, and is 0"),
    (
        "stage.BAD.method = 'tune'",
        "r.toml:1: stage 'BAD': the name must match [a-z][a-z0-9_-]{0,40}; rename it, to 'bad' for example",
    ),
    ("stage.base.method = 'swap'", "r.toml:1: 'base' names a stage and a source; rename one of them"),
    ("stage.odd = 3", "r.toml:1: stage 'odd' must be a table; write [stage.odd]"),
]


@pytest.mark.parametrize(("line", "message"), RECIPE_MISTAKES)
def test_a_mistake_at_the_top_of_a_recipe(desk: Desk, line: str, message: str) -> None:
    refusal = desk.refusal(f"{line}\n{CHAIN}")

    assert (str(refusal), type(refusal), refusal.status) == (message, RecipeError, 2)


STAGE_MISTAKES = [
    ("method = 3", "r.toml:14: stage 'more': method must be text; write method = \"...\""),
    ("method = 'lfit'", "r.toml:14: stage 'more': no plugin offers a method 'lfit'; did you mean 'lift'?"),
    ("max_lenght = 3", "r.toml:15: stage 'more': unknown key 'max_lenght'; did you mean 'max_length'?"),
    ("rate = 3", "r.toml:15: stage 'more': unknown key 'rate'; settings stand under the method's name: lift.rate"),
    (
        "rewards = ['judged']",
        "r.toml:15: stage 'more': unknown key 'rewards'; inputs stand under inputs: inputs.rewards = ...",
    ),
    (
        "upadtes = 3",
        "r.toml:15: stage 'more': unknown key 'upadtes'; did you mean 'updates'? settings stand under the method's "
        "name: lift.NAME",
    ),
    (
        "zebra = 3",
        "r.toml:15: stage 'more': unknown key 'zebra'; a stage has method, inputs, mix, constraints, gates, seed, "
        "lora, precision, max_length, optimisation, and its method's settings under lift",
    ),
    ("lfit.rate = 1", "r.toml:15: stage 'more': unknown key 'lfit'; did you mean 'lift'?"),
    ("swap = 1", "r.toml:15: stage 'more': swap must be a table of settings; write swap.NAME = ..."),
    ("lift = 1", "r.toml:15: stage 'more': lift must be a table of settings; write lift.NAME = ..."),
    ("swap.bata = 1", "r.toml:15: stage 'more': swap.bata: unknown setting; did you mean 'beta'?"),
    ("swap.beta = -1", "r.toml:15: stage 'more': swap.beta: must be greater than 0, and is -1"),
    (
        "score.beta = 1",
        "r.toml:15: stage 'more': score makes RewardModel, so its settings cannot stand in a stage of lift, which "
        "makes Policy; move them to a stage of score",
    ),
    ("lift.rat = 1", "r.toml:15: stage 'more': lift.rat: unknown setting; did you mean 'rate'?"),
    (
        "lift.zebra = 1",
        "r.toml:15: stage 'more': lift.zebra: unknown setting; there are rate, batch, label, share, pull, lora, "
        "max_length, updates",
    ),
    ("lift.rate = 'x'", "r.toml:15: stage 'more': lift.rate: must be a number, and is \"x\""),
    ("lift.rate = inf", "r.toml:15: stage 'more': lift.rate: must be a finite number, and is Infinity"),
    ("lift.batch = 1.5", "r.toml:15: stage 'more': lift.batch: must be a whole number, and is 1.5"),
    ("lift.label = 3", "r.toml:15: stage 'more': lift.label: must be text, and is 3"),
    ("lift.share = [1]", "r.toml:15: stage 'more': lift.share: must be a number or text, and is [1]"),
    ("lift.pull = 1", "r.toml:15: stage 'more': lift.pull: must be a table, and is 1"),
    ("lift.pull = { cef = 1 }", "r.toml:15: stage 'more': lift.pull.cef: unknown setting; did you mean 'coef'?"),
    (
        "lift.pull.estimator = 'k2'",
        "r.toml:15: stage 'more': lift.pull.estimator: must be 'k1' or 'k3', and is \"k2\"",
    ),
    ("lora = 3", "r.toml:15: stage 'more': lora: must be a table, and is 3"),
    ("lift.pull = false", "r.toml:15: stage 'more': lift.pull: must be a table, and is false"),
    ("lora = { rank = 'x' }", "r.toml:15: stage 'more': lora.rank: must be a whole number, and is \"x\""),
    (
        "lora.targets = 3",
        "r.toml:15: stage 'more': lora.targets: must be 'all-linear' or a list, and is 3",
    ),
    ("seed = -3", "r.toml:15: stage 'more': seed must be a whole number from 0 to 2**32 - 1; write seed = 17"),
    ("inputs = 3", "r.toml:15: stage 'more': inputs must be a table; write inputs.ROLE = \"...\""),
    (
        "gates.kl = 3",
        "r.toml:15: stage 'more': gates.kl must be a min or a max of a result, or both; write gates.accuracy.min = "
        "0.65",
    ),
    (
        "gates.kl = { min = 3, max = 2 }",
        "r.toml:15: stage 'more': gates.kl must be a min or a max of a result, or both; write gates.accuracy.min = "
        "0.65",
    ),
    *(
        (
            f"gates.kl = {bounds}",
            "r.toml:15: stage 'more': gates.kl must be a min or a max of a result, or both; write gates.accuracy.min = "
            "0.65",
        )
        for bounds in ("{ min = nan }", "{ min = -inf }", "{ min = true }", "{ max = '3' }", "{ least = 3 }", "{}")
    ),
    (
        "gates = 3",
        "r.toml:15: stage 'more': gates must be a min or a max of a result, or both; write gates.accuracy.min = 0.65",
    ),
]


@pytest.mark.parametrize(("line", "message"), STAGE_MISTAKES)
def test_a_mistake_in_a_stage(desk: Desk, line: str, message: str) -> None:
    method = "" if line.startswith("method") else 'method = "lift"\n'

    refusal = desk.refusal(f"{CHAIN.strip()}\n[stage.more]\n{method}{line}\n")

    assert (str(refusal), refusal.status) == (message, 2)


SOURCE_MISTAKES = [
    ("pollicy = 'x'", "r.toml:15: source 'odd' says no kind (it has pollicy); did you mean 'policy'?"),
    ("", f"r.toml:15: source 'odd' says no kind (it has nothing); the kinds are {kinds_list()}"),
    ("policy = 'x'\ntext = 'y'", "r.toml:15: source 'odd' has two kinds, policy and text; make two sources of it"),
    (
        "policy = 'bultin:tiny'",
        "r.toml:16: source 'odd': no address begins with 'bultin:'; did you mean 'builtin:'?",
    ),
    ("policy = 3", "r.toml:16: source 'odd': policy must be an address; write policy = \"...\""),
    ("policy = ['model']", "r.toml:16: source 'odd': policy must be an address; write policy = \"...\""),
    (
        "prompts = ['hf:a/b', 'c.jsonl']",
        "r.toml:16: source 'odd': a list of addresses may hold files only; make a source of each and list their names "
        "under inputs",
    ),
    (
        "policy = 'builtin:huge'",
        "r.toml:16: source 'odd': nothing built in is called 'huge'; the built-in policy is \"builtin:tiny\"",
    ),
    ("judge = 'builtin:x'", "r.toml:16: source 'odd': nothing built in is called 'x'; no judge is built in"),
    ("policy = 'hf:../x'", "r.toml:16: source 'odd': '../x' is no name on the hub; write hf:OWNER/NAME"),
    (
        "reward = 'function:reviews-glod'",
        "r.toml:16: source 'odd': no plugin offers a reward function 'reviews-glod'; did you mean 'reviews-gold'?",
    ),
    (
        "reward = 'function:reviews-gold'\nsettings.x = 1",
        "r.toml:17: source 'odd': settings.x: unknown setting; there are none",
    ),
    (
        "reward = 'function:reviews-gold'\nlabel = 'x'",
        "r.toml:17: source 'odd': label does not fit the address 'function:reviews-gold'; only text classifiers have "
        "labels",
    ),
    ("reward = 'model'\nweight = 'x'", "r.toml:17: source 'odd': weight: must be a number, and is \"x\""),
    (
        "reward = 'model'\nsettings.x = 1",
        "r.toml:17: source 'odd': settings does not fit the address 'model'; only reward functions have settings",
    ),
    ("policy = 'model'\nload = '5bit'", "r.toml:17: source 'odd': load: must be '4bit' or '8bit', and is \"5bit\"; "
     "did you mean '4bit'?"),
    ("policy = 'model'\nlaod = '4bit'", "r.toml:17: source 'odd': laod: unknown setting; did you mean 'load'?"),
    (
        "judge = 'openai:x'\nkey_env = 'sk-123'",
        "r.toml:17: source 'odd': key_env must be the name of an environment variable; a key itself never stands in a "
        "recipe",
    ),
    (
        "demonstrations = 'demos.jsonl'\ncolumns.promt = 'x'",
        "r.toml:17: source 'odd': columns.promt: unknown column; did you mean 'prompt'?",
    ),
    (
        "demonstrations = 'demos.jsonl'\ncolumns.prompt = 3",
        "r.toml:17: source 'odd': columns.prompt: must be text, and is 3",
    ),
    (
        "demonstrations = 'demos.jsonl'\nheld_out = 2",
        "r.toml:17: source 'odd': held_out must be a share from 0 to below 1; 0.05 is usual",
    ),
    (
        "demonstrations = 'demos.jsonl'\nheld_out = true",
        "r.toml:17: source 'odd': held_out: must be a number or text, and is true",
    ),
    (
        "demonstrations = 'demos.jsonl'\nsplit = 'train[:3]'",
        "r.toml:17: source 'odd': split does not fit the address 'demos.jsonl'; of files write a slice, such as "
        '"[:2000]"',
    ),
    (
        "demonstrations = 'hf:a/b'\nsplit = 'train[:10%]'",
        "r.toml:17: source 'odd': split: 'train[:10%]' is no split; write \"train[:500]\"",
    ),
    (
        "text = 'builtin:reviews'\nheld_out = 0.1",
        "r.toml:17: source 'odd': held_out does not fit the address 'builtin:reviews'; built-in sources have held-out "
        "rows of their own",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "message"), SOURCE_MISTAKES)
def test_a_mistake_in_a_source(desk: Desk, lines: str, message: str) -> None:
    refusal = desk.refusal(f"{CHAIN}\n[sources.odd]\n{lines}\n")

    assert (str(refusal), type(refusal), refusal.status) == (message, RecipeError, 2)


FILE_MISTAKES = [
    (
        "demonstrations = 'demo.jsonl'",
        "r.toml:16: source 'odd': there is no file 'demo.jsonl'; did you mean 'demos.jsonl'?",
    ),
    ("demonstrations = 'zzz.csv'", "r.toml:16: source 'odd': there is no file 'zzz.csv'; it was looked for as "
     "FOLDER/zzz.csv"),
    ("demonstrations = 'z*.csv'", "r.toml:16: source 'odd': no file matches 'z*.csv'; check the pattern"),
    (
        "demonstrations = 'void'",
        "r.toml:16: source 'odd': the folder 'void' holds no file that can be read; files end in .jsonl, .ndjson, "
        ".json, .csv, .tsv, .parquet, .arrow, .txt, each also with .gz or .zst",
    ),
    (
        "demonstrations = 'demos.jsonl'\nheld_out = 'rest.csv'",
        "r.toml:17: source 'odd': there is no file 'rest.csv'; it was looked for as FOLDER/rest.csv",
    ),
    (
        'demonstrations = "a\\u0000b"',
        "r.toml:16: source 'odd': there is no file 'a\\x00b'; it was looked for as FOLDER/a\0b",
    ),
    (
        "demonstrations = '**x'",  # Python 3.13 takes it for '*x'
        "r.toml:16: source 'odd': no file matches '**x'; check the pattern"
        if sys.version_info >= (3, 13)
        else "r.toml:16: source 'odd': the address cannot be read (Invalid pattern: '**' can only be an entire path "
        "component); correct it",
    ),
    ("policy = 'modle'", "r.toml:16: source 'odd': there is no 'modle'; did you mean 'model'?"),
    (
        "policy = 'demos.jsonl'",
        "r.toml:16: source 'odd': 'demos.jsonl' is a file; give the model's folder, or a .gguf file",
    ),
    (
        "policy = 'void'",
        "r.toml:16: source 'odd': FOLDER/void is no model folder (no config.json); give a folder as transformers "
        "saves it",
    ),
    (
        "policy = 'pickled'",
        "r.toml:16: source 'odd': the model folder FOLDER/pickled has no weights; copy its .safetensors files there",
    ),
    (
        "policy = 'bare'",
        "r.toml:16: source 'odd': the model folder FOLDER/bare has no weights; copy its .safetensors files there",
    ),
    (
        "policy = 'sharded'",
        "r.toml:16: source 'odd': the model folder FOLDER/sharded lacks 'model-2.safetensors'; copy it again",
    ),
    (
        "policy = 'baseless'",
        "r.toml:16: source 'odd': the adapter's base 'owner/name' is not on this machine; download the base model and "
        "write its folder into base_model_name_or_path of adapter_config.json",
    ),
    (
        "policy = 'several'",
        "r.toml:16: source 'odd': FOLDER/several holds adapters in folders of their own (one, two); name one of them, "
        "such as FOLDER/several/one",
    ),
    ("policy = 'garbled'", "FOLDER/garbled/adapter_config.json: the file is not JSON; copy it again"),
    ("text = 'empty.jsonl'", "FOLDER/empty.jsonl: the file is empty; give it rows, or take it out of the recipe"),
    (
        "text = 'demos.jsonl'",
        "FOLDER/demos.jsonl:1: text need the columns text; the row has prompt, completion; say which column it is: "
        'sources.odd.columns.text = "..."',
    ),
]  # fmt: skip


def write_adapter(folder: Path, base: str) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(base, "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")


@pytest.fixture
def models(desk: Desk) -> Desk:
    """A desk with model folders that lack something."""
    for name in ("void", "pickled", "bare"):
        (desk.folder / name).mkdir()
    for name in ("pickled", "bare"):
        (desk.folder / name / "config.json").write_text("{}")
    (desk.folder / "pickled" / "optimizer.pt").write_bytes(b"x")
    sharded = write_model(desk.folder / "sharded")
    index = '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
    (sharded / "model.safetensors.index.json").write_text(index)
    write_adapter(desk.folder / "adapter", '{"base_model_name_or_path": "../model"}')
    write_adapter(desk.folder / "baseless", '{"base_model_name_or_path": "owner/name"}')
    for name in ("one", "two"):
        write_adapter(desk.folder / "several" / name, '{"base_model_name_or_path": "../../model"}')
    write_adapter(desk.folder / "garbled", "{")
    (desk.folder / "empty.jsonl").write_text("")
    return desk


@pytest.mark.parametrize(("lines", "message"), FILE_MISTAKES)
def test_a_file_that_is_wrong_is_a_data_error(models: Desk, lines: str, message: str) -> None:
    refusal = models.refusal(f"{CHAIN}\n[sources.odd]\n{lines}\n")

    told = str(refusal).replace(str(models.folder), "FOLDER")
    assert (told, type(refusal), refusal.status) == (message, DataError, 65)


def test_an_adapter_folder_is_a_policy(models: Desk) -> None:
    plan = models.plan(CHAIN, {"base.policy": str(models.folder / "adapter")})

    assert plan.sources["base"].files == (models.folder / "adapter",)


def test_paths_of_the_command_line_start_in_the_current_folder(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_model(elsewhere / "mine")
    write_rows(elsewhere / "aside.jsonl", [{"prompt": "b?", "completion": "b."}])
    monkeypatch.chdir(elsewhere)

    plan = desk.plan(CHAIN, {"base.policy": "mine", "demos.held_out": "aside.jsonl"})

    assert plan.sources["base"].files == (elsewhere / "mine",)
    assert plan.sources["demos"].files == (tmp_path / "demos.jsonl",)
    assert plan.sources["demos"].held_out_files == (elsewhere / "aside.jsonl",)


def test_held_out_rows_may_have_a_file_of_their_own(desk: Desk) -> None:
    write_rows(desk.folder / "aside.jsonl", [{"prompt": "b?", "completion": "b."}])

    records: Any = desk.plan(CHAIN, {"demos.held_out": str(desk.folder / "aside.jsonl")}).sources["demos"].artifact()

    sides = [[row["prompt"] for row in rows] for rows in (records.train(), records.held_out())]
    assert sides == [["a?"], ["b?"]]


def test_folders_patterns_and_lists_name_several_files(desk: Desk) -> None:
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "notes.md"):
        (desk.folder / "[odd] rows").mkdir(exist_ok=True)
        write_rows(desk.folder / "[odd] rows" / name, [{"text": name}])
    text = (
        f"{CHAIN}[sources.folder]\ntext = '[odd] rows'\n[sources.pattern]\ntext = '[[]odd*/?.jsonl'\n"
        "[sources.list]\ntext = ['[odd] rows/b.jsonl', '[odd] rows/a.jsonl']\n"
    )

    sources = desk.plan(text).sources

    found = {name: [file.name for file in sources[name].files] for name in ("folder", "pattern", "list")}
    assert found == {
        "folder": ["a.jsonl", "b.jsonl"],
        "pattern": ["a.jsonl", "b.jsonl"],
        "list": ["b.jsonl", "a.jsonl"],
    }


def test_a_source_is_used_by_every_stage_that_names_it(desk: Desk) -> None:
    text = f"{CHAIN}[stage.again]\nmethod = 'tune'\ninputs = {{ policy = 'base', demos = 'demos' }}\n"

    plan = desk.plan(text)

    assert (plan.stage("first").inputs, plan.stage("again").inputs) == (
        {"policy": ("base",), "demos": ("demos",)},
        {"policy": ("base",), "demos": ("demos",)},
    )


@pytest.mark.parametrize(
    ("extra", "status"),
    [("[sources.x]\ntext = 'none.jsonl'\n", 65), ("[sources.x]\ntext = 'none.jsonl'\n[stage.y]\nmethod = 'tnue'\n", 2)],
)
def test_the_gravest_mistake_decides_the_exit_status(desk: Desk, extra: str, status: int) -> None:
    assert desk.refusal(f"{CHAIN}{extra}").status == status


def test_a_broken_plugin_is_named_where_a_method_is_missing(desk: Desk) -> None:
    (desk.folder / "broken.py").write_text("import nowhere_at_all")
    broken = desk.folder / "broken.py"

    refusal = desk.refusal(f"{CHAIN}[stage.x]\nmethod = 'zebra'\n", plugins=[desk.plugin, broken])

    assert (type(refusal), refusal.status, str(refusal)) == (
        PluginError,
        78,
        "r.toml:15: stage 'x': no plugin offers a method 'zebra'; a plugin that cannot be loaded may offer it: "
        f"{broken} (ModuleNotFoundError: No module named 'nowhere_at_all')",
    )


def test_hub_sources_without_a_commit_have_no_fingerprint(desk: Desk) -> None:
    plan = desk.plan(CHAIN, {"base.policy": "hf:owner/name"})

    assert {stage.name: stage.fingerprint for stage in plan.stages} == {"first": None, "judged": None, "align": None}


@pytest.mark.parametrize("pinned", ["lock", "address"])
def test_hub_sources_count_by_their_commit(desk: Desk, pinned: str) -> None:
    commit = "0123456789" * 4
    if pinned == "lock":
        (desk.folder / "r.lock").write_text(f'{{"hub": {{"hf:owner/name": "{commit}"}}}}')

    plan = desk.plan(CHAIN, {"base.policy": "hf:owner/name" + (f"@{commit}" if pinned == "address" else "")})

    assert (plan.sources["base"].commit, plan.sources["base"].repository) == (commit, "owner/name")
    assert all(stage.fingerprint for stage in plan.stages)


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch, commit: str) -> None:
    """Put the model owner/name into a cache of the hub."""
    repository = folder / "hub" / "models--owner--name"
    write_model(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_commits_of_the_hub_are_written_beside_the_recipe_and_others_stay(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    cached(desk.folder, monkeypatch, commit)
    (desk.folder / "r.lock").write_text('{"hub": {"hf:owner/other": "9"}}')
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    pin(desk.plan(CHAIN, {"base.policy": "hf:owner/name"}), desk.folder / "runs", offline=True)

    lock = json.loads((desk.folder / "r.lock").read_text())
    assert lock == {"hub": {"hf:owner/name": commit, "hf:owner/other": "9"}}
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert desk.plan(CHAIN, {"base.policy": "hf:owner/name"}).sources["base"].commit == commit


def test_commits_for_a_packaged_recipe_are_written_under_the_runs(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, runs = "0123456789" * 4, desk.folder / "deep" / "runs"
    cached(desk.folder, monkeypatch, commit)
    plan = make_plan("rlhf.toml", set={"base.policy": "hf:owner/name"}, runs=runs)

    for _ in range(2):
        pin(plan, runs, offline=True)

    assert json.loads((runs / "rlhf.lock").read_text()) == {"hub": {"hf:owner/name": commit}}


def test_where_all_commits_are_known_nothing_is_written(desk: Desk) -> None:
    pin(desk.plan(CHAIN), desk.folder / "runs", offline=False)

    assert not (desk.folder / "r.lock").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"hub": 3}', "{}"])
def test_a_damaged_lock_file_is_refused(desk: Desk, content: str) -> None:
    (desk.folder / "r.lock").write_text(content)

    message = "FOLDER/r.lock: the lock file cannot be read; delete it; the next run writes it anew"
    assert desk.problems(CHAIN) == [message]


def test_planning_imports_nothing_heavy(desk: Desk) -> None:
    (desk.folder / "r.toml").write_text(CHAIN)
    code = (
        "import sys; from alignkit.plan.planner import make_plan; make_plan('r.toml', plugins=['fakes.py']);"
        "make_plan('rlhf'); print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'trl', 'peft')"
        " if m in sys.modules])"
    )

    told = subprocess.run(
        [sys.executable, "-c", code], cwd=desk.folder, capture_output=True, text=True,
        env={**os.environ, "ALIGNKIT_PLUGINS": ""},
    )  # fmt: skip

    assert (told.stdout, told.stderr) == ("[]\n", "")


def test_the_packaged_recipe_is_planned(desk: Desk) -> None:
    plan = make_plan("rlhf", runs=desk.folder / "runs")

    assert wanted(plan) == ["pretrain", "finetune", "reward", "align", "scores"]


@pytest.mark.parametrize("recipe", sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml")), ids=str)
def test_every_recipe_of_the_repository_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    monkeypatch.delenv("ALIGNKIT_PLUGINS", raising=False)
    try:
        plan = make_plan(recipe, runs=tmp_path / "runs")
    except AlignkitError as error:
        raise AssertionError(str(error)) from error

    assert any(stage.wanted for stage in plan.stages)


GENTLE = '''
from alignkit import RowSettings, Policy, Preferences, Stage, hookimpl, method

@method("gentle")
def gentle(settings: RowSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Do it gently."""

@hookimpl
def alignkit_methods():
    return [gentle]
'''


def test_one_key_of_a_group_leaves_the_method_its_own_defaults_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "gentle.py").write_text(GENTLE)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[sources]\nbase = { policy = "builtin:tiny" }\npairs = { preferences = "pairs.jsonl" }\n'
        '[stage.gentle]\ngentle.optimisation.schedule = "cosine"\n'
    )

    plan = make_plan(recipe, runs=tmp_path / "runs", plugins=[tmp_path / "gentle.py"])

    settings: Any = plan.stages[0].settings
    assert (settings.optimisation.schedule, settings.optimisation.warmup) == ("cosine", 0.1)


@pytest.mark.parametrize(
    ("stage", "figure", "remedy"),
    [
        ("finetune", "perplexty", "sft reports no such result; did you mean 'perplexity'?"),
        ("scores", "reward algn", "evaluate reports no such result; did you mean 'reward align'?"),
        ("align", "speed", "ppo reports no such result; its results are reward, reward/reward, kl, length, eos_rate"),
    ],
)
def test_a_gate_on_a_figure_that_the_method_never_tells_is_refused(stage: str, figure: str, remedy: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_plan("rlhf.toml", set={f"{stage}.gates.{figure}.max": 10})

    assert str(caught.value) == f"--set {stage}.gates.{figure}.max: stage {stage!r}: gates.{figure}: {remedy}"


def test_a_gate_on_a_figure_of_a_policy_that_is_measured_is_planned() -> None:
    plan = make_plan("rlhf.toml", set={"scores.gates.reward align.min": 1.0})

    assert plan.stage("scores").gates == {"reward align": {"min": 1.0}}
