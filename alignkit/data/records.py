"""Records: rows of several sources, with their columns named our way and split by their prompt."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from alignkit.data.arrow import NullFields
from alignkit.data.files import Found, found_in
from alignkit.data.formats import SHAPES, Columns, Shape, shape_of, taken, traits
from alignkit.data.hubsets import HubSet, rows_of_split
from alignkit.data.values import CONTENTS, FURTHER, Form, form_of, further_columns, row_values
from alignkit.errors import DataError, near_miss

Row = dict[str, Any]


class Record(dict[str, Any]):
    """A row that knows where it stands. It is equal to, pickled and written as the dictionary of its values.

    A copy by `{**row}` or `row | {...}` is a plain dictionary; `with_values` keeps the place.
    """

    place: str = ""
    """`file:line` or `file, row n`; empty where nothing is known of it."""
    skip: bool = False
    """Its source leaves bad rows out (`on_bad_rows = "skip"`)."""

    @classmethod
    def at(cls, place: str, values: Mapping[str, Any], *, skip: bool = False) -> "Record":
        """Return a row of these values that stands at a place."""
        record = cls(values)
        record.place, record.skip = place, skip
        return record

    def with_values(self, values: Mapping[str, Any]) -> "Record":
        """Return a row of other values that stands at the same place."""
        return Record.at(self.place, values, skip=self.skip)


class Part(BaseModel):
    """One source's share of an input: which files, and how to read them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The source's or the stage's name."""
    paths: tuple[Path, ...]
    """Files, in their order; for a hub data set the folder that was fetched."""
    hub: str | None = None
    """The name of the data set on the hub, `name` or `name:config`."""
    columns: Mapping[str, str] = {}
    """Our name of a column -> theirs."""
    format: str | None = None
    """The known format that the rows are in; None: told by their columns."""
    split: str | None = None
    """A hub split, with a slice: `train[:2000]`; of files a slice."""
    rows: int | None = None
    """Take so many rows from the start."""
    part: tuple[int, int] | None = None
    """Of the rows that are learnt take this part of so many, told by their prompts."""
    flip: float = 0.0
    """Of the pairs that are learnt exchange the two answers of this share, told by the hashes of their texts."""
    rated: tuple[float, float] | None = None
    """Of rows with a rating take those from the one to the other."""
    keep: tuple[str, ...] = ()
    """Further columns that stay with the row."""
    held_out: float = 0.05
    """Share of the prompts kept aside."""
    side: Literal["train", "held_out"] | None = None
    """All rows are of this side, whatever their prompt."""
    made: bool = False
    """A stage made the rows: they may be what a policy says, even nothing."""
    skip: bool = False
    """Leave bad rows out; else the first one is refused."""
    in_recipe: bool = True
    """A recipe names the source; else it is files by themselves, and a recipe's words are advice for later."""

    def key(self, rest: str) -> str:
        """Return the key of a recipe that says something of the source."""
        return f"sources.{self.name if self.in_recipe else 'NAME'}.{rest}"


class OtherFormError(DataError):
    """A chat among rows of plain text, or plain text among chats."""

    def __init__(self, form: Form, place: str, part: Part) -> None:
        what = {"chat": "a chat", "plain": "plain text"}
        others = what["plain" if form == "chat" else "chat"]
        remedy = "make two sources of them, or write all rows in one form"
        super().__init__(f"the row is {what[form]}, those before it are {others}", place, remedy)
        self.form = form


Bad = Callable[[DataError, Row | None], None]
"""Is told of a bad row: what is wrong with it, and the row, if there is one."""


SLICE = r"(?P<name>[\w./-]*)(\[(?P<start>\d*):(?P<stop>\d*)\])?"
"""A split and a slice of it, either of which may be left out."""


@dataclass(frozen=True)
class Expected:
    """What the rows of a part must be."""

    kind: str
    wanted: Sequence[Sequence[str]]
    """The sets of columns of the kind, the preferred one first."""
    part: Part
    shapes: Sequence[Shape]

    @classmethod
    def of(cls, kind: str, wanted: Sequence[Sequence[str]], part: Part) -> "Expected":
        return cls(kind, wanted, part, shapes_for(part, kind, wanted))


