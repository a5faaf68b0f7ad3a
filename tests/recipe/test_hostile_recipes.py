"""Recipes that were written to do harm, or by a broken tool, are refused at once, with a line and no traceback."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from alignkit.errors import AlignkitError
from alignkit.plan.planner import make_plan

START = '[sources]\nbase = { policy = "builtin:tiny" }\ncorpus = { text = "builtin:reviews" }\n'
STAGE = '[stage.pretrain]\nmethod = "clm"\n'
HOSTILE = {
    "five megabytes": START + "# " + "x" * 5_000_000,
    "a long number": START + STAGE + "clm.batch = " + "9" * 250_000,
    "a long hexadecimal number": START + STAGE + "clm.batch = 0x" + "f" * 250_000,
    "lists in lists": START + STAGE + "clm.batch = " + "[" * 120_000 + "]" * 120_000,
    "lists in lists that never end": START + STAGE + "clm.batch = " + "[" * 250_000,
    "tables in tables": START + STAGE + "clm.batch = " + "{a = " * 40_000 + "1" + "}" * 40_000,
    "brackets": "[" * 262_000,
    "dotted keys": START + STAGE + ".".join("a" * 125_000) + " = 1",
    "a dotted key without a value": "a." * 131_000,
    "a dotted quoted key": '"a".' * 65_000,
    "a dotted header": START + "[" + ".".join("a" * 125_000) + "]",
    "many keys": "".join(f"a{n} = 1\n" for n in range(20_000)),
    "many stages": START + "".join(f"[stage.s{n}]\nmethod = 'clm'\n" for n in range(6000)),
    "as many stages as there may be": START + "".join(f"[stage.s{n}]\n" for n in range(1990)),
    "many sources": "[sources]\n" + "".join(f"s{n} = {{ text = 'builtin:reviews' }}\n" for n in range(6000)),
    "as many sources as there may be": STAGE + "".join(f"[sources.s{n}]\n" for n in range(1990)),
    "unknown settings": START + STAGE + "".join(f"clm.a{n} = 1\n" for n in range(1980)),
    "unknown keys": START + STAGE + "".join(f"a{n} = 1\n" for n in range(1980)),
    "many results": "result = [" + "'a'," * 60_000 + "]\n" + START + STAGE,
    "many inputs": START + STAGE + "inputs.policy = [" + "'a'," * 60_000 + "]",
    "a long name": START + f"[stage.{'x' * 250_000}]\nmethod = 'clm'\n",
    "a long method": START + f"[stage.a]\nmethod = '{'a' * 250_000}'",
    "a NUL": START + STAGE + 'clm.batch = "\x00"',
    "no TOML": "\x7fELF" + "\x01" * 1000,
    "no finite number": START + STAGE + "clm.learning_rate = inf",
    "a date": START + STAGE + "clm.batch = 1979-05-27",
    "a time for a method": START + "[stage.a]\nmethod = 07:32:00",
    "a huge exponent": START + STAGE + "clm.learning_rate = 1e999999999",
    "quotes that never end": START + STAGE + 'method = """' + "x" * 250_000,
    "quotes": '"' * 262_000,
    "quotes in long strings": 'x = """' + 'a""' * 87_000,
    "escaped quotes": '"\\' * 131_000,
}
"""None may take a second; `pytest tests/recipe/test_hostile_recipes.py --durations=5` tells, and decides nothing."""


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_recipe_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(text, "utf-8")

    with pytest.raises(AlignkitError) as refused:
        make_plan(file, runs=tmp_path / "runs")

    assert all(len(str(problem)) < 1000 for problem in refused.value.problems)


VALUES: Any = st.recursive(
    st.one_of(
        st.integers(),
        st.floats(),
        st.booleans(),
        st.text(max_size=20),
        st.sampled_from(["builtin:tiny", "hf:", "../..", "/dev/zero", "function:", "judge:", "{{ 7 * 7 }}", "\ud800"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["lora", "batch", "rank", "policy", "text", "held_out", "min", "x"]), inner),
    ),
    max_leaves=6,
)
KEYS = ("pretrain.method", "pretrain.clm.batch", "pretrain.lora", "pretrain.inputs.policy", "pretrain.gates.x.min")
MORE = ("corpus.held_out", "corpus.rows", "corpus.columns", "base.policy", "seed", "name", "defaults.lora", "result")


def planned(file: Path, changes: dict[str, Any]) -> bool:
    """Tell whether there is a plan; anything but an AlignkitError is passed on."""
    with suppress(AlignkitError):
        return bool(make_plan(file, set=changes, runs=file.parent / "runs").stages)
    return False


@given(changes=st.dictionaries(st.sampled_from(KEYS + MORE), VALUES, max_size=4))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_set_gives_a_plan_or_a_reason(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = tmp_path / "r.toml"
    file.write_text(START + STAGE, "utf-8")

    assert planned(file, changes) in (True, False)


@given(text=st.text(alphabet="[]{}=.,\"'\n #\\abc019_-", max_size=200))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_file_gives_a_plan_or_a_reason(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(START + STAGE + text, "utf-8")

    assert planned(file, {}) in (True, False)
