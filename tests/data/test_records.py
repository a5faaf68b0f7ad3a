"""Records: every format is read the same, rows fall on the same side everywhere, and a bad row is named by its line."""

import csv
import gzip
import io
import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from alignkit.contract.kinds import Demonstrations, Preferences, Prompts, Ratings, Records, Text
from alignkit.data import files, json_stream
from alignkit.data.files import FORMATS, rows_of
from alignkit.data.records import Part, Record, key_of, on_held_out_side
from alignkit.data.values import with_prompt
from alignkit.errors import DataError

PAIRS = [
    {"prompt": 'Say "hi", please', "chosen": "hi\nthere", "rejected": "no"},
    {"prompt": "Zähl bis 3 🙂", "chosen": "1, 2, 3", "rejected": "drei"},
]


def in_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def in_json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return json.dumps(rows).encode()


def in_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def in_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()


WRITERS: dict[str, Callable[[Sequence[Mapping[str, Any]]], bytes]] = {
    ".jsonl": in_jsonl,
    ".json": in_json,
    ".csv": in_csv,
    ".parquet": in_parquet,
}


def records(kind: type[Records], *paths: Path, **options: Any) -> Records:
    part = Part.model_validate({"name": "mine", "paths": paths, "held_out": 0.0, **options})
    return kind(name="mine", fingerprint="0", path=Path(), parts=(part,))


