"""A file by itself as a source, for a look at data before there is a recipe."""

import hashlib
import json
from pathlib import Path

from alignkit.contract.files import rows_of
from alignkit.contract.kinds import SOURCE_KINDS, Records
from alignkit.contract.records import Part, format_of_part, placed_rows
from alignkit.contract.shapes import SHAPES
from alignkit.errors import DataError, RecipeError, near_miss
from alignkit.plan.source import RecordOptions, Source

ORDER = ("preferences", "ratings", "demonstrations", "prompts", "text")
"""A file is of the first kind whose columns it has: the more columns, the earlier."""


def source_of(path: Path, word: str | None = None) -> Source:
    """Make a source of a file, of the kind that is named, else of the one that its first row tells.

    Raises RecipeError for a kind that there is not, and DataError where the first row is of none.
    """
    kinds = {name: kind for name, kind in SOURCE_KINDS.items() if issubclass(kind, Records)}
    if word is not None and word not in kinds:
        raise RecipeError(
            f"there is no kind {word!r}", "--as", near_miss(word, list(kinds)) or f"use {', '.join(kinds)}"
        )
    found = word or next((name for name in ORDER if _reads(path, kinds[name])), None)
    if found is None:
        next(rows_of(path))  # raises what is wrong with the file itself
        remedy = "say what it holds with --as, or which columns are which in a recipe (sources.NAME.columns)"
        raise DataError("the first row is in no format that is known", str(path), remedy)
    stamp = path.stat()
    seen = hashlib.sha256(f"{path.resolve()} {stamp.st_size} {stamp.st_mtime_ns}".encode()).hexdigest()
    files = (path.resolve(),)
    return Source(path.name, kinds[found], found, str(path), "files", RecordOptions(), seen, files)


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


def _reads(path: Path, kind: type[Records]) -> bool:
    part = Part(name=path.name, paths=(path,))
    return kind.__name__ in SHAPES and format_of_part(part, kind.__name__, kind.columns) is not None
