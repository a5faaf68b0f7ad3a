"""Wiring: kinds do the work, names break ties, and nothing is guessed."""

from pathlib import Path

import pytest
from planning import CHAIN, METHODS, Desk, make_desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    return make_desk(tmp_path)


def test_the_latest_earlier_stage_comes_before_sources(desk: Desk) -> None:
    plan = desk.plan(f"{CHAIN}[stage.more]\nmethod = 'tune'\n")

    assert plan.stage("more").inputs == {"policy": ("align",), "demos": ("demos",)}


def test_a_name_in_the_recipe_comes_first(desk: Desk) -> None:
    plan = desk.plan(f"{CHAIN}inputs.policy = 'base'\n")

    assert plan.stage("align").inputs == {"policy": ("base",), "rewards": ("judged",), "prompts": ("prompts",)}


def test_sources_of_rows_are_put_together(desk: Desk) -> None:
    text = f"{CHAIN}[sources.more]\ndemonstrations = 'demos.jsonl'\n"

    plan = desk.plan(text, {"first.inputs": {"demos": ["more", "demos"]}})

    assert plan.stage("first").inputs["demos"] == ("more", "demos")


def test_an_optional_input_is_wired_only_by_name(desk: Desk) -> None:
    text = f"{CHAIN}[stage.table]\nmethod = 'measure'\n"

    assert "against" not in desk.plan(text).stage("table").inputs
    assert desk.plan(f"{text}inputs.against = 'first'").stage("table").inputs["against"] == ("first",)


def test_what_compares_policies_takes_the_start_and_the_end(desk: Desk) -> None:
    text = f"{CHAIN}[stage.table]\nmethod = 'measure'\n"

    assert desk.plan(text).stage("table").inputs == {"policies": ("base", "align")}


def test_which_of_two_sources_is_the_start_is_not_guessed(desk: Desk) -> None:
    text = f"[sources.other]\npolicy = 'builtin:tiny'\n{CHAIN}[stage.table]\nmethod = 'measure'\n"

    plan = desk.plan(text, {"first.inputs": {"policy": "base"}, "judged.inputs": {"policy": "first"}})

    assert plan.stage("table").inputs == {"policies": ("align",)}


def test_several_inputs_are_a_list_in_its_order(desk: Desk) -> None:
    plan = desk.plan(f"{CHAIN}[stage.table]\nmethod = 'measure'\ninputs.policies = ['align', 'base', 'first']\n")

    assert plan.stage("table").inputs == {"policies": ("align", "base", "first")}


