"""Records: rows of several sources, with their columns named our way and split by their prompt."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from alignkit.contract.files import Found, found_in
from alignkit.contract.shapes import SHAPES, Shape, answered, as_messages, asked, shape_of, taken, traits
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


CERTAINTY = "p_chosen"
"""Preferences may say how likely it is that the chosen answer is the better one."""


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


Bad = Callable[[DataError, Row | None], None]
"""Is told of a bad row: what is wrong with it, and the row, if there is one."""


SLICE = r"(?P<name>[\w./-]*)(\[(?P<start>\d*):(?P<stop>\d*)\])?"
"""A split and a slice of it, either of which may be left out."""


def placed_rows(
    part: Part, kind: str, wanted: Sequence[Sequence[str]], bad: Bad | None = None
) -> Iterator[tuple[str, Record]]:
    """Give a part's rows, checked and with our columns, each with its place.

    `wanted` are the sets of columns of the kind. The first row tells the format of all. Where a row is in none or in
    another one, or its fields are not what they must be, `bad` is told and reading goes on; without `bad`, and if such
    rows are not skipped, DataError is raised.
    """
    shapes, first = shapes_for(part, kind, wanted), None
    for place, row in islice(_raw(part, kind), *limits(part)):
        try:
            if isinstance(row, DataError):
                raise row
            renamed = _renamed(row, place, part)
            shape = recognised(renamed, row, place, kind, wanted, part, shapes)
            if first is not None and shape is not first:
                problem = f"the row is in the format {shape.name!r}, those before it in {first.name!r}"
                raise DataError(problem, place, f"part the source, or say sources.{part.name}.format or .columns")
            values = _values(renamed, row, place, kind, shape, part)
        except DataError as error:
            if bad is None and not part.skip:
                raise
            if bad is not None:
                bad(error, None if isinstance(row, DataError) else row)
            continue
        first = shape
        yield place, Record.at(place, values, skip=part.skip)


class Format(NamedTuple):
    """How rows are read."""

    name: str
    """What a source's `format` says; empty for columns that the source names."""
    traits: tuple[str, ...] = ()
    """What the columns alone do not tell, such as `ShareGPT roles`."""
    unread: tuple[str, ...] = ()
    """Columns that nothing is made of."""


def format_of_part(part: Part, kind: str, wanted: Sequence[Sequence[str]]) -> Format | None:
    """Tell the format that a part's first row is in; None where it is in none."""
    for place, row in islice(_raw(part, kind), *limits(part)):
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
    further = _further(kind, renamed)
    read = {*shape.needs, *shape.may, *further, *part.keep, *part.columns.values(), "held_out"}
    values = {column: renamed[column] for column in (*shape.needs, *further)}
    unread = tuple(column for column in row if column not in read)
    return Format("" if part.columns else shape.name, tuple(traits(values)), unread)


def shapes_for(part: Part, kind: str, wanted: Sequence[Sequence[str]]) -> Sequence[Shape]:
    """Give the formats that a part's rows may be in: the one that is named, ours where columns are, else all known."""
    known = SHAPES.get(kind, ())
    if part.format:
        return [replace(shape, fits=None) for shape in known if shape.name == part.format]
    if known and not part.columns:
        return known
    return [Shape("-".join(columns), tuple(columns), taken(*columns)) for columns in wanted]


def split_of(part: Part) -> str:
    """Give the name of the hub split that a part reads, without its slice."""
    match = re.fullmatch(SLICE, part.split or "")
    return (match["name"] if match else "") or "train"


def limits(part: Part) -> tuple[int, int | None]:
    """Give the first row that a part takes, and the one behind its last; None where it takes all."""
    match = re.fullmatch(SLICE, part.split or "")
    start, stop = (match["start"], match["stop"]) if match else (None, None)
    first = int(start or 0)
    ends = [int(stop)] if stop else []
    if part.rows is not None:
        ends.append(first + part.rows)
    return first, max(first, min(ends)) if ends else None


def _raw(part: Part, kind: str) -> Found:
    if part.hub:
        yield from _hub_rows(part)
        return
    for path in part.paths:
        yield from found_in(path, "line" if kind == "Prompts" else "paragraph")


def _hub_rows(part: Part) -> Found:
    from datasets import load_dataset

    name, _, config = (part.hub or "").partition(":")
    rows = load_dataset(str(part.paths[0]), config or None, split=split_of(part), streaming=True)
    for number, row in enumerate(rows, start=1):
        yield f"hf:{name}, row {number}", dict(row)


def shaped(row: Row, place: str, kind: str, wanted: Sequence[Sequence[str]], part: Part) -> Row:
    """Give one row with our column names: one of the wanted sets, and what the source keeps."""
    renamed = _renamed(row, place, part)
    shape = recognised(renamed, row, place, kind, wanted, part, shapes_for(part, kind, wanted))
    return _values(renamed, row, place, kind, shape, part)


