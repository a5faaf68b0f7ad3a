"""The values of a row: what columns must hold, and what counts as prompt and answer."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from alignkit.data.chats import ROLES, as_messages, check_answer, part_pair, read_tools, teaches_nothing
from alignkit.data.formats import Shape, answered, asked, label_of, rating_of, with_system
from alignkit.errors import DataError

Row = dict[str, Any]
T = TypeVar("T")

CERTAINTY = "p_chosen"
"""Preferences may say how likely it is that the chosen answer is the better one."""


OF_CHATS = ("tools", "system")
"""Columns that are part of what a chat asks."""
FURTHER: Mapping[str, tuple[str, ...]] = {
    "Preferences": (CERTAINTY, *OF_CHATS),
    "Demonstrations": OF_CHATS,
    "Prompts": OF_CHATS,
    "Ratings": OF_CHATS,
}
"""Columns that a kind's rows may have besides those that they need."""


Form = Literal["chat", "plain"]


CONTENTS = ("prompt", "completion", "messages", "chosen", "rejected", "text")
"""Columns that hold text or chats."""
WHOLE = "text in whole characters"


def form_of(row: Mapping[str, Any]) -> Form:
    """Return whether a row is a chat or plain text."""
    return "chat" if any(isinstance(row.get(column), list) for column in CONTENTS) else "plain"


def row_values(row: Row, place: str, kind: str, shape: Shape, *, made: bool) -> Row:
    """Return a row's values in our columns, checked; those that a stage made may say nothing. Raises DataError."""
    try:
        read = shape.read(row)
        tools = {"tools": read.pop("tools")} if "tools" in read else {}
        own = {column: read.pop(column) for column in shape.types}
        read = {column: as_messages(value) for column, value in read.items()}
    except DataError as error:
        raise DataError(error.problem, place, "correct the row or leave it out") from error
    values = {column: checked(value, column, place) for column, value in read.items()}
    if _mixed(values):
        values = _in_one_form(values, place)
    values = with_prompt(values)
    if not made:
        _refuse_rubbish(values, place)
        _check_transcripts(values, place)
    _check_answers(values, place)
    given = {**row, **tools} if tools else row
    for column in further_columns(kind, given, values):
        if column == "system":
            values = _with_system(values, given[column], shape, place)
        else:
            values[column] = checked(given[column], column, place)
    return values | {column: of_type(value, shape.types[column], column, place) for column, value in own.items()}


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def of_type(value: Any, kind: Any, column: str, place: str) -> Any:
    """Return a value of a package's own column. Raise DataError where it is not of the type that the kind says."""
    try:
        return _reader(kind).validate_python(value, strict=True)
    except ValidationError:
        name = kind.__name__ if type(kind) is type else str(kind)
        raise _unlike(value, column, place, name) from None


ANSWERS = ("completion", "chosen", "rejected")
"""Columns that hold an answer to the prompt."""


def _check_answers(values: Row, place: str) -> None:
    """Refuse chats that do not answer, or from which nothing is to be learnt. Raises DataError."""
    answers = [column for column in ANSWERS if isinstance(values.get(column), list)]
    for column in sorted(answers, key=lambda one: bool(values[one][-1]["role"] == "assistant")):  # those without first
        check_answer(values[column], column, place)
    if "messages" in values and teaches_nothing(values["messages"]):
        spoken = any(turn["role"] == "assistant" for turn in values["messages"])
        why = "every answer in it has the weight 0" if spoken else "it has no answer of the assistant"
        raise _rubbish(f"nothing can be learnt from 'messages': {why}", place)


def _check_transcripts(values: Row, place: str) -> None:
    """Refuse transcripts in text that go on with what the user says to an answer. Raises DataError."""
    prompt = values.get("prompt")
    if not (isinstance(prompt, str) and prompt.rstrip().endswith("\n\nAssistant:")):
        return
    for column in ANSWERS:
        if "\n\nHuman:" in values.get(column, ""):
            problem = f"{column!r} goes on with 'Human:' behind its answer"
            raise DataError(problem, place, "end it with the answer, or leave the row out")


def _with_system(values: Row, system: Any, shape: Shape, place: str) -> Row:
    """Put the text of the column `system` in front of a chat, where the format has not done so."""
    if "system" in shape.may:
        return values
    text = checked(system, "system", place)
    if "\0" in text:
        raise _rubbish("'system' holds a NUL character", place)
    column = "messages" if "messages" in values else "prompt"
    chat = with_system(values[column], text)
    if sum(turn["role"] == "system" for turn in chat) > 1:
        problem = f"the column 'system' says something else than the system turn of {column!r}"
        raise DataError(problem, place, "take the column out, or make both say the same")
    return {**values, column: chat}