def placed_rows(
    part: Part,
    kind: str,
    wanted: Sequence[Sequence[str]],
    bad: Bad | None = None,
    nulls: NullFields | None = None,
) -> Iterator[tuple[str, Record]]:
    """Yield a part's rows, checked and with our columns, each with its place.

    `wanted` are the sets of columns of the kind. The first row tells the format of all, and whether they are chats.
    Where a row is in none or in another one, or its fields are not what they must be, `bad` is told and reading goes
    on; without `bad`, and if such rows are not skipped, DataError is raised. `nulls` notes what columnar files hold.
    """
    expected, first, form = Expected.of(kind, wanted, part), None, None
    for place, row in islice(_raw(part, kind, nulls), *limits(part)):
        try:
            if isinstance(row, DataError):
                raise row
            renamed = _renamed(row, place, part)
            shape = recognised(renamed, row, place, expected)
            if first is not None and shape is not first:
                problem = f"the row is in the format {shape.name!r}, those before it in {first.name!r}"
                raise DataError(problem, place, f"part the source, or say {part.key('format')} or .columns")
            values = _values(renamed, row, place, shape, expected)
            own = form_of(values)
            if form is not None and own != form:
                raise OtherFormError(own, place, part)
            if part.rated and "rating" not in values:
                raise DataError(f"{part.key('rated')} needs ratings, and the row has a label", place, "leave it out")
        except DataError as error:
            if bad is None and not part.skip:
                raise
            if bad is not None:
                bad(error, None if isinstance(row, DataError) else row)
            continue
        first, form = shape, own
        if part.part and not is_held_out(values, part) and part_of(key_of(values), part.part[1]) != part.part[0]:
            continue
        if part.rated and not part.rated[0] <= values["rating"] <= part.rated[1]:
            continue
        yield place, Record.at(place, _flipped(values, part), skip=part.skip)


def _flipped(values: Row, part: Part) -> Row:
    """Return a row as it is, or with the answers of its pair exchanged; a larger share has those of a smaller, too."""
    if not part.flip or is_held_out(values, part):
        return values
    pair = json.dumps([values.get(name) for name in ("prompt", "chosen", "rejected")], default=str)
    if not on_held_out_side(f"flip {pair}", part.flip):
        return values
    return {**values, "chosen": values["rejected"], "rejected": values["chosen"]}


class Format(NamedTuple):
    """How rows are read."""

    name: str
    """What a source's `format` says; empty for columns that the source names."""
    traits: tuple[str, ...] = ()
    """What the columns alone do not tell, such as `ShareGPT roles`."""
    unread: tuple[str, ...] = ()
    """Columns that nothing is made of."""


def format_of_part(part: Part, kind: str, wanted: Sequence[Sequence[str]]) -> Format | None:
    """Return the format that a part's first row is in; None where it is in none."""
    for place, row in islice(_raw(part, kind, None), *limits(part)):
        try:
            if isinstance(row, dict):
                renamed = _renamed(row, place, part)
                if shape := shape_of(renamed, shapes_for(part, kind, wanted)):
                    return _format(shape, row, renamed, part, kind)
        except DataError:
            pass
        break
    return None


def _format(shape: Shape, row: Row, renamed: Row, part: Part, kind: str) -> Format:
    further = further_columns(kind, renamed, _in_columns(shape, renamed))
    read = {*shape.needs, *shape.may, *further, *part.keep, *part.columns.values(), "held_out"}
    values = {column: renamed[column] for column in (*shape.needs, *further)}
    unread = tuple(column for column in row if column not in read)
    return Format("" if part.columns else shape.name, tuple(traits(values)), unread)


def _in_columns(shape: Shape, renamed: Row) -> Row:
    """Return a row in our columns, as far as that goes."""
    try:
        return shape.read(renamed)
    except DataError:
        return {}


