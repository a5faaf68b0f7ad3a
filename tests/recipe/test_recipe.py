"""Recipes as text: what is read, where it stands, and that nothing that is written into one does harm."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from planning import CHAIN, Desk, make_desk
from pydantic import field_validator, model_validator

from alignkit.contract.settings import LoRA, Settings
from alignkit.errors import AlignkitError, RecipeError, near_miss
from alignkit.recipe.packaged import find_recipe, packaged_recipes
from alignkit.recipe.recipe import LARGEST, read_recipe
from alignkit.recipe.toml import key_lines
from alignkit.recipe.validate import read_settings

PLACES = '''
name = "x"                       # a.b = 1
note = """
[not.a.table]
key = 1
"""
[stage.align]
method = "ppo"
ppo.kl.coef = 1
inputs.policies = [
  "a",  # [x]
  "b",
]
lora = { rank = 1, "y z" = { x = [1, 2] } }
[stage."other"]
[[expect]]
figure = "a"
[[expect]]
figure = "b"
'''


def refusal(tmp_path: Path, content: str | bytes, overrides: dict[str, Any] | None = None) -> str:
    path = tmp_path / "r.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError) as raised:
        read_recipe(path, overrides)
    return str(raised.value)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    return make_desk(tmp_path)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (2, "name"),
        (7, "stage.align"),
        (8, "stage.align.method"),
        (9, "stage.align.ppo"),
        (9, "stage.align.ppo.kl.coef"),
        (10, "stage.align.inputs.policies"),
        (17, "expect.0.figure"),
        (19, "expect.1.figure"),
        (14, "stage.align.lora"),
        (14, "stage.align.lora.y z.x"),
        (15, "stage.other"),
    ],
)
def test_the_line_of_a_key_is_known(line: int, key: str) -> None:
    assert key_lines(PLACES)[tuple(key.split("."))] == line


def test_text_that_looks_like_keys_is_none() -> None:
    keys = {".".join(key) for key in key_lines(PLACES)}

    assert not {"not", "key", "a", "a.b", "x", "stage.align.inputs.x"} & keys


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = ", "r.toml:1: not TOML (Invalid value); correct the line"),
        ("a = 1\nb = = 2", "r.toml:2:5: not TOML (Invalid value); correct the line"),
        (
            "x = { a = 1,\n  b = 2 }",
            "r.toml:1:13: not TOML (Invalid initial character for a key part); "
            "a table in { } must stand on one line; use a [table] of its own for more lines",
        ),
        (
            '[s]\nx = { a = "}", b = [\n1], # {\n  c = 2 }',
            "r.toml:3:5: not TOML (Invalid initial character for a key part); "
            "a table in { } must stand on one line; use a [table] of its own for more lines",
        ),
        (b"a = 1\nb = '\xff'", "r.toml:2: the recipe is not UTF-8; save it as UTF-8"),
        ("a." * 20 + "b = 1", "r.toml:1: a key has more than 16 parts; shorten it"),
        ("x = 0x" + "f" * 5000, "r.toml: a whole number has more than 64 bits; write a smaller one"),
        (
            "x = " + "9" * 5000,
            "r.toml: not TOML that can be read (nested too deeply, or a number too long); is it a recipe?",
        ),
        (
            "x = 1\ny = [\n" + "[" * 90_000,
            "r.toml:3: lists and tables stand in each other more than 16 deep; is it a recipe?",
        ),
        ("a = 1\n" * 6000, "r.toml:2001: the recipe has more than 2000 keys; is it a recipe?"),
    ],
)
def test_what_is_not_toml_is_refused_with_its_place(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert refusal(tmp_path, content) == message


def test_a_recipe_that_is_too_large_is_refused(tmp_path: Path) -> None:
    message = f"{tmp_path / 'r.toml'}: the recipe has more than 262144 bytes; is it a recipe?"

    assert refusal(tmp_path, b"#" * (LARGEST + 1)) == message


def test_dots_in_comments_texts_and_numbers_are_no_long_keys(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f"# {'.' * 40}\ndefaults.x = ['a{'.a' * 40}', 1.5]\n[stage.first]\n")

    assert read_recipe(path).errors == ()


@pytest.mark.parametrize("value", ["\udcff", {"a": ["\ud800"]}, {"\ud800": 1}])
def test_an_override_that_is_no_text_is_refused(desk: Desk, value: Any) -> None:
    message = "--set seed: a key or value is not UTF-8; type it anew"

    assert message in desk.problems(CHAIN, {"seed": value})
    assert desk.problems(CHAIN, {"\udcff": 1}) == ["--set \\udcff: a key or value is not UTF-8; type it anew"]


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b'\xef\xbb\xbfseed = 3\r\n[stage.first]\r\nmethod = "tune"\r\n')

    recipe = read_recipe(path)

    assert (recipe.seed, dict(recipe.stages), recipe.where("stage", "first", "method")) == (
        3,
        {"first": {"method": "tune"}},
        "r.toml:3",
    )


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_recipe_or_a_recipe_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(content)

    try:
        errors = read_recipe(path).errors
    except RecipeError:
        return

    assert all(isinstance(error, RecipeError) for error in errors)


WORDS = st.sampled_from(
    ["first", "align", "base", "demos", "tune", "lift", "rate", "inputs", "policy", "gates", "kl", "max", "seed",
     "method", "lora", "stage", "sources", "defaults", "result", "requires", "name", "hf:a/b", "model", "x", ""]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sets=st.dictionaries(st.lists(WORDS, min_size=1, max_size=4).map(".".join), VALUES, max_size=4))
def test_any_overrides_make_a_plan_or_an_error_of_ours(desk: Desk, sets: dict[str, Any]) -> None:
    with suppress(AlignkitError):
        desk.plan(CHAIN, sets)


def test_a_recipe_is_found_by_its_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert find_recipe("rlhf.toml") == find_recipe("rlhf") == packaged_recipes()["rlhf"]


def test_a_file_comes_before_the_packaged_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rlhf.toml").write_text("")

    assert find_recipe("rlhf.toml") == tmp_path / "rlhf.toml"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rlfh.toml", "rlfh.toml: there is no such recipe; did you mean 'rlhf'?"),
        ("mine/rlhf.toml", "mine/rlhf.toml: there is no such recipe; did you mean 'rlhf'?"),
        (".", ".: this is a folder, not a recipe; give the .toml file"),
        ("x" * 300, f"{'x' * 60}...: this is no path of a recipe (File name too long)"),
    ],
)
def test_a_recipe_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(RecipeError) as raised:
        find_recipe(name)

    assert str(raised.value) == message


def test_an_override_is_where_its_mistake_stands(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[stage.align]\nmethod = 'ppo'\nppo.x = 1\n")

    recipe = read_recipe(path, {"align.ppo.x": "2", "align.lora": "{ rank = 3 }"})

    assert [recipe.where("stage", "align", *keys) for keys in ((), ("ppo", "x"), ("ppo", "y"), ("lora", "rank"))] == [
        "r.toml:1",
        "--set align.ppo.x",
        "r.toml:3",
        "--set align.lora",
    ]


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("ppp", ["ppo"], "did you mean 'ppo'?"),
        ("smae", ["same"], "did you mean 'same'?"),
        ("sam", ["same"], "did you mean 'same'?"),
        ("samee", ["same"], "did you mean 'same'?"),
        ("learning_rat3e", ["batch", "learning_rate"], "did you mean 'learning_rate'?"),
        ("beta", ["rate", "batch"], ""),
        ("", ["a"], ""),
    ],
)
def test_a_slip_of_the_hand_is_recognised(word: str, known: list[str], hint: str) -> None:
    assert near_miss(word, known) == hint


class Span(Settings):
    """Settings with rules of their own."""

    start: int
    end: int = 9
    step: float = 1
    edges: Literal["open"] | LoRA = "open"
    name: str = ""

    @field_validator("step")
    @classmethod
    def _goes_on(cls, step: float) -> float:
        if step <= 0:
            raise ValueError("a span goes on")
        return step

    @model_validator(mode="after")
    def _ends(self) -> "Span":
        if self.end < self.start:
            raise ValueError("a span ends after it starts")
        return self


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "r.toml:start: start: must be given"),
        ({"start": 3, "step": -1}, "r.toml:step: step: a span goes on, and is -1"),
        ({"start": 3, "end": 2}, "r.toml:: : a span ends after it starts"),
        (
            {"start": 3, "edges": {"rank": -1}, "name": 4},
            "r.toml:edges.rank: edges.rank: must be greater than 0, and is -1\n"
            "r.toml:name: name: must be text, and is 4",
        ),
        ({"start": {"a": 1}}, 'r.toml:start: start: must be a whole number, and is {"a": 1}'),
        ({"start": "größer"}, 'r.toml:start: start: must be a whole number, and is "größer"'),
        ({"start": "x" * 58}, f'r.toml:start: start: must be a whole number, and is "{"x" * 58}"'),
        ({"start": "x" * 59}, f'r.toml:start: start: must be a whole number, and is "{"x" * 56}...'),
    ],
)
def test_settings_that_break_a_rule_are_told_with_their_value(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        read_settings(Span, given, lambda keys: (f"r.toml:{'.'.join(keys)}", ".".join(keys)))

    assert str(raised.value) == message