def _renamed(row: Row, place: str, part: Part) -> Row:
    """Give the row with the columns that the source names under our names, too."""
    if not (part.columns or part.keep):
        return row
    for key, theirs in [*((f"columns.{ours}", theirs) for ours, theirs in part.columns.items()),
                        *(("keep", name) for name in part.keep)]:  # fmt: skip
        if theirs not in row:
            raise _names_nothing(row, place, part, key, theirs)
    return {**row, **{ours: row[theirs] for ours, theirs in part.columns.items()}} if part.columns else row


def recognised(
    renamed: Row, row: Row, place: str, kind: str, wanted: Sequence[Sequence[str]], part: Part, shapes: Sequence[Shape]
) -> Shape:
    """Tell the format of a row. Raises DataError where it is in none, or where that would be a guess."""
    shape = shape_of(renamed, shapes)
    if shape is None:
        raise _lacks(row, place, kind, wanted, part, shapes)
    if shape.needs != wanted[0] and shape.needs in wanted:
        _refuse_guess(shape.needs, row, place, wanted, part)
    return shape


def _values(renamed: Row, row: Row, place: str, kind: str, shape: Shape, part: Part) -> Row:
    """Give the row's checked values, and what the source keeps."""
    try:
        read = shape.read(renamed)
    except DataError as error:
        raise DataError(error.problem, place, "correct the row or leave it out") from error
    values = {column: checked(as_messages(value), column, place) for column, value in read.items()}
    if _mixed(values):
        values = _in_one_form(values, place)
    values = with_prompt(values)
    if not part.made:
        _refuse_rubbish(values, place)
    for column in _further(kind, renamed):
        values[column] = checked(renamed[column], column, place)
    if isinstance(row.get("held_out"), bool):
        values["held_out"] = row["held_out"]
    return {name: row[name] for name in part.keep} | values if part.keep else values


def _mixed(values: Row) -> bool:
    """Say whether text stands beside chats."""
    if len(set(map(type, values.values()))) == 1:
        return False
    return len({type(value) for column, value in values.items() if column not in ("label", "rating")}) > 1


def _in_one_form(values: Row, place: str) -> Row:
    """Make a text beside a chat a turn of it, where it is plain whose: a question, or all answers. Raises DataError."""
    prompt = values.get("prompt")
    answers = {column: values[column] for column in ("completion", "chosen", "rejected") if column in values}
    if isinstance(prompt, str):
        values = {**values, "prompt": asked(prompt) if prompt else []}
    elif all(isinstance(answer, str) for answer in answers.values()):
        values = {**values, **{column: answered(answer) for column, answer in answers.items()}}
    if _mixed(values):
        both = " and ".join(f"{c!r} is {'text' if isinstance(v, str) else 'messages'}" for c, v in values.items()
                            if isinstance(v, str | list))  # fmt: skip
        raise DataError(f"{both}", place, "make all of them text or all of them messages")
    return values


ROLES = ("system", "developer", "user", "assistant", "tool")


def _refuse_rubbish(values: Row, place: str) -> None:
    """Refuse what has the right types and teaches nothing. Raises DataError."""
    for column, value in values.items():
        if isinstance(value, str):
            if "\0" in value:
                raise _rubbish(f"{column!r} holds a NUL character", place)
            if column not in ("prompt", "text") and not value.strip():  # sets of raw text have empty lines
                raise _rubbish(f"{column!r} is empty", place)
        elif isinstance(value, list):
            _refuse_chat(value, column, place)
    if "chosen" in values and values["chosen"] == values["rejected"]:
        raise _rubbish("'chosen' and 'rejected' are the same", place)


def _refuse_chat(turns: Sequence[Row], column: str, place: str) -> None:
    for number, turn in enumerate(turns):
        role, content = turn["role"], turn["content"]
        if role not in ROLES:
            raise _rubbish(f"{column!r} has a turn of the role {role!r}; roles are {', '.join(ROLES)}", place)
        if role == "system" and number:
            raise _rubbish(f"{column!r} has a system turn that is not its first", place)
        if "\0" in content:
            raise _rubbish(f"{column!r} holds a NUL character", place)
        if role == "assistant" and not content.strip() and not turn.get("tool_calls"):
            raise _rubbish(f"{column!r} has an answer that is empty", place)
    if column in ("prompt", "messages") and turns and turns[0]["role"] == "assistant":
        raise _rubbish(f"{column!r} begins with an answer", place)


def _rubbish(problem: str, place: str) -> DataError:
    return DataError(problem, place, "correct the row or leave it out")


FURTHER = {"Preferences": CERTAINTY, "Demonstrations": "tools"}


def _further(kind: str, row: Row) -> Sequence[str]:
    """Give the columns that a kind's rows may have besides those that they need."""
    column = FURTHER.get(kind)
    return [column] if column and row.get(column) is not None else []


def _names_nothing(row: Row, place: str, part: Part, key: str, theirs: str) -> DataError:
    known = list(row)
    problem = f"sources.{part.name}.{key} names {theirs!r}, which the row lacks; it has {', '.join(known) or 'nothing'}"
    return DataError(problem, place, near_miss(theirs, known))


