"""Rows in files: JSON Lines, JSON, CSV, TSV, Parquet, Arrow and plain text, each also packed by gzip or zstd.

Every reader yields `(place, row)`, where the place is `file:line` (or `file, row n`) for messages.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO, cast

from alignkit.data.arrow import NullFields, arrow_rows, parquet_rows
from alignkit.data.json_stream import UNREADABLE, JsonText, not_utf8
from alignkit.errors import DataError

Placed = Iterator[tuple[str, dict[str, Any]]]
Found = Iterator[tuple[str, dict[str, Any] | DataError]]
"""What stands at each place: a row, or why there is none. What follows can still be read."""

Columnar = Callable[[Path, BinaryIO | None, NullFields | None], Iterator[dict[str, Any]]]

csv.field_size_limit(1 << 30)


LONGEST_LINE = 128 * 2**20
"""Bytes; whoever has longer lines has lost line breaks, and reading one would take all memory."""


def rows_of(path: Path, unit: str = "paragraph") -> Placed:
    """Read a file's rows one after another; `unit` says what a row of a .txt file is: a paragraph or a line.

    Raises DataError with file and line where the file is not what its name says.
    """
    for place, row in found_in(path, unit):
        if isinstance(row, DataError):
            raise row
        yield place, row


def found_in(path: Path, unit: str = "paragraph", nulls: NullFields | None = None) -> Found:
    """Read a file's rows as `rows_of` does, and go on behind a line that holds none.

    `nulls` notes which fields of structures in a columnar file have values. Raises DataError where nothing behind a
    fault can be told.
    """
    try:
        refuse_pointer(path)
        with _open(path) as file:
            if not file.read(1):
                raise DataError("the file is empty", str(path), "give it rows, or take it out of the recipe")
        with _open(path) as file:
            rows = _reader(path, unit, nulls)(path, _in_utf8(path, file))
            if (first := next(rows, None)) is None:
                raise DataError("the file holds no rows", str(path), "give it rows, or take it out of the recipe")
            yield first
            yield from rows
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except FileNotFoundError as error:
        raise DataError("there is no such file", str(path), "check the address in the recipe") from error
    except OSError as error:
        if error.strerror is None:  # pyarrow says so of what it cannot unpack
            raise _damaged(path, error) from error
        raise DataError(f"the file cannot be read ({error.strerror})", str(path)) from error


POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path) -> None:
    """Raise DataError where git LFS has left a note of a file instead of the file."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise DataError("the file is a pointer of git LFS, not what it points to", str(path), "run: git lfs pull")


def _damaged(path: Path, error: Exception) -> DataError:
    kind = f"{PACKED[path.suffix.lower()]} file" if path.suffix.lower() in PACKED else "file"
    return DataError(f"the {kind} is damaged or cut off ({error})", str(path), "copy it again")


FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
COLUMNAR = {".parquet": "a Parquet", ".arrow": "an Arrow"}
PACKED = {".gz": "gzip", ".zst": "zstd"}


def format_of(path: Path) -> str:
    """Return the ending that says how to read a file, without .gz or .zst; empty where it is none of ours."""
    suffix = Path(path.stem).suffix if path.suffix.lower() in PACKED else path.suffix
    return suffix.lower() if suffix.lower() in FORMATS else ""