def is_meant(part: Part, kind: str, wanted: Sequence[Sequence[str]]) -> bool:
    """Return whether a part's first row is in a format of a kind, by its columns and by what tells in its content."""
    for place, row in islice(_raw(part, kind, None), *limits(part)):
        if not isinstance(row, dict):
            break
        renamed = _renamed(row, place, part)
        fitting = (shape for shape in shapes_for(part, kind, wanted) if shape_of(renamed, [shape]))
        return any(shape.meant is None or shape.meant(renamed) for shape in fitting)
    return False


def shapes_for(part: Part, kind: str, wanted: Sequence[Sequence[str]]) -> Sequence[Shape]:
    """Return the formats that a part's rows may be in: the one named, ours where columns are, else all known."""
    known = SHAPES.get(kind, ())
    if part.format:
        return [replace(shape, fits=None) for shape in known if shape.name == part.format]
    if known and not part.columns:
        return known
    return [
        Shape(
            "-".join(columns),
            tuple(columns),
            taken(*columns),
            types=columns.types if isinstance(columns, Columns) else {},
        )
        for columns in wanted
    ]


def split_of(part: Part) -> str:
    """Return the name of the hub split that a part reads, without its slice."""
    match = re.fullmatch(SLICE, part.split or "")
    return (match["name"] if match else "") or "train"


def limits(part: Part) -> tuple[int, int | None]:
    """Return the first row that a part takes, and the one behind its last; None where it takes all."""
    match = re.fullmatch(SLICE, part.split or "")
    start, stop = (match["start"], match["stop"]) if match else (None, None)
    first = int(start or 0)
    ends = [int(stop)] if stop else []
    if part.rows is not None:
        ends.append(first + part.rows)
    return first, max(first, min(ends)) if ends else None


def _raw(part: Part, kind: str, nulls: NullFields | None) -> Found:
    if part.hub:
        found, place = hub_set(part), f"hf:{part.hub.partition(':')[0]}"
        yield from ((f"{place}, row {n}", row) for n, row in enumerate(rows_of_split(found, nulls=nulls), start=1))
        return
    for path in part.paths:
        yield from found_in(path, "line" if kind == "Prompts" else "paragraph", nulls)


def hub_set(part: Part, commit: str | None = None) -> HubSet:
    """Return what a part reads of the hub: from the folder it was fetched to, or at a commit from the hub."""
    name, _, config = (part.hub or "").partition(":")
    place, held_out = name if commit else str(part.paths[0]), part.side == "held_out"
    return HubSet(part.name, name, place, config or None, split_of(part), commit, held_out=held_out)


def shaped(row: Row, place: str, kind: str, wanted: Sequence[Sequence[str]], part: Part) -> Row:
    """Return one row with our column names: one of the wanted sets, and what the source keeps."""
    renamed, expected = _renamed(row, place, part), Expected.of(kind, wanted, part)
    return _values(renamed, row, place, recognised(renamed, row, place, expected), expected)


def _renamed(row: Row, place: str, part: Part) -> Row:
    """Return the row with the columns that the source names under our names, too."""
    if not (part.columns or part.keep):
        return row
    for key, theirs in [*((f"columns.{ours}", theirs) for ours, theirs in part.columns.items()),
                        *(("keep", name) for name in part.keep)]:  # fmt: skip
        if theirs not in row:
            raise _names_nothing(row, place, part, key, theirs)
    return {**row, **{ours: row[theirs] for ours, theirs in part.columns.items()}} if part.columns else row


def recognised(renamed: Row, row: Row, place: str, expected: Expected) -> Shape:
    """Return the format of a row. Raises DataError where it is in none, or where that would be a guess."""
    shape, wanted = shape_of(renamed, expected.shapes), expected.wanted
    if shape is None:
        raise _lacks(row, place, expected)
    if shape.needs != wanted[0] and shape.needs in wanted:
        others = {column: value for column, value in row.items() if column not in FURTHER.get(expected.kind, ())}
        _refuse_guess(shape.needs, others, place, wanted, expected.part)
    return shape