def _lacks(
    row: Row, place: str, kind: str, wanted: Sequence[Sequence[str]], part: Part, shapes: Sequence[Shape]
) -> DataError:
    if part.format:
        needs = " + ".join(shapes[0].needs) if shapes else "another kind"
        problem = f"the format {part.format!r} needs the columns {needs}; the row has {', '.join(row) or 'none'}"
        return DataError(problem, place, f"correct sources.{part.name}.format or the row")
    sets = " or ".join(" + ".join(columns) for columns in wanted)
    known = {**row, **dict.fromkeys(part.columns, "")}
    missing = next(column for column in wanted[0] if column not in known)
    return DataError(
        f"{kind.lower()} need the columns {sets}; the row has {', '.join(row) or 'none'}",
        place,
        f'say which column it is: sources.{part.name}.columns.{missing} = "..."',
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
        f'write sources.{part.name}.columns.{missing} = "{others[0]}" if that is it, '
        f'else columns.{columns[0]} = "{columns[0]}"',
    )


def checked(value: Any, column: str, place: str) -> Any:
    """Give a column's value if it is what the column holds; raises DataError if not."""
    if column == "label":
        return _expect(*_label(value), value, column, place, "true or false")
    if column == "rating":
        return _expect(*_rating(value), value, column, place, "a number")
    if column == "tools":
        return _tools(value, place)
    if column == CERTAINTY:
        fine, number = _rating(value)
        return _expect(fine and 0 <= number <= 1, number, value, column, place, "a number from 0 to 1")
    if column != "messages" and isinstance(value, str):
        return _expect(_is_whole(value), value, value, column, place, "text in whole characters")
    if column == "text" or not isinstance(value, list):
        return _expect(False, value, value, column, place, "text" if column != "messages" else "a list of messages")
    for turn in value:
        fine = isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        _expect(fine, turn, turn, column, place, 'messages such as {"role": "user", "content": "..."}')
        _expect(_is_whole(turn["content"]), turn, turn, column, place, "text in whole characters")
    return _expect(bool(value), value, value, column, place, "at least one message")


def _tools(value: Any, place: str) -> list[Any]:
    """Read the tools that a chat may call: JSON schemas, as a list or written as JSON."""
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        tools = None
    fine = isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    found: list[Any] = _expect(fine, tools, value, "tools", place, "a list of tools as JSON schemas")
    return found


def _label(value: Any) -> tuple[bool, Any]:
    """Read a label also from CSV, which knows text only, and from data sets that count classes."""
    known = {"true": True, "false": False, "1": True, "0": False}
    word = str(value).lower()
    return word in known, known.get(word)


def _rating(value: Any) -> tuple[bool, Any]:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    return math.isfinite(number), number


def _is_whole(text: str) -> bool:
    """Say whether a text can be written as UTF-8: JSON's escapes can make halves of characters."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _expect(fine: bool, meant: Any, value: Any, column: str, place: str, what: str) -> Any:
    if fine:
        return meant
    shown = ascii(value) if not isinstance(value, str) or not _is_whole(value) else repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    raise DataError(f"{column!r} must be {what}, and is {shown}", place, "correct the row or leave it out")


def read_side(parts: Sequence[Part], kind: str, wanted: Sequence[Sequence[str]], held_out: bool) -> Iterator[Record]:
    """Give the rows of one side of all parts, one part after another."""
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
    """Give the text that decides a row's side: its prompt, a chat's first user message, else the text itself."""
    value = next((row[c] for c in ("prompt", "messages", "text", "completion", "chosen") if row.get(c)), "")
    if isinstance(value, str):
        return value
    first = next((turn for turn in value if turn["role"] == "user"), value[0])
    return str(first["content"])


def on_held_out_side(prompt: str, share: float) -> bool:
    """Say whether a prompt falls among the given share that is kept aside, by its hash and nothing else."""
    normal = " ".join(prompt.casefold().split())
    digest = hashlib.sha256(normal.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def with_prompt(row: Row) -> Row:
    """Fill in a prompt that is implicit: what chosen and rejected begin with, or nothing for a bare completion.

    In transcripts (`Human: ... Assistant: ...`, as in Anthropic's hh-rlhf) it ends after the last `Assistant:`
    that both share; elsewhere at the last white space that both share. Chats share whole messages.
    """
    if "prompt" in row or not ("chosen" in row or "completion" in row):
        return row
    if "completion" in row:
        return {"prompt": "" if isinstance(row["completion"], str) else [], **row}
    chosen, rejected = row["chosen"], row["rejected"]
    size = _shared(chosen, rejected)
    if isinstance(chosen, str):
        marker = chosen.rfind("\n\nAssistant:", 0, size)
        white = max(chosen.rfind(space, 0, size) for space in " \n\t")
        size = marker + len("\n\nAssistant:") if marker >= 0 else white + 1
    return {**row, "prompt": chosen[:size], "chosen": chosen[size:], "rejected": rejected[size:]}


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Count the items that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