SIDECARS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files beside those of rows, in which `datasets` tells of a data set."""
ABOUT = re.compile(r"(readme|licen[cs]e|notice|requirements)\b.*\.txt", re.IGNORECASE)
"""Texts that tell of a folder."""


def files_in(folder: Path) -> list[Path]:
    """Find the files of rows in a folder and below; what is hidden or tells of the others is left out."""
    found = (path for path in folder.rglob("*") if path.is_file() and format_of(path))
    found = (path for path in found if path.name not in SIDECARS and not ABOUT.fullmatch(path.name))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def whole_path(file: Path) -> Path:
    """Return a file's whole path under its own name: what a link of the hub's cache points to has no ending."""
    return file.parent.resolve() / file.name


def is_pattern(address: str) -> bool:
    return any(sign in address for sign in "*?[")


def files_matching(pattern: Path, base: Path) -> list[Path]:
    """Find the files that match a pattern, which is absolute or begins at the base."""
    start = Path(pattern.anchor) if pattern.is_absolute() else base
    return [path for path in start.glob(str(pattern.relative_to(pattern.anchor))) if path.is_file()]


def _open(path: Path) -> BinaryIO:
    packed = PACKED.get(path.suffix.lower())
    if packed == "gzip":
        return cast("BinaryIO", gzip.open(path, "rb"))
    if packed == "zstd":
        import pyarrow

        return cast("BinaryIO", io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")))
    return path.open("rb")


UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""What a text in UTF-16 begins with."""


def _in_utf8(path: Path, file: BinaryIO) -> BinaryIO:
    """Return a table or text in UTF-16, as spreadsheets write them, in UTF-8; it is held in memory."""
    if format_of(path) not in (".csv", ".tsv", ".txt"):
        return file
    with _open(path) as again:
        if again.read(2) not in UTF_16:
            return file
    try:
        return io.BytesIO(file.read().decode("utf-16").encode())
    except UnicodeError as error:
        raise DataError(f"not UTF-16, as which it begins ({error})", str(path), "save it as UTF-8") from error


def _reader(path: Path, unit: str, nulls: NullFields | None) -> Callable[[Path, BinaryIO], Found]:
    form = format_of(path)
    if form == ".txt":
        return _paragraphs if unit == "paragraph" else _lines_of_text
    if form == ".json" and _holds_lines(path):
        return _json_lines
    if form == "":
        form = {b"{": ".jsonl", b"[": ".json"}.get(_first_sign(path), "")
    readers: dict[str, Callable[[Path, BinaryIO], Found]] = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json_array,
        ".csv": partial(_cells, sign=","),
        ".tsv": partial(_cells, sign="\t"),
        ".parquet": partial(_columnar, read=parquet_rows, nulls=nulls),
        ".arrow": partial(_columnar, read=arrow_rows, nulls=nulls),
    }
    try:
        return readers[form]
    except KeyError as error:
        endings = ", ".join(FORMATS)
        raise DataError("the file's ending is none that can be read", str(path), f"use one of {endings}") from error


def _first_sign(path: Path) -> bytes:
    """Return the first byte that is no white space, among the first few thousand."""
    with _open(path) as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]


def _holds_lines(path: Path) -> bool:
    """Return whether a file called JSON has an object on each line: its first line is one, and not all of it."""
    if _first_sign(path) != b"{":
        return False
    with _open(path) as file:
        first, second = file.readline(LONGEST_LINE), file.readline(LONGEST_LINE)
    try:
        return isinstance(json.loads(first), dict) and second.lstrip()[:1] == b"{"
    except (ValueError, RecursionError):
        return False


