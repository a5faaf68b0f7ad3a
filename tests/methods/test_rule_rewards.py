"""Rewards that are rules: what each promises for all answers, and what it does with bad ones."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from alignkit.contract.reward_function import Answer, RewardFunction
from alignkit.errors import DataError, RecipeError
from alignkit.methods import rule_rewards
from alignkit.methods.rule_rewards import alignkit_rewards, has_sections
from alignkit.plan.planner import make_plan

REWARDS: Mapping[str, RewardFunction] = {one.name: one for one in alignkit_rewards()}


def score(
    name: str, text: str, row: Mapping[str, Any] | None = None, tokens: int | None = None, **settings: Any
) -> float:
    offered = REWARDS[name]
    (value,) = offered([Answer("Why?", text, True, row or {}, tokens)], offered.settings(**settings))
    return value


FINE: Mapping[str, dict[str, Any]] = {
    "length": {"target": 10},
    "overlong": {"longest": 20, "cache": 10, "unit": "words"},
    "regex": {"pattern": r"\d+"},
    "format": {},
    "json": {"keys": ["a"]},
    "exact-match": {"column": "right"},
}
HOSTILE = ("", " ", "\x00", "\ud800", "[" * 100_000, "9" * 10_000, "word " * 200_000, "<think>" * 10_000, "NaN")


@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_answer_gets_a_finite_score(name: str, text: str) -> None:
    assert -1.0 <= score(name, text, {"right": "42"}, **FINE[name]) <= 1.0


@pytest.mark.parametrize("name", FINE)
@given(texts=st.lists(st.text(), max_size=4))
def test_each_answer_is_scored_by_itself(name: str, texts: list[str]) -> None:
    offered = REWARDS[name]
    settings = offered.settings(**FINE[name])
    answers = [Answer("", text, True, {"right": "42"}) for text in texts]

    assert offered(answers, settings) == [offered([answer], settings)[0] for answer in answers]


@given(st.integers(1, 100), st.integers(0, 300), st.integers(0, 300))
def test_a_length_nearer_to_the_target_never_scores_less(target: int, one: int, other: int) -> None:
    near, far = sorted((one, other), key=lambda words: abs(words - target))

    assert score("length", "w " * near, target=target) >= score("length", "w " * far, target=target)
    assert score("length", "w " * target, target=target) == 0


@pytest.mark.parametrize(
    ("penalised", "short", "long"), [("longer", 0, -0.5), ("shorter", -0.5, 0), ("both", -0.5, -0.5)]
)
def test_one_side_alone_may_pay_for_length(penalised: str, short: float, long: float) -> None:
    assert score("length", "w " * 5, target=10, penalised=penalised) == short
    assert score("length", "w " * 15, target=10, penalised=penalised) == long


def test_tokens_are_counted_where_they_are_known() -> None:
    assert score("length", "", tokens=15, target=10, unit="tokens") == -0.5
    with pytest.raises(DataError) as refused:
        score("length", "", target=10, unit="tokens")
    assert str(refused.value) == 'the tokens of these answers are not known; count "words" or "characters"'


@pytest.mark.parametrize(("tokens", "penalty"), [(0, 0), (16, 0), (17, -0.25), (18, -0.5), (20, -1), (21, -1)])
def test_overlong_is_equation_13_of_dapo(tokens: int, penalty: float) -> None:
    # longest 20, cache 4: (16 - 17) / 4 is -0.25, and everything above 20 is -1
    assert score("overlong", "", tokens=tokens, longest=20, cache=4) == penalty


@given(st.integers(1, 50), st.integers(0, 100), st.integers(0, 100))
def test_overlong_never_rewards_more_tokens(cache: int, one: int, other: int) -> None:
    few, many = sorted((one, other))

    assert score("overlong", "", tokens=few, longest=50, cache=cache) >= score(
        "overlong", "", tokens=many, longest=50, cache=cache
    )


@given(st.text())
def test_a_regex_that_matches_all_matches(text: str) -> None:
    assert score("regex", text, pattern=r"(?s).*", whole=True, match=2.0) == 2.0
    assert score("regex", text, pattern=r"(?!)", otherwise=-1.0) == -1.0


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "must be a regular expression (missing ) at position 1)"),
        ("(a+)+$", "must not take long on any answer: write it without repeats of repeats, such as (a+)+"),
        ("(a|aa)+$", "must not take long on any answer: write it without repeats of repeats, such as (a+)+"),
        (
            "((a{1000}){1000}){1000}",
            "must have at most 10 groups in one another, and repeat nothing more than 10000 times",
        ),
        (
            "(?:" * 60 + "a+" + ")+" * 60,
            "must have at most 10 groups in one another, and repeat nothing more than 10000 times",
        ),
        (
            "a{99999999999999999999}",
            "must have at most 10 groups in one another, and repeat nothing more than 10000 times",
        ),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_before_anything_runs(pattern: str, why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        REWARDS["regex"].settings(pattern=pattern)

    assert refused.value.errors()[0]["ctx"]["error"].args[0] == why


def test_a_pattern_that_takes_too_long_for_an_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_rewards, "SECONDS", 0.05)
    settings = REWARDS["regex"].settings.model_construct(pattern=r"(z+)+$", whole=False, match=1.0, otherwise=0.0)

    begun = time.monotonic()
    with pytest.raises(DataError) as refused:
        REWARDS["regex"]([Answer("", "z" * 5000 + "!", True)], settings)

    assert str(refused.value) == (
        "the pattern '(z+)+$' takes more than 0.05 s for one answer; write it without repeats of repeats, such as (a+)+"
    )
    assert time.monotonic() - begun < 10


@given(st.lists(st.text(alphabet="ab \n"), min_size=2, max_size=2))
def test_sections_alone_in_their_order_have_the_format(inner: list[str]) -> None:
    think, answer = inner

    assert has_sections(f"<think>{think}</think>\n<answer>{answer}</answer>\n", ("think", "answer"))
    assert not has_sections(f"<answer>{answer}</answer><think>{think}</think>", ("think", "answer"))
    assert not has_sections(f"So: <think>{think}</think><answer>{answer}</answer>", ("think", "answer"))


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think>",
        "<think>a</think><answer>b</answer> more",
        "<think><think>a</think></think><answer>b</answer>",
        "<think>a</think><answer>b</answer><answer>c</answer>",
        "<think>a<answer>b</answer></think>",
        "<THINK>a</THINK><answer>b</answer>",
    ],
)
def test_other_texts_lack_the_format(text: str) -> None:
    assert score("format", text) == 0


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_json_writes_is_json(value: Any) -> None:
    assert score("json", json.dumps(value)) == 1
    assert score("json", f"```json\n{json.dumps(value)}\n```") == 1
    assert score("json", f"```json\n{json.dumps(value)}\n```", fenced=False) == 0


@pytest.mark.parametrize(
    ("text", "expected"), [('{"a": 1, "b": null}', 1), ('{"a": 1}', 0), ("[1, 2]", 0), ('"ab"', 0)]
)
def test_json_has_all_keys_that_are_wanted(text: str, expected: float) -> None:
    assert score("json", text, keys=("a", "b")) == expected


@pytest.mark.parametrize("text", ["", "NaN", "[Infinity]", "{'a': 1}", "{} {}", "So: {}"])
def test_what_the_standard_refuses_is_no_json(text: str) -> None:
    assert score("json", text) == 0


@given(st.text())
def test_an_answer_matches_itself_however_it_is_spaced(text: str) -> None:
    assert score("exact-match", f"  {text}\n", {"right": text}, column="right") == 1


def test_what_follows_a_mark_alone_may_count() -> None:
    gold = {"right": "He has 3 - 1 = 2.\n#### 2"}

    assert score("exact-match", "Two less one.\n####  2 ", gold, column="right", after="####") == 1
    assert score("exact-match", "2", gold, column="right") == 0
    assert score("exact-match", "PARIS", {"right": "Paris"}, column="right") == 1
    assert score("exact-match", "PARIS", {"right": "Paris"}, column="right", ignore_case=False) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "the prompts have no column 'right'; write keep = [\"right\"] in their source"),
        ({"right": None}, "the column 'right' holds nothing; write the right answer as text or as a number"),
        ({"right": ["4"]}, "the column 'right' holds a list; write the right answer as text or as a number"),
        ({"right": True}, "the column 'right' holds a bool; write the right answer as text or as a number"),
    ],
)
def test_a_row_without_a_right_answer_is_refused(row: Mapping[str, Any], message: str) -> None:
    with pytest.raises(DataError) as refused:
        score("exact-match", "4", row, column="right")

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("length", {}),
        ("length", {"target": 0}),
        ("length", {"target": "many"}),
        ("length", {"target": 5, "unit": "lines"}),
        ("overlong", {"longest": 10, "cache": 20}),
        ("regex", {"pattern": ""}),
        ("regex", {"pattern": None}),
        ("regex", {"pattern": "a" * 1001}),
        ("format", {"sections": []}),
        ("json", {"keys": "a"}),
        ("exact-match", {}),
        ("exact-match", {"column": 3}),
        ("math-answer", {}),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        REWARDS[name].settings(**settings)


def test_math_answer_says_what_to_install_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_rewards, "find_spec", lambda name: None)

    with pytest.raises(ValidationError) as refused:
        REWARDS["math-answer"].settings(column="right")

    assert str(refused.value.errors()[0]["ctx"]["error"]) == (
        "math-answer needs the package math-verify: pip install 'alignkit[math]'"
    )


@pytest.mark.parametrize(
    ("text", "right", "expected"),
    [
        ("So it is $\\boxed{\\frac{1}{2}}$.", "0.5", 1),
        ("The answer is 1,000.", 1000, 1),
        ("$1 + x^2$", "x^2+1", 1),
        ("It is 41.", "42", 0),
        ("", "42", 0),
        ("\\" * 30_000, "42", 0),
        ("\x00\ud800", "42", 0),
    ],
)
def test_a_result_is_right_where_it_is_equal(text: str, right: str | int, expected: float) -> None:
    pytest.importorskip("math_verify")

    assert score("math-answer", text, {"right": right}, column="right") == expected


@pytest.mark.parametrize("right", ["", " "])
def test_a_right_answer_that_is_no_mathematics_is_refused(right: str) -> None:
    pytest.importorskip("math_verify")

    with pytest.raises(DataError, match="cannot be read as mathematics; correct the row or leave it out"):
        score("math-answer", "4", {"right": right}, column="right")


RECIPE = """
[sources]
base = {{ policy = "builtin:tiny" }}
prompts = {{ prompts = "builtin:reviews" }}
rule = {{ reward = "function:{name}", settings = {settings} }}
[stage.align]
method = "grpo"
"""


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "regex",
            '{ pattern = "(" }',
            'settings.pattern: must be a regular expression (missing ) at position 1), and is "("',
        ),
        ("length", "{ taget = 10 }", "settings.target: must be given"),
        ("overlong", "{ longest = 9, cache = 10 }", "settings: cache must be at most longest"),
    ],
)
def test_a_recipe_with_a_wrong_rule_is_refused_by_its_plan(
    tmp_path: Path, name: str, settings: str, message: str
) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE.format(name=name, settings=settings), "utf-8")

    with pytest.raises(RecipeError) as refused:
        make_plan(tmp_path / "mine.toml", runs=tmp_path / "runs")

    assert f"mine.toml:5: source 'rule': {message}" in map(str, refused.value.problems)


def test_chance_does_not_look_at_the_answer_and_is_the_same_in_the_same_run() -> None:
    offered = REWARDS["random"]
    answers = [Answer("Why?", "so", True, {})] * 400

    scores = offered(answers, offered.settings(share=0.25))

    assert scores == offered(answers, offered.settings(share=0.25))
    assert sum(scores) / 400 == pytest.approx(0.25, abs=0.07)