def put(folder: Path, content: bytes | Sequence[Mapping[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else in_jsonl(content))
    return path


def refusal(folder: Path, kind: type[Records], path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        list(records(kind, path, **options).train())
    return str(raised.value).replace(str(folder), "FOLDER")


# Places


def test_a_row_knows_its_place_and_whether_its_source_skips_bad_rows(tmp_path: Path) -> None:
    path = put(tmp_path, [{"text": "a"}, {"text": "b"}])

    first, second = records(Text, path, skip=True).train()

    assert (first.place, first.skip, second.place) == (f"{path}:1", True, f"{path}:2")
    assert not next(records(Text, path).train()).skip


def test_a_row_is_a_dictionary_to_everything_else() -> None:
    row = Record.at("rows.jsonl:3", {"text": "a"}, skip=True)

    unpickled = pickle.loads(pickle.dumps(row))

    assert (row, json.dumps(row)) == ({"text": "a"}, '{"text": "a"}')
    assert (unpickled, unpickled.place, unpickled.skip) == (row, "rows.jsonl:3", True)


def test_other_values_of_a_row_stand_at_its_place() -> None:
    row = Record.at("rows.jsonl:3", {"text": "a"}, skip=True)

    other = row.with_values({**row, "text": "b"})

    assert (other, other.place, other.skip) == ({"text": "b"}, "rows.jsonl:3", True)


# Formats


def zstd(content: bytes) -> bytes:
    packed: bytes = pyarrow.Codec("zstd").compress(content, asbytes=True)
    return packed


PACKERS: Mapping[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str, packed: str) -> None:
    path = tmp_path / f"rows{ending}{packed}"
    path.write_bytes(PACKERS[packed](WRITERS[ending](PAIRS)))

    assert list(records(Preferences, path).train()) == PAIRS


@pytest.mark.parametrize("name", ["rows.ndjson", "rows.json", "rows", "rows.data", "rows.data.gz", "2024.11"])
def test_json_lines_are_read_under_any_name(tmp_path: Path, name: str) -> None:
    content = in_jsonl(PAIRS)

    path = put(tmp_path, gzip.compress(content) if name.endswith(".gz") else content, name)

    assert list(records(Preferences, path).train()) == PAIRS


TABLE = [{"prompt": "one; two", "completion": "a, b"}, {"prompt": "c", "completion": 'd "e"'}]


def in_table(sign: str, line: str = "\r\n") -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["prompt", "completion"], delimiter=sign, lineterminator=line)
    writer.writeheader()
    writer.writerows(TABLE)
    return file.getvalue()


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
def test_a_table_is_read_as_a_spreadsheet_writes_it(tmp_path: Path, sign: str, encoding: str, ending: str) -> None:
    content = in_table(sign).encode(encoding)

    path = put(tmp_path, gzip.compress(content) if ending.endswith(".gz") else content, f"rows{ending}")

    assert list(records(Demonstrations, path).train()) == TABLE


def test_what_excel_reads_in_front_of_a_table_is_no_row_and_counts_as_a_line(tmp_path: Path) -> None:
    path = put(tmp_path, f"sep=;\r\n{in_table(';')}".encode("utf-8-sig"), "rows.csv")
    damaged = put(tmp_path, b"sep=;\r\nprompt;completion\r\na;b;c\r\n", "other.csv")

    assert list(records(Demonstrations, path).train()) == TABLE
    assert refusal(tmp_path, Demonstrations, damaged) == (
        "FOLDER/other.csv:3: the row has more or fewer cells than the first line names; put text that holds commas or "
        "line breaks in quotes"
    )


@pytest.mark.parametrize("names", ['"text","a; b; c"', "text", '"text"'])
def test_a_sign_within_a_name_parts_nothing(tmp_path: Path, names: str) -> None:
    path = put(tmp_path, f"{names}\n{'x,y' if ',' in names else 'x; y'}\n".encode(), "rows.csv")

    assert list(records(Text, path).train()) == [{"text": "x" if "," in names else "x; y"}]


def test_a_text_that_only_begins_as_utf_16_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, b"\xff\xfea", "rows.csv")

    assert refusal(tmp_path, Text, path) == (
        "FOLDER/rows.csv: not UTF-16, as which it begins ('utf-16-le' codec can't decode byte 0x61 in position 2: "
        "truncated data); save it as UTF-8"
    )


def test_a_list_is_read_under_any_name(tmp_path: Path) -> None:
    path = put(tmp_path, json.dumps(PAIRS, indent=1).encode(), "rows")

    assert list(records(Preferences, path).train()) == PAIRS


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_a_list_is_read_in_parts_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    rows = [{"text": 'Zähl 🙂 \\ " ]', "n": [1, 2.5e3, -1, True, None]}, {"text": "b" * 300, "n": 12}]
    path = put(tmp_path, b"\xef\xbb\xbf" + json.dumps(rows, indent=1, ensure_ascii=False).encode() + b"\n", "r.json")

    assert list(records(Text, path, keep=("n",)).train()) == rows


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "a"},\n{"text": "b"}\n{"text": "c"}]', "FOLDER/r.json:3: not JSON (Expecting ',' delimiter)"),
        (b'[{"text": "a"},\n{"text": "b"', "FOLDER/r.json:2: not JSON (Expecting ',' delimiter)"),
        (b'[{"text": "a"},\n{"text": "b', "FOLDER/r.json:2: not JSON (Unterminated string starting at)"),
        (b'[{"text": "a"},\n]', "FOLDER/r.json:2: not JSON (Expecting value)"),
        (b'[{"text": "a"}]\n\n{}', "FOLDER/r.json:3: not JSON (Extra data)"),
        (b'[{"text": "a"},\n{"text": "\xe4"}]', "FOLDER/r.json:2: not UTF-8 (byte 26 is 0xe4)"),
    ],
)
def test_a_list_that_breaks_off_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, content: bytes, message: str
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)

    assert refusal(tmp_path, Text, put(tmp_path, content, "r.json")).partition(";")[0] == message


