"""TOML as text: parse it safely, know the line of each key, and explain what its own messages leave unclear."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alignkit.errors import RecipeError

Keys = tuple[str, ...]
"""A place inside a recipe, such as ("stage", "align", "ppo", "kl")."""

DEEPEST = 16
"""Parts of a dotted key, in which tomllib takes quadratic time, and lists and tables in each other."""
MOST = 2000
"""Keys of a recipe; more is a mistake or an attack."""

_TOKEN = re.compile(
    r"""(?P<long>"{3}(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5})?|'{3}(?:[^']|'(?!''))*+(?:'{3,5})?)
    |   (?P<word>[A-Za-z0-9_+:-]++|"(?:[^"\\\n]|\\.)*+"?|'[^'\n]*+'?)
    |   (?P<comment>\#[^\n]*+)
    |   (?P<sign>[\n{}\[\],=.])""",
    re.VERBOSE | re.DOTALL,
)
"""Unclosed strings are taken to their end, so that the time is linear whatever the text is."""


class _Opened(NamedTuple):
    sign: str
    place: Keys
    """The key before it."""
    line: int


@dataclass
class _Scan:
    """How far a scan of the text has come."""

    line: int = 1
    table: Keys = ()
    """The [table] of this line."""
    place: Keys = ()
    """The last key that was read whole."""
    count: int = 0
    """How many those were."""
    parts: list[str] = field(default_factory=list)
    """The key that is being read."""
    is_key: bool = True
    is_header: bool = False
    is_array: bool = False
    """The header is one of `[[...]]`."""
    arrays: dict[Keys, int] = field(default_factory=dict)
    """How many tables each `[[...]]` has so far."""
    opened: list[_Opened] = field(default_factory=list)
    broken: int = 0
    """The first line that ends inside `{ }`."""


def parse(text: str, file: str) -> dict[str, Any]:
    """Parse a recipe's text. Raises RecipeError with line and column, quickly whatever the text is."""
    _refuse_excess(text, file)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        column = f":{found[2]}" if found else ""
        problem = re.sub(r" \(at .*\)$", "", str(error))
        raise RecipeError(f"not TOML ({problem})", f"{file}:{line}{column}", _advice(text, line)) from error
    except (RecursionError, ValueError) as error:
        problem = "not TOML that can be read (nested too deeply, or a number too long)"
        raise RecipeError(problem, file, "is it a recipe?") from error


def key_lines(text: str) -> dict[Keys, int]:
    """Return the line of each key of a valid text, in tables, dotted and in `{ }`, and of each table around it.

    The tables of a list, `[[expect]]`, are at `("expect", "0")` and so on.
    """
    lines: dict[Keys, int] = {}
    for scan in _scan(text):
        for size in range(1, len(scan.place) + 1):
            lines.setdefault(scan.place[:size], scan.line)
    return lines


def _refuse_excess(text: str, file: str) -> None:
    for scan in _scan(text):
        if len(scan.parts) > DEEPEST:
            raise RecipeError(f"a key has more than {DEEPEST} parts", f"{file}:{scan.line}", "shorten it")
        if len(scan.opened) > DEEPEST:
            problem = f"lists and tables stand in each other more than {DEEPEST} deep"
            raise RecipeError(problem, f"{file}:{scan.line}", "is it a recipe?")
        if scan.count > MOST:
            raise RecipeError(f"the recipe has more than {MOST} keys", f"{file}:{scan.line}", "is it a recipe?")


def _advice(text: str, line: int) -> str:
    """Explain a line break inside `{ }`, which TOML's own message leaves unclear."""
    broken = next((scan.broken for scan in _scan(text) if scan.broken), 0)
    if broken and broken in (line - 1, line):
        return "a table in { } must stand on one line; use a [table] of its own for more lines"
    return "correct the line"


def _scan(text: str) -> Iterator[_Scan]:
    """Walk through the text; give the state after each part of a key and each bracket that opens, and at the end."""
    scan = _Scan()
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "sign":
            _take_sign(scan, token[0])
        scan.line += token[0].count("\n")
        if token.lastgroup == "word" and scan.is_key:
            scan.parts.append(token[0].strip("\"'"))
        if token.lastgroup == "word" or token[0] in "=[]{":
            yield scan
    yield scan


def _take_sign(scan: _Scan, sign: str) -> None:
    if sign == "\n":
        _end_line(scan)
    elif sign == "[" and scan.is_key and not scan.opened:
        scan.is_array, scan.is_header = scan.is_header, True
    elif sign == "]" and scan.is_header:
        scan.table = _numbered(scan, tuple(scan.parts)) if scan.is_array else tuple(scan.parts)
        _complete(scan, scan.table)
    elif sign == "=" and scan.is_key:
        _complete(scan, (scan.opened[-1].place if scan.opened else scan.table) + tuple(scan.parts))
    elif sign in "{[":
        scan.opened.append(_Opened(sign, scan.place, scan.line))
        scan.parts, scan.is_key = [], sign == "{"
    elif sign in "}]":
        del scan.opened[-1:]
        scan.is_key = False
    elif sign == ",":
        scan.parts, scan.is_key = [], bool(scan.opened) and scan.opened[-1].sign == "{"


def _numbered(scan: _Scan, name: Keys) -> Keys:
    """Return the place of the next table of a list."""
    number = scan.arrays[name] = scan.arrays.get(name, -1) + 1
    return (*name, str(number))


def _complete(scan: _Scan, place: Keys) -> None:
    scan.place, scan.is_key, scan.is_header, scan.is_array = place, False, False, False
    scan.count += 1


def _end_line(scan: _Scan) -> None:
    if scan.opened and scan.opened[-1].sign == "{":
        scan.broken = scan.broken or scan.line
    if not scan.opened:
        scan.parts, scan.is_key, scan.is_header, scan.is_array = [], True, False, False
