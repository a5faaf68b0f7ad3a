"""Rows as users have them: which known format a row is in, and the same row with our columns.

A format is told by the names of its columns, never by guessing at their content. Chats come as messages (`role`,
`content`), as ShareGPT turns (`from`, `value`), or with content in parts; all of them leave here as messages.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.errors import DataError

Row = dict[str, Any]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
    "function_call": "assistant",
}
"""Who speaks in a ShareGPT turn -> the role of a message."""


@dataclass(frozen=True)
class Shape:
    """A format of rows: by which columns it is known, and how it becomes ours."""

    name: str
    """What a source's `format` says."""
    needs: tuple[str, ...]
    """Columns that a row of it has, all of them."""
    read: Callable[[Row], Row]
    """Give our columns, of values that are not checked yet. May raise DataError without a place."""


def taken(*names: str, **renamed: str) -> Callable[[Row], Row]:
    """Take columns as they are, and others under our name for them: `taken("prompt", completion="response")`."""
    theirs = {**{name: name for name in names}, **renamed}
    return lambda row: {ours: row[name] for ours, name in theirs.items()}


def asked(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


def answered(text: Any) -> list[Any]:
    return [{"role": "assistant", "content": text}]


def instruction(row: Row) -> list[Any]:
    """Give what an Alpaca row asks as messages: system, history, and the instruction with its input below it."""
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    earlier = [message for pair in row.get("history") or [] for message in (*asked(pair[0]), *answered(pair[1]))]
    given = row.get("input")
    text = f"{row['instruction']}\n\n{given}" if given else row["instruction"]
    return [*system, *earlier, *asked(text)]


def turns(row: Row) -> list[Any]:
    """Give a ShareGPT conversation with its system text, if it has one, in front."""
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*system, *_list(row["conversations"])]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise DataError("a conversation must be a list of turns")
    return value


def _last_apart(messages: list[Any]) -> tuple[list[Any], list[Any]]:
    """Part a chat before its last message, which must be the assistant's."""
    if not messages or not isinstance(messages[-1], dict) or plain(messages[-1]).get("role") != "assistant":
        raise DataError("the chat does not end with an answer of the assistant")
    return messages[:-1], messages[-1:]


def _before_answer(messages: list[Any]) -> list[Any]:
    """Give what a chat asks: an answer at its end is left away."""
    ends = bool(messages) and isinstance(messages[-1], dict) and plain(messages[-1]).get("role") == "assistant"
    return messages[:-1] if ends else messages


def _two(row: Row) -> tuple[Any, Any]:
    both = row["output"]
    if not isinstance(both, list) or len(both) != 2:
        raise DataError("'output' must be a list of two answers, the chosen one first")
    return both[0], both[1]


def _rated(prompt_and_answer: Callable[[Row], tuple[Any, Any]], mark: str) -> Callable[[Row], Row]:
    def read(row: Row) -> Row:
        prompt, completion = prompt_and_answer(row)
        return {"prompt": prompt, "completion": completion, mark: row[mark]}

    return read


def _side(row: Row, side: str) -> Any:
    """Give one answer to a ShareGPT conversation: a turn, a list of turns, or text."""
    value = row[side]
    return answered(value) if isinstance(value, str) else [value] if isinstance(value, dict) else value


DEMONSTRATIONS = (
    Shape("prompt-completion", ("prompt", "completion"), taken("prompt", "completion")),
    Shape("messages", ("messages",), taken("messages")),
    Shape("sharegpt", ("conversations",), lambda row: {"messages": turns(row)}),
    Shape(
        "alpaca",
        ("instruction", "output"),
        lambda row: {"messages": [*instruction(row), *answered(row["output"])]},
    ),
    Shape(
        "question-answer",
        ("question", "answer"),
        lambda row: {"messages": [*asked(row["question"]), *answered(row["answer"])]},
    ),
    Shape("prompt-response", ("prompt", "response"), taken("prompt", completion="response")),
    Shape("completion", ("completion",), taken("completion")),
)