def test_cells_may_be_parted_by_tabs(tmp_path: Path) -> None:
    path = put(tmp_path, b'prompt\tcompletion\nhi, you\t"a\tb"\n', "rows.tsv")

    assert list(records(Demonstrations, path).train()) == [{"prompt": "hi, you", "completion": "a\tb"}]


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "r.txt", "r.jsonl.gz"])
def test_a_pointer_of_git_lfs_is_refused(tmp_path: Path, name: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

    assert refusal(tmp_path, Text, put(tmp_path, pointer, name)) == (
        f"FOLDER/{name}: the file is a pointer of git LFS, not what it points to; run: git lfs pull"
    )


def test_cells_of_a_csv_file_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = put(tmp_path, b'id,text\r\n1,"one, two\r\nthree ""four"""\r\n2,five\r\n', "rows.csv")

    assert [row["text"] for row in records(Text, path).train()] == ['one, two\r\nthree "four"', "five"]


@pytest.mark.parametrize("packed", [False, True])
def test_plain_text_is_paragraphs_for_learning_and_lines_for_prompts(tmp_path: Path, packed: bool) -> None:
    content = b"\xef\xbb\xbfone\r\nline\r\n\r\n \r\ntwo\n"
    path = put(tmp_path, gzip.compress(content) if packed else content, f"t.txt{'.gz' if packed else ''}")

    text = [row["text"] for row in records(Text, path).train()]
    prompts = [row["prompt"] for row in records(Prompts, path).train()]

    assert (text, prompts) == (["one\r\nline", "two"], ["one", "line", "two"])


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_no_rows(tmp_path: Path) -> None:
    path = put(tmp_path, b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \t\n{"text": "b"}')

    assert list(records(Text, path).train()) == [{"text": "a"}, {"text": "b"}]


def test_files_follow_each_other(tmp_path: Path) -> None:
    paths = [put(tmp_path, [{"text": name}], f"{name}.jsonl") for name in "ba"]

    assert [row["text"] for row in records(Text, *paths).train()] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b"", "FOLDER/r.jsonl: the file is empty; give it rows, or take it out of the recipe"),
        ("r.jsonl.gz", b"", "FOLDER/r.jsonl.gz: the file is empty; give it rows, or take it out of the recipe"),
        ("r.jsonl", b"\n \n", "FOLDER/r.jsonl: the file holds no rows; give it rows, or take it out of the recipe"),
        ("r.json", b"[]", "FOLDER/r.json: the file holds no rows; give it rows, or take it out of the recipe"),
        ("r.csv", b"text\n", "FOLDER/r.csv: the file holds no rows; give it rows, or take it out of the recipe"),
        ("r.txt", b"\n\n", "FOLDER/r.txt: the file holds no rows; give it rows, or take it out of the recipe"),
        (
            "r.yaml",
            b"x",
            "FOLDER/r.yaml: the file's ending is none that can be read; use one of .jsonl, .ndjson, .json, .csv, "
            ".tsv, .parquet, .arrow, .txt",
        ),
        (
            "r.jsonl",
            b'{"text": "a"}\n{"text": "\xe4"}\n',
            "FOLDER/r.jsonl:2: not UTF-8 (byte 10 is 0xe4); save the file as UTF-8, for example with iconv",
        ),
        (
            "r.jsonl",
            '{"text": "a"}'.encode("utf-16"),
            "FOLDER/r.jsonl:1: not UTF-8 (byte 0 is 0xff); save the file as UTF-8, for example with iconv",
        ),
        (
            "r.txt",
            b"a\nb\n\xe4\n",
            "FOLDER/r.txt:3: not UTF-8 (byte 0 is 0xe4); save the file as UTF-8, for example with iconv",
        ),
        (
            "r.csv",
            b'text\n"a\nb"\n\xe4\n',
            "FOLDER/r.csv:4: not UTF-8 (byte 0 is 0xe4); save the file as UTF-8, for example with iconv",
        ),
        (
            "r.json",
            b'[\n{"text": "\xe4"}]',
            "FOLDER/r.json:2: not UTF-8 (byte 12 is 0xe4); save the file as UTF-8, for example with iconv",
        ),
        (
            "r.jsonl",
            b'{"text": "a"}\n{"text": \n',
            "FOLDER/r.jsonl:2: not JSON (Expecting value, column 9, where the row ends); "
            "write one JSON object on each line",
        ),
        (
            "r.jsonl",
            b'{"text": "a", "x": ' + b"[" * 100_000,
            "FOLDER/r.jsonl:1: not JSON that can be read (nested too deeply, or a number too long); correct the row or "
            "leave it out",
        ),
        (
            "r.jsonl",
            b'{"text": "a", "x": ' + b"9" * 5000 + b"}",
            "FOLDER/r.jsonl:1: not JSON that can be read (nested too deeply, or a number too long); correct the row or "
            "leave it out",
        ),
        (
            "r.jsonl",
            b'["a"]',
            'FOLDER/r.jsonl:1: the row is a list, not an object; write rows such as {"prompt": "..."}',
        ),
        (
            "r.jsonl",
            b"null",
            'FOLDER/r.jsonl:1: the row is null, not an object; write rows such as {"prompt": "..."}',
        ),
        (
            "r.json",
            b'[{"text": "a"}, 3]',
            'FOLDER/r.json, row 2: the row is a number, not an object; write rows such as {"prompt": "..."}',
        ),
        ("r.json", b'{"text": "a"}', "FOLDER/r.json: the file holds an object, not a list of rows; "
         "write [ {...}, ... ]"),
        (
            "r.json",
            b'{"text": "a"}\n["b"]',
            "FOLDER/r.json:2: not JSON (Extra data); name it .jsonl if each line is an object",
        ),
        ("r.json", b'[\n{"text": ]', "FOLDER/r.json:2: not JSON (Expecting value); correct the file"),
        (
            "r.csv",
            b"text,id\na,1,x\n",
            "FOLDER/r.csv:2: the row has more or fewer cells than the first line names; put text that holds commas or "
            "line breaks in quotes",
        ),
        (
            "r.csv",
            b"text,id\na,1\nb\n",
            "FOLDER/r.csv:3: the row has more or fewer cells than the first line names; put text that holds commas or "
            "line breaks in quotes",
        ),
        ("r.csv", b'text\n"a', "FOLDER/r.csv:2: not CSV (unexpected end of data); correct the line"),
        (
            "r.jsonl.gz",
            gzip.compress(in_jsonl([{"text": str(number)} for number in range(4000)]))[:2000],
            "FOLDER/r.jsonl.gz: the gzip file is damaged or cut off (Compressed file ended before the end-of-stream "
            "marker was reached); copy it again",
        ),
        (
            "r.jsonl.zst",
            zstd(in_jsonl([{"text": str(number)} for number in range(4000)]))[:2000],
            "FOLDER/r.jsonl.zst: the zstd file is damaged or cut off (Truncated compressed stream); copy it again",
        ),
        (
            "r.jsonl.gz",
            b'{"text": "a"}',
            "FOLDER/r.jsonl.gz: the gzip file is damaged or cut off (Not a gzipped file (b'{\"')); copy it again",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert refusal(tmp_path, Text, put(tmp_path, content, name)) == message


def test_a_parquet_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, Text, put(tmp_path, in_parquet([{"text": "a"}])[:-9], "r.parquet"))

    assert told.startswith("FOLDER/r.parquet: not a Parquet file (")
    assert told.endswith("; copy it again")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    message = "FOLDER/none.jsonl: there is no such file; check the address in the recipe"

    assert refusal(tmp_path, Text, tmp_path / "none.jsonl") == message


# Columns


def test_columns_are_renamed_and_others_kept(tmp_path: Path) -> None:
    path = put(tmp_path, [{"question": "a?", "answer": "a.", "source": "book", "id": 3}])

    rows = list(
        records(Demonstrations, path, columns={"prompt": "question", "completion": "answer"}, keep=("id",)).train()
    )

    assert rows == [{"id": 3, "prompt": "a?", "completion": "a."}]


@pytest.mark.parametrize(
    ("kind", "row", "options", "message"),
    [
        (
            Text,
            {"txt": "a"},
            {},
            'text need the columns text; the row has txt; say which column it is: sources.mine.columns.text = "..."',
        ),
        (
            Demonstrations,
            {"question": "a?", "answer": "a."},
            {"columns": {"prompt": "question"}},
            "demonstrations need the columns prompt + completion or messages or completion; the row has question, "
            'answer; say which column it is: sources.mine.columns.completion = "..."',
        ),
        (
            Demonstrations,
            {"query": "a?", "completion": "a."},
            {},
            "the row has completion, no prompt, and query besides; write sources.mine.columns.prompt = "
            '"query" if that is it, else columns.completion = "completion"',
        ),
        (
            Preferences,
            {"query": "a?", "chosen": "a", "rejected": "b"},
            {},
            "the row has chosen and rejected, no prompt, and query besides; write sources.mine.columns.prompt = "
            '"query" if that is it, else columns.chosen = "chosen"',
        ),
        (
            Demonstrations,
            {"prompt": "a?", "completion": "a."},
            {"columns": {"completion": "anwser"}},
            "sources.mine.columns.completion names 'anwser', which the row lacks; it has prompt, completion",
        ),
        (
            Prompts,
            {"prompt": "a?", "answer": "a."},
            {"keep": ("answr",)},
            "sources.mine.keep names 'answr', which the row lacks; it has prompt, answer; did you mean 'answer'?",
        ),
        (Text, {"text": None}, {}, "'text' must be text, and is None; correct the row or leave it out"),
        (Text, {"text": 3}, {}, "'text' must be text, and is 3; correct the row or leave it out"),
        (
            Text,
            {"text": ["a"] * 50},
            {},
            "'text' must be text, and is ['a', 'a', 'a', 'a', 'a', 'a', 'a', '...; correct the row or leave it out",
        ),
        (Prompts, {"prompt": True}, {}, "'prompt' must be text, and is True; correct the row or leave it out"),
        (
            Prompts,
            {"prompt": []},
            {},
            "'prompt' must be at least one message, and is []; correct the row or leave it out",
        ),
        (
            Demonstrations,
            {"messages": "hi"},
            {},
            "'messages' must be a list of messages, and is 'hi'; correct the row or leave it out",
        ),
        (
            Demonstrations,
            {"messages": [{"role": "user"}]},
            {},
            "'messages' must be messages such as {\"role\": \"user\", \"content\": \"...\"}, and is {'role': 'user'}; "
            "correct the row or leave it out",
        ),
        (
            Preferences,
            {"prompt": "a?", "chosen": [{"role": "assistant", "content": "a."}], "rejected": "b."},
            {},
            "'prompt' is messages and 'chosen' is messages and 'rejected' is text; make all of them text or all of "
            "them messages",
        ),
        (
            Text,
            {"text": "half \ud83d"},
            {},
            "'text' must be text in whole characters, and is 'half \\ud83d'; correct the row or leave it out",
        ),
        (
            Ratings,
            {"prompt": "a?", "completion": "a.", "rating": "good"},
            {},
            "'rating' must be a number, and is 'good'; correct the row or leave it out",
        ),
        (
            Ratings,
            {"prompt": "a?", "completion": "a.", "rating": float("nan")},
            {},
            "'rating' must be a number, and is nan; correct the row or leave it out",
        ),
        (
            Ratings,
            {"prompt": "a?", "completion": "a.", "label": 2},
            {},
            "'label' must be true or false, and is 2; correct the row or leave it out",
        ),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_file_and_line(
    tmp_path: Path, kind: type[Records], row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    path = put(tmp_path, json.dumps(row).encode())

    assert refusal(tmp_path, kind, path, **options) == f"FOLDER/rows.jsonl:1: {message}"


def test_a_set_of_columns_that_leaves_one_out_may_be_meant(tmp_path: Path) -> None:
    path = put(tmp_path, [{"text": "a review", "label": 1, "source": "imdb"}])

    rows = list(records(Demonstrations, path, columns={"completion": "text"}).train())

    assert rows == [{"prompt": "", "completion": "a review"}]


@pytest.mark.parametrize(("given", "read"), [("true", True), ("False", False), (1, True), (0, False), ("0", False)])
def test_labels_are_read_from_tables_too(tmp_path: Path, given: object, read: bool) -> None:
    path = put(tmp_path, [{"prompt": "a?", "completion": "a.", "label": given}])

    assert next(records(Ratings, path).train())["label"] is read


def test_ratings_are_read_from_tables_too(tmp_path: Path) -> None:
    path = put(tmp_path, b"prompt,completion,rating\na?,a.,4.5\n", "r.csv")

    assert next(records(Ratings, path).train())["rating"] == 4.5


# Slices


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({}, "abcdef"),
        ({"split": "[:2]"}, "ab"),
        ({"split": "[4:]"}, "ef"),
        ({"split": "[1:3]"}, "bc"),
        ({"split": "[3:1]"}, ""),
        ({"split": "[:]"}, "abcdef"),
        ({"rows": 2}, "ab"),
        ({"rows": 2, "split": "[3:]"}, "de"),
        ({"rows": 4, "split": "[1:3]"}, "bc"),
        ({"rows": 99}, "abcdef"),
    ],
)
def test_slices_count_over_all_files(tmp_path: Path, options: dict[str, Any], texts: str) -> None:
    paths = [put(tmp_path, [{"text": text} for text in part], f"{part}.jsonl") for part in ("abc", "def")]

    assert "".join(row["text"] for row in records(Text, *paths, **options).train()) == texts


def test_rows_after_a_slice_are_not_read(tmp_path: Path) -> None:
    path = put(tmp_path, b'{"text": "a"}\nrubbish\n')

    assert list(records(Text, path, rows=1).train()) == [{"text": "a"}]


# Sides


def chat(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


@settings(max_examples=50)
@given(prompt=st.text(min_size=1), share=st.floats(0, 1))
def test_a_prompt_is_on_one_side_in_every_form(prompt: str, share: float) -> None:
    system = {"role": "system", "content": "Be brief."}
    forms: list[dict[str, Any]] = [
        {"prompt": prompt},
        {"prompt": f"  {prompt.upper()}\n" if prompt.upper().casefold() == prompt.casefold() else prompt},
        {"prompt": chat(prompt)},
        {"prompt": prompt, "completion": "a."},
        {"prompt": prompt, "chosen": "a", "rejected": "b"},
        {"messages": [system, *chat(prompt, "a.", "and?", "b.")]},
        with_prompt({"chosen": chat(prompt, "a."), "rejected": chat(prompt, "b.")}),
    ]

    assert len({on_held_out_side(key_of(row), share) for row in forms}) == 1


def test_a_share_of_the_prompts_is_held_out() -> None:
    held = sum(on_held_out_side(f"prompt {number}", 0.05) for number in range(4000))

    assert 150 < held < 250


def test_a_larger_share_holds_out_all_of_a_smaller_one() -> None:
    prompts = [f"prompt {number}" for number in range(500)]
    small, large = ({p for p in prompts if on_held_out_side(p, share)} for share in (0.05, 0.2))

    assert small < large


def test_every_row_is_on_one_side(tmp_path: Path) -> None:
    path = put(tmp_path, [{"text": f"text {number}"} for number in range(200)])
    both = records(Text, path, held_out=0.3)

    train, held_out = ([row["text"] for row in side] for side in (both.train(), both.held_out()))

    assert sorted(train + held_out) == sorted(f"text {number}" for number in range(200))
    assert train
    assert held_out


def test_rows_that_say_so_are_held_out(tmp_path: Path) -> None:
    path = put(tmp_path, [{"prompt": "a", "held_out": True}, {"prompt": "b", "held_out": False}])
    both = records(Prompts, path, held_out=0.9)

    assert (list(both.train()), list(both.held_out())) == ([{"prompt": "b"}], [{"prompt": "a"}])


# Implicit prompts


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: yo", "rejected": "\n\nHuman: hi\n\nAssistant: yes"},
            "\n\nHuman: hi\n\nAssistant:",
            " yo",
            " yes",
        ),
        ({"chosen": "The food was good", "rejected": "The food was grim"}, "The food was ", "good", "grim"),
        ({"chosen": "Films:\ngood", "rejected": "Films:\ngrim"}, "Films:\n", "good", "grim"),
        ({"chosen": "good", "rejected": "bad"}, "", "good", "bad"),
        (
            {"chosen": chat("hi", "yo"), "rejected": chat("hi", "no")},
            chat("hi"),
            chat("hi", "yo")[1:],
            chat("hi", "no")[1:],
        ),
    ],
)
def test_what_both_answers_begin_with_is_the_prompt(
    row: dict[str, Any], prompt: object, chosen: object, rejected: object
) -> None:
    assert with_prompt(row) == {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_answers_that_share_nothing_are_told_apart_by_the_chosen_one() -> None:
    assert key_of(with_prompt({"chosen": "good", "rejected": "bad"})) == "good"


# Anything


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=200), ending=st.sampled_from([e for e in FORMATS if e != ".parquet"]))
def test_any_bytes_are_rows_or_a_data_error(tmp_path: Path, content: bytes, ending: str) -> None:
    path = put(tmp_path, content, f"rows{ending}")

    rows: list[Any] = []
    with suppress(DataError):
        rows.extend(row for _, row in rows_of(path))

    assert all(isinstance(row, dict) for row in rows)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "prompt", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
