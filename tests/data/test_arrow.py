"""Rows of columnar stores are what they are in JSON Lines: no field of another row's structure is in them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet

from alignkit.contract.kinds import Demonstrations, Preferences, Prompts, Records
from alignkit.data.arrow import NullFields, rows_of_batches
from alignkit.errors import DataError
from alignkit.sources.audit import audit
from alignkit.sources.source import RecordOptions
from tests.data.test_records import put, records

Rows = Sequence[dict[str, Any]]


def in_parquet(table: pyarrow.Table) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def in_arrow_stream(table: pyarrow.Table) -> bytes:
    file = io.BytesIO()
    with ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def in_arrow_file(table: pyarrow.Table) -> bytes:
    file = io.BytesIO()
    with ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return file.getvalue()


STORES = {"a.parquet": in_parquet, "a.arrow": in_arrow_stream, "b.arrow": in_arrow_file}


def tool(name: str, *names: str) -> dict[str, Any]:
    properties = {name: {"type": "string"} for name in names}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def chat(name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        {"role": "user", "content": "where?"},
        {"role": "assistant", "tool_calls": [call], "content": ""},
        {"role": "tool", "content": "seen", "name": name},
        {"role": "assistant", "content": "there", "weight": 1},
    ]


LOOK, WEATHER = chat("look", {"thing": "door"}), chat("weather", {"city": "Bern"})


def pair(turns: list[dict[str, Any]]) -> dict[str, Any]:
    other = {"role": "assistant", "content": "no"}
    return {"prompt": turns[:1], "chosen": turns[1:], "rejected": [other]}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (
            Demonstrations,
            [
                {"messages": LOOK, "tools": [tool("look", "thing")], "facts": {"a": {"b": 1}}},
                {"messages": WEATHER, "tools": [tool("weather", "city", "unit")], "facts": {"a": {"c": [1]}}},
            ],
        ),
        (
            Preferences,
            [
                {**pair(LOOK), "tools": [tool("look", "thing")], "facts": {"x": 1}},
                {**pair(WEATHER), "tools": [tool("weather", "city")], "facts": {"y": None, "z": 2}},
            ],
        ),
        (
            Prompts,
            [
                {"prompt": LOOK[:3], "tools": [tool("look", "thing")], "facts": [{"x": 1}, {"y": 2}]},
                {"prompt": WEATHER[:3], "tools": [tool("weather", "city")], "facts": []},
            ],
        ),
    ],
)
def test_rows_with_structures_are_the_same_in_every_store(
    tmp_path: Path, kind: type[Records], rows: Rows, store: str
) -> None:
    in_lines = put(tmp_path, [without_nulls(row) for row in rows])
    stored = put(tmp_path, STORES[store](pyarrow.Table.from_pylist(list(rows))), store)

    read = list(records(kind, stored, keep=("facts",)).train())

    assert read == list(records(kind, in_lines, keep=("facts",)).train())
    assert "null" not in json.dumps(read)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def test_a_structure_that_is_null_itself_and_a_column_may_be_null() -> None:
    rows = [{"one": {"a": {"b": 1}}, "two": None}, {"one": {"c": 2}, "two": 3}, {"one": None, "two": None}]
    table = pyarrow.Table.from_pylist(rows)

    assert list(rows_of_batches(table.to_batches())) == rows


def test_what_is_stored_as_json_or_as_a_map_keeps_its_own_nulls() -> None:
    as_json = pyarrow.array(['{"a": null}', None, '"text"'], pyarrow.string())
    kind = pyarrow.map_(pyarrow.string(), pyarrow.int64())
    columns = {
        "json": pyarrow.ExtensionArray.from_storage(pyarrow.json_(), as_json),
        "map": pyarrow.array([[("a", None)], None, [("b", 1)]], kind),
    }

    assert list(rows_of_batches(pyarrow.table(columns).to_batches())) == [
        {"json": {"a": None}, "map": {"a": None}},
        {"json": None, "map": None},
        {"json": "text", "map": {"b": 1}},
    ]


def test_fields_without_a_value_in_any_row_are_known() -> None:
    rows: Rows = [{"x": {"a": 1, "b": None}, "y": [{"c": None}]}, {"x": {"a": None, "b": None}, "y": [{"c": None}]}]
    kind = pyarrow.schema(
        [
            ("x", pyarrow.struct([("a", pyarrow.int64()), ("b", pyarrow.int64())])),
            ("y", pyarrow.list_(pyarrow.struct([("c", pyarrow.int64())]))),
        ]
    )
    nulls = NullFields()

    list(rows_of_batches(pyarrow.Table.from_pylist(list(rows), kind).to_batches(), nulls))

    assert nulls.without_value() == ["x.b", "y[].c"]


def test_a_null_that_may_be_meant_is_told(tmp_path: Path) -> None:
    asked = {"type": "string", "default": None}
    one = tool("look", "thing")
    one["function"]["parameters"]["properties"]["thing"] = asked
    messages = [*chat("look", {"thing": "door", "unit": None}), {"role": "user", "content": "thanks", "name": None}]
    table = pyarrow.Table.from_pylist([{"messages": messages, "tools": [one], "facts": {"seen": None}}])
    path = put(tmp_path, in_parquet(table), "a.parquet")

    found = audit(records(Demonstrations, path, keep=("facts",)), RecordOptions())

    assert found.without_value == [
        "facts.seen",
        "messages[].tool_calls[].function.arguments.unit",
        "tools[].function.parameters.properties.thing.default",
    ]
    assert str(list(found.remarks())[1]) == (
        f"source 'mine': {', '.join(found.without_value)}: null in every row, and read as if not there, as columnar "
        "files fill up structures; write the rows as JSON Lines if a null is meant"
    )


@pytest.mark.parametrize(
    ("name", "problem"), [("a.arrow", "the file is damaged or cut off"), ("b.arrow", "not an Arrow file")]
)
def test_a_store_that_is_cut_off_is_refused(tmp_path: Path, name: str, problem: str) -> None:
    content = STORES[name](pyarrow.Table.from_pylist([{"prompt": "a" * 100}] * 100))
    path = put(tmp_path, content[: len(content) // 2], name)

    with pytest.raises(DataError, match=problem):
        list(records(Prompts, path).train())