def test_twins_are_wired_by_name(desk: Desk) -> None:
    plan = desk.plan(f"{CHAIN}[stage.mix]\nmethod = 'blend'\ninputs = {{ one = 'first', other = 'base' }}\n")

    assert plan.stage("mix").inputs == {"one": ("first",), "other": ("base",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{CHAIN}[stage.mix]\nmethod = 'blend'\n",
            "r.toml:14: stage 'mix': blend takes several inputs of the kind Policy; say which is which: name 'one' and "
            "'other' under inputs",
        ),
        (
            f"{CHAIN}[stage.mix]\nmethod = 'blend'\ninputs.one = 'base'\n",
            "r.toml:14: stage 'mix': blend takes several inputs of the kind Policy; say which is which: name 'other' "
            "under inputs",
        ),
        (
            f"{CHAIN}[sources.more]\ndemonstrations = 'demos.jsonl'\n",
            "r.toml:8: stage 'first': tune needs Demonstrations as demos, and several sources are that: demos, more; "
            'name it: inputs.demos = "demos"',
        ),
        (
            CHAIN.replace('pairs = { preferences = "pairs.jsonl" }', "gap = { text = 'demos.jsonl' }").replace(
                "demos.jsonl' }", "t.txt' }"
            ),
            "r.toml:10: stage 'judged': score needs Preferences as pairs, and nothing before it makes them; "
            'add a source: { preferences = "..." }',
        ),
        (
            CHAIN.replace('[stage.judged]\nmethod = "score"\n', ""),
            "r.toml:10: stage 'align': lift needs Reward as rewards, and nothing before it makes one; methods that do: "
            "reward, score",
        ),
        (
            f"{CHAIN}inputs.policy = 'bsae'\n",
            "r.toml:14: stage 'align': inputs.policy names 'bsae', which is no source or earlier stage; "
            "did you mean 'base'?",
        ),
        (
            f"{CHAIN}inputs.policy = 'zebra'\n",
            "r.toml:14: stage 'align': inputs.policy names 'zebra', which is no source or earlier stage; "
            "there are base, demos, pairs, prompts, first, judged",
        ),
        (
            f"{CHAIN}inputs.policy = 'later'\n[stage.later]\nmethod = 'tune'\n",
            "r.toml:14: stage 'align': inputs.policy names 'later', which comes later; move that stage up in the "
            "recipe",
        ),
        (
            f"{CHAIN}inputs.policy = 'align'\n",
            "r.toml:14: stage 'align': inputs.policy names 'align', which is the stage itself; name an earlier one",
        ),
        (
            f"{CHAIN}inputs.policy = 'demos'\n",
            "r.toml:14: stage 'align': lift takes Policy as policy, and 'demos' is Demonstrations; of that kind there "
            "are base, first",
        ),
        (
            f"{CHAIN}inputs.policy = ['base', 'first']\n",
            "r.toml:14: stage 'align': inputs.policy takes one Policy, not 2; only rows of one kind are put together",
        ),
        (
            CHAIN.replace('"score"', '"score"\ninputs = { pairs = "demos" }').replace("pairs = {", "pears = {"),
            "r.toml:12: stage 'judged': score takes Preferences as pairs, and 'demos' is Demonstrations; of that kind "
            "there are pears",
        ),
        (
            CHAIN.replace('"score"', '"score"\ninputs = { pairs = "demos" }').replace(
                'preferences = "pairs.jsonl"', "text = 't.txt'"
            ),
            "r.toml:12: stage 'judged': score takes Preferences as pairs, and 'demos' is Demonstrations; nothing "
            "before it is of that kind",
        ),
        (
            "[stage.first]\nmethod = 'swap'\ninputs = { policy = 'zebra', pairs = [] }\n",
            "r.toml:3: stage 'first': inputs.policy names 'zebra', which is no source or earlier stage; there are "
            "none\nr.toml:3: stage 'first': inputs.pairs must be a name or a list of names; write inputs.pairs = "
            '["..."]',
        ),
        (
            f"{CHAIN}[stage.align.inputs]\npolicy = 'base'\nzebra = 'base'\n",
            "r.toml:16: stage 'align': lift has no input 'zebra'; lift takes policy, rewards, prompts",
        ),
        (
            f"{CHAIN}inputs.rewards = ['judged', 'judged']\n",
            "r.toml:14: stage 'align': inputs.rewards names 'judged' twice; name it once",
        ),
        (
            f"{CHAIN}inputs.rewards = []\n",
            "r.toml:14: stage 'align': inputs.rewards must be a name or a list of names; "
            'write inputs.rewards = ["..."]',
        ),
        (
            f"{CHAIN}inputs.rewards = [3]\n",
            "r.toml:14: stage 'align': inputs.rewards must be a name or a list of names; "
            'write inputs.rewards = ["..."]',
        ),
        (
            f"{CHAIN}inputs.polciy = 'base'\n",
            "r.toml:14: stage 'align': lift has no input 'polciy'; did you mean 'policy'?",
        ),
        (
            f"{CHAIN}inputs.zebra = 'base'\n",
            "r.toml:14: stage 'align': lift has no input 'zebra'; lift takes policy, rewards, prompts",
        ),
    ],
)
def test_what_cannot_be_wired_is_refused(desk: Desk, text: str, message: str) -> None:
    (desk.folder / "t.txt").write_text("text")

    assert desk.problems(text) == message.splitlines()


def test_what_depends_on_a_mistake_is_no_mistake(desk: Desk) -> None:
    text = CHAIN.replace("pairs.jsonl", "none.csv")

    assert desk.problems(text) == [
        "r.toml:5: source 'pairs': there is no file 'none.csv'; it was looked for as FOLDER/none.csv"
    ]


def test_a_stage_that_names_a_wrong_source_is_no_further_mistake(desk: Desk) -> None:
    text = CHAIN.replace("pairs.jsonl", "none.csv").replace('"score"', '"score"\ninputs.pairs = "pairs"')

    assert desk.problems(text) == [
        "r.toml:5: source 'pairs': there is no file 'none.csv'; it was looked for as FOLDER/none.csv"
    ]


def test_a_method_that_takes_nothing_says_so(desk: Desk) -> None:
    desk.plugin.write_text(METHODS.replace("*, one: Policy, other: Policy) -> Policy", ") -> Policy"))

    assert desk.problems(f"{CHAIN}[stage.mix]\nmethod = 'blend'\ninputs.zebra = 'base'\n") == [
        "r.toml:16: stage 'mix': blend has no input 'zebra'; blend takes none"
    ]