def _values(renamed: Row, row: Row, place: str, shape: Shape, expected: Expected) -> Row:
    """Return the row's checked values, and what the source keeps."""
    part = expected.part
    values = row_values(renamed, place, expected.kind, shape, made=part.made)
    if isinstance(row.get("held_out"), bool):
        values["held_out"] = row["held_out"]
    return {name: row[name] for name in part.keep} | values if part.keep else values


def _names_nothing(row: Row, place: str, part: Part, key: str, theirs: str) -> DataError:
    known = list(row)
    problem = f"sources.{part.name}.{key} names {theirs!r}, which the row lacks; it has {', '.join(known) or 'nothing'}"
    return DataError(problem, place, near_miss(theirs, known))


def _lacks(row: Row, place: str, expected: Expected) -> DataError:
    kind, wanted, part, shapes = expected.kind, expected.wanted, expected.part, expected.shapes
    if part.format:
        needs = " + ".join(shapes[0].needs) if shapes else "another kind"
        problem = f"the format {part.format!r} needs the columns {needs}; the row has {', '.join(row) or 'none'}"
        return DataError(problem, place, f"correct {part.key('format')} or the row")
    sets = " or ".join(" + ".join(columns) for columns in wanted)
    known = {**row, **dict.fromkeys(part.columns, "")}
    missing = next(column for column in wanted[0] if column not in known)
    return DataError(
        f"{kind.lower()} need the columns {sets}; the row has {', '.join(row) or 'none'}",
        place,
        f'say which column it is: {part.key("columns")}.{missing} = "..."',
    )


def _refuse_guess(columns: Sequence[str], row: Row, place: str, wanted: Sequence[Sequence[str]], part: Part) -> None:
    """Refuse a row that lacks a column of the preferred set, and has one of text that might be it by another name.

    A source that names one of the columns that are there means it so.
    """
    others = [c for c, v in row.items() if isinstance(v, str | list) and c not in (*columns, *part.keep)]
    if not set(columns) < set(wanted[0]) or set(columns) & set(part.columns) or not others:
        return
    missing = next(column for column in wanted[0] if column not in columns)
    raise DataError(
        f"the row has {' and '.join(columns)}, no {missing}, and {', '.join(others)} besides",
        place,
        f'write {part.key("columns")}.{missing} = "{others[0]}" if that is it, '
        f'else columns.{columns[0]} = "{columns[0]}"',
    )


def read_side(parts: Sequence[Part], kind: str, wanted: Sequence[Sequence[str]], held_out: bool) -> Iterator[Record]:
    """Yield the rows of one side of all parts, one part after another."""
    for part in parts:
        if part.side == ("train" if held_out else "held_out"):
            continue
        for _, row in placed_rows(part, kind, wanted):
            if is_held_out(row, part) == held_out:
                row.pop("held_out", None)
                yield row


def is_held_out(row: Row, part: Part) -> bool:
    if part.side is not None:
        return part.side == "held_out"
    marked = row.get("held_out")
    return marked if isinstance(marked, bool) else on_held_out_side(key_of(row), part.held_out)


def key_of(row: Row) -> str:
    """Return the text that decides a row's side: its prompt, a chat's first user message, the text, else all of it."""
    if not any(column in row for column in CONTENTS):
        return json.dumps({name: value for name, value in row.items() if name != "held_out"}, default=str)
    value = next((row[c] for c in ("prompt", "messages", "text", "completion", "chosen") if row.get(c)), "")
    if isinstance(value, str):
        return value
    first = next((turn for turn in value if turn["role"] == "user"), value[0])
    return str(first["content"])


def on_held_out_side(prompt: str, share: float) -> bool:
    """Return whether a prompt falls among the given share that is kept aside, by its hash and nothing else."""
    return int.from_bytes(_digest(prompt)[:8], "big") < share * 2**64


def part_of(prompt: str, parts: int) -> int:
    """Return in which of so many parts a prompt falls, from 1, by another piece of its hash."""
    return int.from_bytes(_digest(prompt)[8:16], "big") % parts + 1


def _digest(prompt: str) -> bytes:
    normal = " ".join(prompt.casefold().split())
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).digest()