def _raw_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines. Raise DataError where one is longer than any row is."""
    for number in count(1):
        raw = file.readline(LONGEST_LINE)
        if not raw:
            return
        if len(raw) == LONGEST_LINE:
            problem = f"the line has {LONGEST_LINE // 2**20} MiB or more"
            raise DataError(problem, f"{path}:{number}", "write one row on each line, or a list of rows as .json")
        yield number, raw


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    for number, raw in _raw_lines(path, file):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(f"{path}:{number}", error) from error


def _json_lines(path: Path, file: BinaryIO) -> Found:
    name = str(path)
    for number, raw in _raw_lines(path, file):
        place = f"{name}:{number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if line.strip():
                yield place, _object(line, place)
        except UnicodeDecodeError as error:
            yield place, not_utf8(place, error)
        except DataError as error:
            yield place, error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        end = len(line.rstrip())
        place = f"column {min(error.pos, end) + 1}" + (", where the row ends" if error.pos >= end else "")
        problem = f"not JSON ({error.msg}, {place})"
        raise DataError(problem, where, "write one JSON object on each line") from error
    except (ValueError, RecursionError) as error:
        raise DataError(UNREADABLE, where, "correct the row or leave it out") from error
    return _checked(row, where)


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"the row is {_json_name(row)}, not an object", where, 'write rows such as {"prompt": "..."}')
    return row


def _json_name(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else "an object")


def _json_array(path: Path, file: BinaryIO) -> Found:
    """Read a list row by row. What follows a fault cannot be told."""
    text = JsonText(path, file)
    if text.sign() != "[":
        value = text.value()
        if text.sign():
            raise text.fault("Extra data")
        raise DataError(f"the file holds {_json_name(value)}, not a list of rows", str(path), "write [ {...}, ... ]")
    for number in count(1):
        text.skip()  # [ or ,
        if number == 1 and text.sign() == "]":
            break
        where, value = f"{path}, row {number}", text.value()
        try:
            yield where, _checked(value, where)
        except DataError as error:
            yield where, error
        if text.sign() == "]":
            break
        if text.sign() != ",":
            raise text.fault("Expecting ',' delimiter")
    text.skip()
    if text.sign():
        raise text.fault("Extra data")


def _cells(path: Path, file: BinaryIO, sign: str) -> Found:
    """Read a table in text, its cells parted by a sign, or by the one that parts the names in its first line."""
    lines = (line for _, line in _lines(path, file))
    first, before = next(lines, ""), 0
    if EXCEL_HINT.fullmatch(first.rstrip("\r\n")):
        first, before = next(lines, ""), 1
    reader = csv.DictReader(chain([first], lines), strict=True, delimiter=_separator(first, sign))
    try:
        for row in reader:
            where = f"{path}:{before + reader.line_num}"
            if None in row or None in row.values():
                problem = "the row has more or fewer cells than the first line names"
                yield where, DataError(problem, where, "put text that holds commas or line breaks in quotes")
            else:
                yield where, row
    except csv.Error as error:
        raise DataError(
            f"not CSV ({error})", f"{path}:{before + reader.reader.line_num}", "correct the line"
        ) from error


EXCEL_HINT = re.compile(r"sep=.", re.IGNORECASE)
"""What Excel reads in front of the names: which sign parts the cells."""
SEPARATORS = (",", ";", "\t", "|")
"""What parts cells: Excel writes semicolons where the comma is a decimal point."""


def _separator(line: str, usual: str) -> str:
    """Return what parts the names in the first line of a table: the sign that makes most, first the usual one."""
    return max((usual, *SEPARATORS), key=lambda sign: _count_cells(line, sign))


def _count_cells(line: str, sign: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=sign, strict=True), []))
    except csv.Error:
        return 0


def _columnar(path: Path, file: BinaryIO, read: Columnar, nulls: NullFields | None) -> Found:
    import pyarrow

    try:
        for number, row in enumerate(read(path, file if path.suffix.lower() in PACKED else None, nulls), start=1):
            yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        problem = f"not {COLUMNAR[format_of(path)]} file ({str(error).splitlines()[0]})"
        raise DataError(problem, str(path), "copy it again") from error


def _lines_of_text(path: Path, file: BinaryIO) -> Found:
    for number, line in _lines(path, file):
        if line.strip():
            yield f"{path}:{number}", {"text": line.rstrip("\r\n"), "prompt": line.rstrip("\r\n")}


def _paragraphs(path: Path, file: BinaryIO) -> Found:
    start, lines = 1, list[str]()
    for number, line in _lines(path, file):
        if line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield f"{path}:{start}", {"text": "".join(lines).rstrip("\r\n")}
            lines = []
    if lines:
        yield f"{path}:{start}", {"text": "".join(lines).rstrip("\r\n")}
