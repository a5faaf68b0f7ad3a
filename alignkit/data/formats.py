"""Rows as users have them: which known format a row is in, and the same row with our columns.

A format is told by the names of its columns, and hardly ever by their content. All chats leave here as messages.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignkit.data.chats import ROLE_OF, as_messages, part_pair, plain, roles_in
from alignkit.errors import DataError

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A format of rows: by which columns it is known, and how it becomes ours."""

    name: str
    """What a source's `format` says."""
    needs: tuple[str, ...]
    """Columns that a row of it has, all of them."""
    read: Callable[[Row], Row]
    """Return our columns, of values that are not checked yet. May raise DataError without a place."""
    may: tuple[str, ...] = ()
    """Columns that are read, too, where a row has them."""
    fits: Callable[[Row], bool] | None = None
    """Tells by their content rows of it from others with the same columns."""
    meant: Callable[[Row], bool] | None = None
    """Tells by its content whether a row of a file whose kind nobody names is of this one."""
    types: Mapping[str, Any] = field(default_factory=dict)
    """What columns of a package's own kind hold."""


class Columns(tuple[str, ...]):
    """A set of columns with what each of them holds: `Columns(prompt=str, labels=list[int])`.

    A column of `str` holds text or, under one of our names, a chat; others hold exactly what is said.
    """

    types: Mapping[str, Any]

    def __new__(cls, **types: Any) -> "Columns":
        columns = super().__new__(cls, types)
        columns.types = {name: kind for name, kind in types.items() if kind is not str}
        return columns


def taken(*names: str, **renamed: str) -> Callable[[Row], Row]:
    """Take columns as they are, and others under our name for them: `taken("prompt", completion="response")`."""
    theirs = {**{name: name for name in names}, **renamed}
    return lambda row: {ours: row[name] for ours, name in theirs.items()}


