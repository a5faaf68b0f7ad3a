"""Plain text for people: tables that fit their width, numbers, durations and sizes in words."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import floor, isfinite, log10
from pathlib import Path
from textwrap import wrap
from typing import Any, TextIO

NARROWEST_LAST_COLUMN = 24
MOST = 300
"""Characters of a line that another program has printed."""


def writable(value: Any) -> Any:
    """Return a value whose texts UTF-8 can write: half a character, as broken file names have, becomes its escape."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {writable(key): writable(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(writable, value))
    return value


def last_line(file: Path) -> str:
    """Return the last line of a file that somebody prints to, which mostly says why it ended; empty where there is
    none."""
    with suppress(OSError):
        lines = file.read_text("utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip()[:MOST] if lines else ""
    return ""


def table(rows: Sequence[Sequence[str]], width: int | None, head: Sequence[str] = ()) -> list[str]:
    """Set rows of equal length in columns, the last one wrapped; no line is longer than `width`.

    Where the columns before the last leave it too little room, each row becomes a block: its first cell, then the
    others below it with their heads. `width` None means that lines may be of any length. The last cell may have lines
    of its own; the others should fit the width.
    """
    if not rows:
        return []
    lines = [*([head] if head else []), *rows]
    sizes = [max(len(piece) for row in lines for piece in row[i].split("\n")) for i in range(len(rows[0]))]
    room = None if width is None else width - sum(size + 2 for size in sizes[:-1])
    if room is not None and room < min(sizes[-1], NARROWEST_LAST_COLUMN):
        return [line for row in rows for line in _block(row, width or 0, head)]
    return [line for row in lines for line in _line(row, sizes, room)]


def _line(row: Sequence[str], sizes: Sequence[int], room: int | None) -> list[str]:
    start = "".join(cell.ljust(size + 2) for cell, size in zip(row[:-1], sizes, strict=False))
    pieces = [piece for part in row[-1].split("\n") for piece in ([part] if room is None else wrap(part, room) or [""])]
    return [f"{start}{pieces[0]}".rstrip(), *(" " * len(start) + piece for piece in pieces[1:])]


def _block(row: Sequence[str], width: int, head: Sequence[str]) -> list[str]:
    heads = [f"{word}: " if word else "" for word in head] or [""] * len(row)
    cells = [f"{word}{cell}" for word, cell in zip(heads[1:], row[1:], strict=True) if cell]
    return [
        *wrap(row[0], width),
        *(line for cell in cells for part in cell.split("\n") for line in _indented(part, width)),
    ]


def _indented(text: str, width: int) -> list[str]:
    return wrap(text, width, initial_indent="  ", subsequent_indent="    ")


def plain(text: str) -> str:
    """Write text so that nothing in it moves the cursor, be it a file's name, a recipe's or an endpoint's text."""
    return "".join(char if char == "\n" or char.isprintable() else repr(char)[1:-1] for char in text)


def line_width(file: TextIO) -> int | None:
    """Return how long a line may be: the terminal's width or COLUMNS; None for a pipe or a file: no wrapping."""
    if file.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return shutil.get_terminal_size().columns
    return None


def short(path: Path, base: Path) -> str:
    """Write a path relative to `base` where it lies below."""
    return str(path.relative_to(base) if path.is_relative_to(base) else path)


def number(value: float | None) -> str:
    """Write a number with as many digits as people read: four that count, thousands as 12.3k."""
    if value is None:
        return "-"
    if not isfinite(value):
        return str(value)
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.3e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"


def give_or_take(value: float, half: float) -> str:
    """Write a value with the digits that its interval leaves, four behind the point at most: `0.803 ± 0.052`."""
    if half <= 0:
        return f"{number(value)} ± 0"
    digits = min(4, max(0, 1 - floor(log10(half))))
    return f"{value:.{digits}f} ± {half:.{digits}f}"


def duration(seconds: float) -> str:
    """Write a duration: `4.2 s`, `41 s`, `3 min 20 s`, `1 h 02 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Write a number of bytes."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
