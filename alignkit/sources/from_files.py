"""Files by themselves as a source, for a look at data before there is a recipe."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.contract.kinds import SOURCE_KINDS, Artifact, Records
from alignkit.data.files import FORMATS, files_matching, format_of, is_pattern, rows_of, whole_path
from alignkit.data.formats import SHAPES
from alignkit.data.records import Part, is_meant, placed_rows
from alignkit.data.splits import files_of_split
from alignkit.errors import DataError, RecipeError, near_miss
from alignkit.sources.source import RecordOptions, Source

ORDER = ("preferences", "ratings", "demonstrations", "prompts", "text")
"""A file is of the first kind that its first row has the columns of, and what those must hold: more columns first."""


class RowFiles(NamedTuple):
    """Files of rows."""

    files: tuple[Path, ...] = ()
    splits: tuple[str, ...] = ()
    """The splits of their folder, where they are those of one."""


def files_at(what: str) -> RowFiles:
    """Find the files of rows that a path or a pattern names: one, those of a folder (its split `train`), or matches.

    None for a recipe, or where there is nothing that could be one. Raises DataError for a file that is not there, and
    for a folder without rows or without such a split.
    """
    path = Path(what)
    if path.suffix == ".toml":
        return RowFiles()
    if path.is_file():
        return RowFiles((whole_path(path),))
    if path.is_dir():
        files, splits = files_of_split(path, None, in_recipe=False)
        return RowFiles(tuple(_some(files, "the folder holds no file of rows", what)), splits)
    if is_pattern(what):
        files = sorted(map(whole_path, files_matching(path, Path())))
        return RowFiles(tuple(_some(files, "no file matches the pattern", what)))
    if format_of(path):
        raise DataError("there is no such file", what, "check its path")
    return RowFiles()


def source_at(what: str, kind: str | None, kinds: Mapping[str, type[Artifact]] = SOURCE_KINDS) -> Source:
    """Make a source of the files that a path or a pattern names. Raise DataError where there are none."""
    rows = files_at(what)
    if rows.files:
        return source_of(rows.files, Path(what).name, kind, rows.splits, kinds)
    if Path(what).suffix == ".toml":
        raise DataError("this is a recipe", what, f"look at it with: alignkit check {shlex.quote(what)}")
    raise DataError("there is no such file", what, "check its path")


def refuse_rows(what: str) -> None:
    """Refuse rows where a recipe is meant."""
    path = Path(what)
    if path.suffix != ".toml" and (path.is_dir() or is_pattern(what) or format_of(path)):
        remedy = f"look at them with: alignkit data {shlex.quote(what)}"
        raise RecipeError("these are rows, and no recipe", what, remedy)


def _some(files: list[Path], problem: str, what: str) -> list[Path]:
    """Return the files. Raise DataError where there is none."""
    if not files:
        raise DataError(problem, what, f"name files that end in {', '.join(FORMATS)}, each also with .gz or .zst")
    return files


def source_of(
    files: Sequence[Path],
    name: str,
    word: str | None = None,
    splits: Sequence[str] = (),
    kinds: Mapping[str, type[Artifact]] = SOURCE_KINDS,
) -> Source:
    """Make a source of files, of the kind that is named, one of `kinds`, else of the one that the first row tells.

    Raises RecipeError for a kind that there is not, and DataError where the first row is of none.
    """
    known = {name: kind for name, kind in kinds.items() if issubclass(kind, Records)}
    if word is not None and word not in known:
        raise RecipeError(
            f"there is no kind {word!r}", "--as", near_miss(word, list(known)) or f"use {', '.join(known)}"
        )
    found = word or next((name for name in ORDER if reads(files[0], known[name])), None)
    if found is None:
        _, row = next(rows_of(files[0]))  # raises what is wrong with the file itself
        remedy = "say what it holds with --as, or which columns are which in a recipe (sources.NAME.columns)"
        problem = f"the first row is in no format that is known; its columns are {', '.join(map(repr, row)) or 'none'}"
        raise DataError(problem, str(files[0]), remedy)
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    seen = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    more: dict[str, Any] = {"files": tuple(files), "splits": tuple(splits), "in_recipe": False}
    return Source(name, known[found], found, name, "files", RecordOptions(), seen, **more)


def write_fixed(source: Source, path: Path) -> tuple[int, int]:
    """Write a source's good rows, each once and with our columns, as JSON Lines; give how many, and how many not.

    Raises RecipeError where there is such a file already: nothing is ever written over.
    """
    records = source.artifact()
    assert isinstance(records, Records)
    kind, seen, left_out = type(records), set[int](), 0

    def bad(error: DataError, row: object) -> None:
        nonlocal left_out
        left_out += 1

    try:
        with path.open("x", encoding="utf-8") as file:
            for part in records.parts:
                for _, row in placed_rows(part, kind.__name__, kind.columns, bad):
                    line = json.dumps(row, ensure_ascii=False)
                    key = hash(line)
                    if key in seen:
                        left_out += 1
                    else:
                        seen.add(key)
                        file.write(line + "\n")
    except FileExistsError as error:
        raise RecipeError("there is such a file already", str(path), "give --fix another name") from error
    return len(seen), left_out


def reads(path: Path, kind: type[Records]) -> bool:
    """Return whether a file's first row is of a kind, by its columns and by what tells in its content."""
    part = Part(name=path.name, paths=(path,))
    return kind.__name__ in SHAPES and is_meant(part, kind.__name__, kind.columns)