def asked(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


def answered(text: Any) -> list[Any]:
    return [{"role": "assistant", "content": text}]


def _system(row: Row) -> list[Any]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


ALPACA = ("input", "system", "history")
"""What an Alpaca row may have besides."""


def instruction(row: Row, given: str = "input") -> list[Any]:
    """Return what an Alpaca row asks as messages: system, history, and the instruction with its input below it."""
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DataError('\'history\' must be a list of questions with their answers, such as [["...", "..."]]')
    earlier = [message for pair in history for message in (*asked(pair[0]), *answered(pair[1]))]
    text = f"{row['instruction']}\n\n{row[given]}" if row.get(given) else row["instruction"]
    return [*_system(row), *earlier, *asked(text)]


def question(row: Row) -> list[Any]:
    """Return a question as messages, with its system text, if it has one, in front."""
    return [*_system(row), *asked(row["question"])]


def turns(row: Row, column: str = "conversations") -> list[Any]:
    """Return a conversation with its system text, if it has one of its own, in front."""
    return with_system(_list(row[column]), row.get("system"))


def with_system(chat: list[Any], system: Any) -> list[Any]:
    """Put a system text in front of a chat that does not begin with it already."""
    begun = as_messages(chat[:1])
    opening = [{"role": "system", "content": system}] if system else []
    return chat if not opening or begun == opening else [*opening, *chat]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise DataError("a conversation must be a list of turns")
    return value


SPEAKER = re.compile(r"\n\n(Human|Assistant):[ ]?")
"""Who speaks in a transcript (Anthropic's hh-rlhf)."""

TRANSCRIPTS = "transcripts (Human:, Assistant:)"
"""How rows with such texts are told of."""


def is_transcript(text: Any) -> bool:
    return isinstance(text, str) and "\n\nAssistant:" in text and "Human:" in text


def transcript(text: Any) -> list[Any]:
    """Part a transcript (`Human: ... Assistant: ...`) in messages. Raises DataError for any other text."""
    if not isinstance(text, str):
        raise DataError("a transcript must be text")
    before, *rest = SPEAKER.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip() or not rest:
        raise DataError("the text is no transcript: it does not begin with 'Human:' or 'Assistant:'")
    spoken = zip(rest[::2], rest[1::2], strict=True)
    return [{"role": ROLE_OF[name.lower()], "content": said.strip()} for name, said in spoken]


def _pair(row: Row) -> Row:
    """Take a prompt and two answers; answers that repeat the prompt, as whole chats do, are read without it.

    Either may have more in front, as a system text: what is longer is the prompt.
    """
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        one, other = as_messages(chosen), as_messages(rejected)
        if _begins_with_a_question(one) and _begins_with_a_question(other):
            begun = as_messages(asked(prompt) if isinstance(prompt, str) else prompt)
            size = len(begun) if isinstance(begun, list) else 0
            if size and one[:size] == begun == other[:size]:
                return {"prompt": begun, "chosen": one[size:], "rejected": other[size:]}
            common, *answers = part_pair([], one, other)
            if size and common and begun[-len(common) :] == common:
                return {"prompt": begun, "chosen": answers[0], "rejected": answers[1]}
            if size == 0 or isinstance(prompt, str) or common[-size:] == begun:  # what both chats begin with counts
                return {"chosen": one, "rejected": other}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _begins_with_a_question(chat: list[Any]) -> bool:
    return bool(chat) and isinstance(chat[0], dict) and chat[0].get("role") != "assistant"


def _preferred(row: Row) -> Row:
    """Take a pair as OpenAI's fine-tuning has it."""
    given = row["input"]
    if not isinstance(given, dict):
        raise DataError("'input' must be an object with messages")
    return {
        "prompt": _list(given.get("messages")),
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
        **({"tools": given["tools"]} if given.get("tools") else {}),
    }


def _last_apart(messages: list[Any]) -> tuple[list[Any], list[Any]]:
    """Part a chat before its last message, which must be the assistant's."""
    if not messages or not isinstance(messages[-1], dict) or plain(messages[-1]).get("role") != "assistant":
        raise DataError("the chat does not end with an answer of the assistant")
    return messages[:-1], messages[-1:]


def _before_answer(messages: list[Any]) -> list[Any]:
    """Return what a chat asks: an answer at its end is left away."""
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


def _asked_and(row: Row, asks: Callable[[Row], list[Any]]) -> Row:
    return {"prompt": asks(row), "chosen": answered(row["chosen"]), "rejected": answered(row["rejected"])}


def _side(row: Row, side: str) -> Any:
    """Return one answer to a ShareGPT conversation: a turn, a list of turns, or text."""
    value = row[side]
    return answered(value) if isinstance(value, str) else [value] if isinstance(value, dict) else value


def _answers(column: str) -> Callable[[Row], bool]:
    """Tell chats that hold an answer from such as only ask."""
    return lambda row: "assistant" in roles_in(row[column])


DEMONSTRATIONS = (
    Shape("prompt-completion", ("prompt", "completion"), taken("prompt", "completion")),
    Shape("messages", ("messages",), taken("messages"), meant=_answers("messages")),
    Shape(
        "sharegpt",
        ("conversations",),
        lambda row: {"messages": turns(row)},
        ("system",),
        meant=_answers("conversations"),
    ),
    Shape(
        "conversation",
        ("conversation",),
        lambda row: {"messages": turns(row, "conversation")},
        ("system",),
        meant=_answers("conversation"),
    ),
    Shape(
        "alpaca",
        ("instruction", "output"),
        lambda row: {"messages": [*instruction(row), *answered(row["output"])]},
        ALPACA,
    ),
    Shape(
        "dolly",
        ("instruction", "response"),
        lambda row: {"messages": [*instruction(row, "context"), *answered(row["response"])]},
        ("context", "system", "history"),
    ),
    Shape(
        "question-answer",
        ("question", "answer"),
        lambda row: {"messages": [*question(row), *answered(row["answer"])]},
        ("system",),
    ),
    Shape(
        "question-response",
        ("question", "response"),
        lambda row: {"messages": [*question(row), *answered(row["response"])]},
        ("system",),
    ),
    Shape("prompt-response", ("prompt", "response"), taken("prompt", completion="response")),
    Shape("query-response", ("query", "response"), taken(prompt="query", completion="response")),
    Shape("inputs-targets", ("inputs", "targets"), taken(prompt="inputs", completion="targets")),
    Shape("completion", ("completion",), taken("completion")),
    Shape(
        "transcript",
        ("text",),
        lambda row: {"messages": transcript(row["text"])},
        fits=lambda row: is_transcript(row["text"]),
    ),
)

PREFERENCES = (
    Shape("prompt-chosen-rejected", ("prompt", "chosen", "rejected"), _pair),
    Shape(
        "sharegpt",
        ("conversations", "chosen", "rejected"),
        lambda row: {"prompt": turns(row), "chosen": _side(row, "chosen"), "rejected": _side(row, "rejected")},
        ("system",),
    ),
    Shape("alpaca", ("instruction", "chosen", "rejected"), lambda row: _asked_and(row, instruction), ALPACA),
    Shape(
        "alpaca-ranked",
        ("instruction", "output"),
        lambda row: {
            "prompt": instruction(row),
            "chosen": answered(_two(row)[0]),
            "rejected": answered(_two(row)[1]),
        },
        ALPACA,
        meant=lambda row: isinstance(row["output"], list),
    ),
    Shape(
        "question-chosen-rejected",
        ("question", "chosen", "rejected"),
        lambda row: _asked_and(row, question),
        ("system",),
    ),
    Shape("openai", ("input", "preferred_output", "non_preferred_output"), _preferred),
    Shape("chosen-rejected", ("chosen", "rejected"), taken("chosen", "rejected")),
    Shape(
        "transcript",
        ("chosen", "rejected"),
        lambda row: {side: transcript(row[side]) for side in ("chosen", "rejected")},
    ),
)


def label_of(value: Any) -> bool | None:
    """Read a label, also from CSV, which knows text only, and from sets that count classes; None where it is none."""
    return {"true": True, "false": False, "1": True, "0": False}.get(str(value).lower())


def rating_of(value: Any) -> float | None:
    """Read a rating; None where it is no finite number."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    return number if math.isfinite(number) else None


def _judged(mark: str) -> Callable[[Row], bool]:
    """Tell ratings from other rows that have such a column: of classes, of films for adults."""
    reader = label_of if mark == "label" else rating_of
    return lambda row: reader(row[mark]) is not None


RATINGS = tuple(
    replace(shape, meant=_judged(mark))
    for mark in ("rating", "label")
    for shape in (
        Shape(f"prompt-completion-{mark}", ("prompt", "completion", mark), taken("prompt", "completion", mark)),
        Shape(
            f"prompt-response-{mark}",
            ("prompt", "response", mark),
            _rated(lambda row: (row["prompt"], row["response"]), mark),
        ),
        Shape(f"messages-{mark}", ("messages", mark), _rated(lambda row: _last_apart(_list(row["messages"])), mark)),
        Shape(
            f"sharegpt-{mark}", ("conversations", mark), _rated(lambda row: _last_apart(turns(row)), mark), ("system",)
        ),
        Shape(
            f"alpaca-{mark}",
            ("instruction", "output", mark),
            _rated(lambda row: (instruction(row), answered(row["output"])), mark),
            ALPACA,
        ),
        Shape(f"text-{mark}", ("text", mark), _rated(lambda row: ("", row["text"]), mark)),
        Shape(f"sentence-{mark}", ("sentence", mark), _rated(lambda row: ("", row["sentence"]), mark)),
    )
)

PROMPTS = (
    Shape("prompt", ("prompt",), taken("prompt")),
    Shape("messages", ("messages",), lambda row: {"prompt": _before_answer(_list(row["messages"]))}),
    Shape("sharegpt", ("conversations",), lambda row: {"prompt": _before_answer(turns(row))}, ("system",)),
    Shape(
        "conversation",
        ("conversation",),
        lambda row: {"prompt": _before_answer(turns(row, "conversation"))},
        ("system",),
    ),
    Shape("alpaca", ("instruction",), lambda row: {"prompt": instruction(row)}, ALPACA),
    Shape("question", ("question",), lambda row: {"prompt": question(row)}, ("system",)),
    Shape("query", ("query",), taken(prompt="query")),
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
    """Return the format of a row: the first whose columns it has, all of them."""
    for shape in shapes:
        if all(map(row.__contains__, shape.needs)) and (shape.fits is None or shape.fits(row)):
            return shape
    return None


def traits(row: Row) -> Iterator[str]:
    """Yield what the columns that are read do not: how turns are written, and where the prompt is from."""
    chats = [turn for value in row.values() if isinstance(value, list) for turn in value if isinstance(turn, dict)]
    if any("from" in turn and "value" in turn for turn in chats):
        yield "ShareGPT roles"
    if any(isinstance(turn.get("content"), list) for turn in chats):
        yield "content in parts"
    if "tools" in row or any(turn.get("tool_calls") for turn in chats):
        yield "tools"
    if "system" in row:
        yield "system texts"
    if any(is_transcript(value) for value in row.values()):
        yield TRANSCRIPTS
    if {"chosen", "rejected"} == row.keys() - {"p_chosen", "tools", "system"}:
        yield "implicit prompts"