COLUMNS = ["prompt", "completion", "messages", "chosen", "rejected", "rating", "label", "text", "held_out", "x"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=4), min_size=1, max_size=4),
    kind=st.sampled_from([Text, Prompts, Demonstrations, Preferences, Ratings]),
)
def test_any_rows_are_what_the_kind_says_or_a_data_error(
    tmp_path: Path, rows: list[dict[str, Any]], kind: type[Records]
) -> None:
    path = put(tmp_path, json.dumps(rows).encode(), "rows.json")

    try:
        read = [*records(kind, path, held_out=0.5).train(), *records(kind, path, held_out=0.5).held_out()]
    except DataError:
        return

    assert len(read) == len(rows)
    assert all(set(kind.columns[0]) <= set(row) or any(set(c) <= set(row) for c in kind.columns) for row in read)


# The data folder's files that break loaders

NASTY = Path(os.environ.get("ALIGNKIT_DATA", "")) / "nasty"


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("real_zero_byte.jsonl", Demonstrations, "the file is empty"),
        ("real_hh_implicit_prompt.jsonl", Preferences, 200),
        ("real_nonstring_values.jsonl", Demonstrations, "demonstrations need the columns"),
        ("real_latin1.txt", Prompts, 149),
        ("real_sharegpt_conversations.json", Demonstrations, 60),
        ("real_content_parts.jsonl", Demonstrations, 60),
        ("mixed_schema.jsonl", Demonstrations, "the row is in the format 'messages', those before it in"),
        ("type_conflict.jsonl", Demonstrations, "'completion' must be messages"),
        ("deep_nesting.jsonl", Demonstrations, "nested too deeply"),
        ("big_int.jsonl", Demonstrations, 2),
        ("real_long_documents.jsonl.gz", Text, 3),
        ("utf16.jsonl", Preferences, "not UTF-8"),
        ("truncated.jsonl.gz", Demonstrations, "the gzip file is damaged or cut off"),
        ("blank_lines.jsonl", Demonstrations, 5),
        ("formats/rows.jsonl", Preferences, 20),
        ("formats/rows.json", Preferences, 20),
        ("formats/rows.jsonl.gz", Preferences, 20),
        ("formats/rows.csv", Preferences, 20),
        ("formats/rows.parquet", Preferences, 20),
    ],
)
def test_files_that_break_loaders(name: str, kind: type[Records], expected: int | str) -> None:
    read = records(kind, NASTY / name)

    if isinstance(expected, int):
        assert len(list(read.train())) == expected
    else:
        with pytest.raises(DataError, match=expected):
            list(read.train())


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.txt", "rows.csv"])
def test_a_line_that_has_no_end_is_refused_before_memory_is_full(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 2**20)
    line = '{"text": "' + "a" * 2**20 + '"}\n'
    (tmp_path / name).write_text('{"text": "short"}\n' + line)

    with pytest.raises(DataError) as refused:
        list(rows_of(tmp_path / name))

    problem = "the line has 1 MiB or more; write one row on each line, or a list of rows as .json"
    assert str(refused.value) == f"{tmp_path / name}:2: {problem}"