PREFERENCES = (
    Shape("prompt-chosen-rejected", ("prompt", "chosen", "rejected"), taken("prompt", "chosen", "rejected")),
    Shape(
        "sharegpt",
        ("conversations", "chosen", "rejected"),
        lambda row: {"prompt": turns(row), "chosen": _side(row, "chosen"), "rejected": _side(row, "rejected")},
    ),
    Shape(
        "alpaca",
        ("instruction", "chosen", "rejected"),
        lambda row: {
            "prompt": instruction(row),
            "chosen": answered(row["chosen"]),
            "rejected": answered(row["rejected"]),
        },
    ),
    Shape(
        "alpaca-ranked",
        ("instruction", "output"),
        lambda row: {
            "prompt": instruction(row),
            "chosen": answered(_two(row)[0]),
            "rejected": answered(_two(row)[1]),
        },
    ),
    Shape(
        "question-chosen-rejected",
        ("question", "chosen", "rejected"),
        lambda row: {
            "prompt": asked(row["question"]),
            "chosen": answered(row["chosen"]),
            "rejected": answered(row["rejected"]),
        },
    ),
    Shape("chosen-rejected", ("chosen", "rejected"), taken("chosen", "rejected")),
)

RATINGS = tuple(
    shape
    for mark in ("rating", "label")
    for shape in (
        Shape(f"prompt-completion-{mark}", ("prompt", "completion", mark), taken("prompt", "completion", mark)),
        Shape(f"messages-{mark}", ("messages", mark), _rated(lambda row: _last_apart(_list(row["messages"])), mark)),
        Shape(f"sharegpt-{mark}", ("conversations", mark), _rated(lambda row: _last_apart(turns(row)), mark)),
        Shape(
            f"alpaca-{mark}",
            ("instruction", "output", mark),
            _rated(lambda row: (instruction(row), answered(row["output"])), mark),
        ),
        Shape(f"text-{mark}", ("text", mark), _rated(lambda row: ("", row["text"]), mark)),
    )
)

PROMPTS = (
    Shape("prompt", ("prompt",), taken("prompt")),
    Shape("messages", ("messages",), lambda row: {"prompt": _before_answer(_list(row["messages"]))}),
    Shape("sharegpt", ("conversations",), lambda row: {"prompt": _before_answer(turns(row))}),
    Shape("alpaca", ("instruction",), lambda row: {"prompt": instruction(row)}),
    Shape("question", ("question",), lambda row: {"prompt": asked(row["question"])}),
)

TEXT = (Shape("text", ("text",), taken("text")),)

SHAPES: Mapping[str, Sequence[Shape]] = {
    "Demonstrations": DEMONSTRATIONS,
    "Preferences": PREFERENCES,
    "Prompts": PROMPTS,
    "Ratings": RATINGS,
    "Text": TEXT,
}
"""The formats of each kind of records, the preferred one first."""


def shape_of(row: Row, shapes: Sequence[Shape]) -> Shape | None:
    """Tell the format of a row: the first whose columns it has, all of them."""
    return next((shape for shape in shapes if all(column in row for column in shape.needs)), None)


def as_messages(value: Any) -> Any:
    """Give a chat's turns as messages; what is none is left as it is, for the checks to refuse."""
    return [plain(turn) for turn in value] if isinstance(value, list) else value


def plain(turn: Any) -> Any:
    """Give one turn as a message: ShareGPT's names become ours, content in parts becomes one text."""
    if not isinstance(turn, dict):
        return turn
    if "from" in turn and "value" in turn and "role" not in turn:
        turn = {"role": ROLES.get(str(turn["from"]).lower(), turn["from"]), "content": turn["value"]}
    content = turn.get("content")
    if isinstance(content, list):
        return {**turn, "content": _joined(content)}
    if content is None and turn.get("tool_calls"):
        return {**turn, "content": ""}
    return turn


def _joined(parts: list[Any]) -> Any:
    """Join the parts of a content that are text; anything else stays as it is, and is refused by the checks."""
    texts = [_text_of(part) for part in parts]
    return "".join(text for text in texts if text is not None) if None not in texts else parts


def _text_of(part: Any) -> str | None:
    if isinstance(part, dict):
        part = part.get("text", part.get("value")) if part.get("type", "text") == "text" else None
    return part if isinstance(part, str) else None