def _mixed(values: Row) -> bool:
    """Return whether text stands beside chats."""
    if len(set(map(type, values.values()))) == 1:
        return False
    return len({type(value) for column, value in values.items() if column not in ("label", "rating")}) > 1


def _in_one_form(values: Row, place: str) -> Row:
    """Make a text beside a chat a turn of it, where it is plain whose: a question, or all answers. Raises DataError."""
    prompt = values.get("prompt")
    answers = {column: values[column] for column in ANSWERS if column in values}
    if isinstance(prompt, str):
        values = {**values, "prompt": asked(prompt) if prompt else []}
    elif all(isinstance(answer, str) for answer in answers.values()):
        values = {**values, **{column: answered(answer) for column, answer in answers.items()}}
    if _mixed(values):
        both = " and ".join(f"{c!r} is {'text' if isinstance(v, str) else 'messages'}" for c, v in values.items()
                            if isinstance(v, str | list))  # fmt: skip
        raise DataError(f"{both}", place, "make all of them text or all of them messages")
    return values


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
    if column == "prompt" and turns and turns[-1]["role"] == "assistant":
        raise DataError("'prompt' ends with an answer, so it asks nothing", place, "take that turn out of the prompt")


def _rubbish(problem: str, place: str) -> DataError:
    return DataError(problem, place, "correct the row or leave it out")


def further_columns(kind: str, row: Row, values: Row) -> Sequence[str]:
    """Return the columns that a row has besides those that it needs; those of chats have no place in plain text."""
    columns = [column for column in FURTHER.get(kind, ()) if row.get(column) not in (None, "")]
    return [column for column in columns if column not in OF_CHATS or form_of(values) == "chat"]


def checked(value: Any, column: str, place: str) -> Any:
    """Return a column's value if it is what the column holds; raises DataError if not."""
    if column == "label":
        return _found(label_of(value), value, column, place, "true or false")
    if column == "rating":
        return _found(rating_of(value), value, column, place, "a number")
    if column == "tools":
        return _found(read_tools(value), value, column, place, "a list of tools as JSON schemas")
    if column == CERTAINTY:
        number = rating_of(value)
        fine = number is not None and 0 <= number <= 1
        return _found(number if fine else None, value, column, place, "a number from 0 to 1")
    if column != "messages" and isinstance(value, str):
        return _found(value if _is_whole(value) else None, value, column, place, WHOLE)
    if column in ("text", "system") or not isinstance(value, list):
        raise _unlike(value, column, place, "text" if column != "messages" else "a list of messages")
    for turn in value:
        if not (isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)):
            raise _unlike(turn, column, place, 'messages such as {"role": "user", "content": "..."}')
        if not _is_whole(turn["content"]):
            raise _unlike(turn, column, place, WHOLE)
    return _found(value or None, value, column, place, "at least one message")


def _is_whole(text: str) -> bool:
    """Return whether a text can be written as UTF-8: JSON's escapes can make halves of characters."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _found(found: T | None, value: Any, column: str, place: str, what: str) -> T:
    if found is None:
        raise _unlike(value, column, place, what)
    return found


def _unlike(value: Any, column: str, place: str, what: str) -> DataError:
    shown = ascii(value) if not isinstance(value, str) or not _is_whole(value) else repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    return DataError(f"{column!r} must be {what}, and is {shown}", place, "correct the row or leave it out")


def with_prompt(row: Row) -> Row:
    """Fill in a prompt that is implicit: what chosen and rejected begin with, or nothing for a bare completion.

    In transcripts (`Human: ... Assistant: ...`, as in Anthropic's hh-rlhf) it ends after the last `Assistant:`
    that both share; elsewhere at the last white space that both share. Chats share whole messages, of which a prompt
    that is given gets what both sides begin with before their answers part.
    """
    if isinstance(row.get("chosen"), list):
        prompt, chosen, rejected = part_pair(row.get("prompt") or [], row["chosen"], row["rejected"])
        return {**row, "prompt": prompt, "chosen": chosen, "rejected": rejected}
    if "prompt" in row or not ("chosen" in row or "completion" in row):
        return row
    if "completion" in row:
        return {"prompt": "" if isinstance(row["completion"], str) else [], **row}
    chosen, rejected = row["chosen"], row["rejected"]
    size = _shared(chosen, rejected)
    marker = chosen.rfind("\n\nAssistant:", 0, size)
    white = max(chosen.rfind(space, 0, size) for space in " \n\t")
    size = marker + len("\n\nAssistant:") if marker >= 0 else white + 1
    return {**row, "prompt": chosen[:size], "chosen": chosen[size:], "rejected": rejected[size:]}


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Count the items that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
