"""Records: rows of several sources, with their columns named our way and split by their prompt."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from alignkit.contract.files import Placed, rows_of
from alignkit.errors import DataError, near_miss

Row = dict[str, Any]


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
    split: str | None = None
    """A hub split, with a slice: `train[:2000]`."""
    rows: int | None = None
    """Take so many rows from the start."""
    keep: tuple[str, ...] = ()
    """Further columns that stay with the row."""
    held_out: float = 0.05
    """Share of the prompts kept aside."""
    side: Literal["train", "held_out"] | None = None
    """All rows are of this side, whatever their prompt."""


SLICE = re.compile(r"(?P<name>[^\[\]]*)(\[(?P<start>\d*):(?P<stop>\d*)\])?")


def placed_rows(part: Part, kind: str, wanted: Sequence[Sequence[str]]) -> Placed:
    """Give a part's rows, checked and with their columns renamed, each with its place.

    `wanted` are the sets of columns of the kind. Raises DataError at the first row that lacks them or whose fields
    are not text.
    """
    match = SLICE.fullmatch(part.split or "")
    start = int(match["start"] or 0) if match else 0
    stop = int(match["stop"]) if match and match["stop"] else None
    if part.rows is not None:
        stop = min(stop, start + part.rows) if stop is not None else start + part.rows
    for number, (place, row) in enumerate(_raw(part, kind)):
        if stop is not None and number >= stop:
            return
        if number >= start:
            yield place, shaped(row, place, kind, wanted, part)


def _raw(part: Part, kind: str) -> Placed:
    if part.hub:
        yield from _hub_rows(part)
        return
    for path in part.paths:
        yield from rows_of(path, "line" if kind == "Prompts" else "paragraph")


def _hub_rows(part: Part) -> Placed:
    from datasets import load_dataset

    name, _, config = (part.hub or "").partition(":")
    split = SLICE.fullmatch(part.split or "train")
    rows = load_dataset(str(part.paths[0]), config or None, split=split["name"] if split else "train", streaming=True)
    for number, row in enumerate(rows, start=1):
        yield f"hf:{name}, row {number}", dict(row)


def shaped(row: Row, place: str, kind: str, wanted: Sequence[Sequence[str]], part: Part) -> Row:
    """Give the row with our column names: one of the wanted sets, and what the source keeps."""
    renamed = {**row, **{ours: row[theirs] for ours, theirs in part.columns.items() if theirs in row}}
    for columns in wanted:
        if all(column in renamed for column in columns) and _meant(columns, row, wanted, part):
            kept = {name: row[name] for name in part.keep if name in row}
            held = {"held_out": row["held_out"]} if isinstance(row.get("held_out"), bool) else {}
            return kept | {column: _checked(renamed[column], column, place) for column in columns} | held
    raise DataError(_lacks(row, kind, wanted, part), place, _remedy(row, wanted, part))


def _meant(columns: Sequence[str], row: Row, wanted: Sequence[Sequence[str]], part: Part) -> bool:
    """Say whether a set that leaves out a column of the first one is meant so, and not merely misnamed.

    It is where the source maps a column of it, or where the row has nothing else.
    """
    if not set(columns) < set(wanted[0]):
        return True
    others = set(row) - set(columns) - set(part.keep) - {"held_out"}
    return bool(set(columns) & set(part.columns)) or not others


def _lacks(row: Row, kind: str, wanted: Sequence[Sequence[str]], part: Part) -> str:
    for ours, theirs in part.columns.items():
        if theirs not in row:
            return f"columns.{ours} names {theirs!r}, which the row lacks; it has {', '.join(row) or 'no columns'}"
    sets = " or ".join(" + ".join(columns) for columns in wanted)
    return f"{kind.lower()} need the columns {sets}; the row has {', '.join(row) or 'none'}"


def _remedy(row: Row, wanted: Sequence[Sequence[str]], part: Part) -> str:
    for theirs in part.columns.values():
        if theirs not in row:
            return near_miss(theirs, list(row)) or f"correct sources.{part.name}.columns"
    missing = next((column for column in wanted[0] if column not in row), wanted[0][0])
    return f"""say which column it is: sources.{part.name}.columns.{missing} = "..." """.strip()


def _checked(value: Any, column: str, place: str) -> Any:
    if column == "label":
        return _expect(isinstance(value, bool), value, column, place, "true or false")
    if column == "rating":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return _expect(number, value, column, place, "a number")
    if column != "messages" and isinstance(value, str):
        return value
    if column == "text" or not isinstance(value, list):
        return _expect(False, value, column, place, "text" if column != "messages" else "a list of messages")
    for turn in value:
        fine = isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        _expect(fine, turn, column, place, 'messages such as {"role": "user", "content": "..."}')
    return _expect(bool(value), value, column, place, "at least one message")


def _expect(fine: bool, value: Any, column: str, place: str, what: str) -> Any:
    if fine:
        return value
    shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
    raise DataError(f"{column!r} must be {what}, and is {shown}", place, "correct the row or leave it out")


def read_side(parts: Sequence[Part], kind: str, wanted: Sequence[Sequence[str]], held_out: bool) -> Iterator[Row]:
    """Give the rows of one side of all parts, one part after another."""
    for part in parts:
        if part.side == ("train" if held_out else "held_out"):
            continue
        for _, row in placed_rows(part, kind, wanted):
            row = with_prompt(row)
            if _is_held_out(row, part) == held_out:
                row.pop("held_out", None)
                yield row


def _is_held_out(row: Row, part: Part) -> bool:
    if part.side is not None:
        return part.side == "held_out"
    marked = row.get("held_out")
    return marked if isinstance(marked, bool) else on_held_out_side(key_of(row), part.held_out)


def key_of(row: Row) -> str:
    """Give the text that decides a row's side: its prompt, a chat's first user message, else the text itself."""
    value = next((row[c] for c in ("prompt", "messages", "text", "completion") if row.get(c)), "")
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
        size = marker + len("\n\nAssistant:") if marker >= 0 else chosen.rfind(" ", 0, size) + 1
    return {**row, "prompt": chosen[:size], "chosen": chosen[size:], "rejected": rejected[size:]}


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Count the items that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
