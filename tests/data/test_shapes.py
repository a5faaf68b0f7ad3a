"""Formats of rows: each is told by its columns, and becomes ours."""

from pathlib import Path
from typing import Any

import pytest

from alignkit.contract.kinds import Demonstrations, Preferences, Prompts, Ratings, Records
from alignkit.data.formats import SHAPES
from alignkit.data.records import format_of_part
from alignkit.errors import DataError
from tests.data.test_records import put, records

USER = {"role": "user", "content": "a?"}
BOT = {"role": "assistant", "content": "b."}
BAD = {"role": "assistant", "content": "c."}
SHAREGPT = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b."}]
SYSTEM = {"role": "system", "content": "s"}
TRANSCRIPT = "\n\nHuman: a?\n\nAssistant:"

ROWS: list[tuple[type[Records], str, dict[str, Any], dict[str, Any]]] = [
    (
        Demonstrations,
        "prompt-completion",
        {"prompt": "a?", "completion": " b."},
        {"prompt": "a?", "completion": " b."},
    ),
    (Demonstrations, "messages", {"messages": [USER, BOT]}, {"messages": [USER, BOT]}),
    (Demonstrations, "sharegpt", {"conversations": SHAREGPT, "id": 3}, {"messages": [USER, BOT]}),
    (Demonstrations, "sharegpt", {"conversations": SHAREGPT, "system": "s"}, {"messages": [SYSTEM, USER, BOT]}),
    (Demonstrations, "alpaca", {"instruction": "a?", "input": "", "output": "b."}, {"messages": [USER, BOT]}),
    (
        Demonstrations,
        "alpaca",
        {"instruction": "a", "input": "x", "output": "b.", "history": [["a?", "b."]], "system": "s"},
        {"messages": [SYSTEM, USER, BOT, {"role": "user", "content": "a\n\nx"}, BOT]},
    ),
    (Demonstrations, "question-answer", {"question": "a?", "answer": "b."}, {"messages": [USER, BOT]}),
    (Demonstrations, "prompt-response", {"prompt": "a?", "response": " b."}, {"prompt": "a?", "completion": " b."}),
    (Demonstrations, "query-response", {"query": "a?", "response": " b."}, {"prompt": "a?", "completion": " b."}),
    (Demonstrations, "inputs-targets", {"inputs": "a?", "targets": " b."}, {"prompt": "a?", "completion": " b."}),
    (Demonstrations, "completion", {"completion": "b."}, {"prompt": "", "completion": "b."}),
    (
        Demonstrations,
        "dolly",
        {"instruction": "a", "context": "x", "response": "b.", "category": "qa"},
        {"messages": [{"role": "user", "content": "a\n\nx"}, BOT]},
    ),
    (
        Demonstrations,
        "question-response",
        {"system": "s", "question": "a?", "response": "b."},
        {"messages": [SYSTEM, USER, BOT]},
    ),
    (Demonstrations, "conversation", {"conversation": [USER, BOT], "model": "m"}, {"messages": [USER, BOT]}),
    (Demonstrations, "transcript", {"text": f"{TRANSCRIPT} b."}, {"messages": [USER, BOT]}),
    (
        Preferences,
        "prompt-chosen-rejected",
        {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]},
    ),
    (
        Preferences,
        "sharegpt",
        {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "c."}},
        {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]},
    ),
    (
        Preferences,
        "alpaca",
        {"instruction": "a?", "chosen": "b.", "rejected": "c."},
        {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]},
    ),
    (
        Preferences,
        "alpaca-ranked",
        {"instruction": "a?", "output": ["b.", "c."]},
        {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]},
    ),
    (
        Preferences,
        "question-chosen-rejected",
        {"question": "a?", "chosen": "b.", "rejected": "c."},
        {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]},
    ),
    (
        Preferences,
        "question-chosen-rejected",
        {"system": "s", "question": "a?", "chosen": "b.", "rejected": "c."},
        {"prompt": [SYSTEM, USER], "chosen": [BOT], "rejected": [BAD]},
    ),
    (
        Preferences,
        "openai",
        {"input": {"messages": [USER]}, "preferred_output": [BOT], "non_preferred_output": [BAD]},
        {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]},
    ),
    (
        Preferences,
        "transcript",
        {"chosen": f"{TRANSCRIPT} b.", "rejected": f"{TRANSCRIPT} c."},
        {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]},
    ),
    (
        Preferences,
        "chosen-rejected",
        {"chosen": [USER, BOT], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]},
    ),
    (
        Ratings,
        "messages-label",
        {"messages": [USER, BOT], "label": True},
        {"prompt": [USER], "completion": [BOT], "label": True},
    ),
    (
        Ratings,
        "sharegpt-rating",
        {"conversations": SHAREGPT, "rating": 3},
        {"prompt": [USER], "completion": [BOT], "rating": 3.0},
    ),
    (
        Ratings,
        "alpaca-label",
        {"instruction": "a?", "output": "b.", "label": 0},
        {"prompt": [USER], "completion": [BOT], "label": False},
    ),
    (Ratings, "text-label", {"text": "good", "label": 1}, {"prompt": "", "completion": "good", "label": True}),
    (Prompts, "messages", {"messages": [USER, BOT]}, {"prompt": [USER]}),
    (Prompts, "sharegpt", {"conversations": SHAREGPT}, {"prompt": [USER]}),
    (Prompts, "alpaca", {"instruction": "a?"}, {"prompt": [USER]}),
    (Prompts, "question", {"question": "a?"}, {"prompt": [USER]}),
    (Prompts, "query", {"query": "a?"}, {"prompt": "a?"}),
    (Prompts, "conversation", {"conversation": [USER, BOT]}, {"prompt": [USER]}),
]


BY_NAME = {(Preferences, "transcript")}
"""Formats that another one has the columns of: they are read where they are named."""


@pytest.mark.parametrize(("kind", "name", "row", "ours"), ROWS, ids=[f"{k.__name__}-{n}" for k, n, _, _ in ROWS])
def test_a_row_is_told_by_its_columns_and_becomes_ours(
    tmp_path: Path, kind: type[Records], name: str, row: dict[str, Any], ours: dict[str, Any]
) -> None:
    path = put(tmp_path, [row])

    if (kind, name) not in BY_NAME:
        assert list(records(kind, path).train()) == [ours]
    assert list(records(kind, path, format=name).train()) == [ours]


def test_every_format_is_read_by_a_test() -> None:
    read = {(kind.__name__, name) for kind, name, _, _ in ROWS}
    known = {(kind, shape.name) for kind, shapes in SHAPES.items() for shape in shapes}
    plain = {
        (kind, name)
        for kind, name in known
        if name in ("text", "prompt") or kind == "Ratings"  # two marks, one way of reading
    }

    assert known - read <= plain


PREFERRED = {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a?", "chosen": [USER, BOT], "rejected": [USER, BAD]},  # as ultrafeedback_binarized
        {"prompt": [USER], "chosen": [USER, BOT], "rejected": [USER, BAD]},
        {"prompt": "a?", "chosen": [BOT], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "b.", "rejected": "c."},
        {"prompt": "told apart", "chosen": [USER, BOT], "rejected": [USER, BAD]},
    ],
)
def test_a_pair_in_mixed_forms_is_one_where_it_is_plain_whose_words_are_whose(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    assert list(records(Preferences, put(tmp_path, [row])).train()) == [PREFERRED]


def test_text_beside_a_chat_becomes_its_turn(tmp_path: Path) -> None:
    path = put(tmp_path, [{"prompt": "a?", "completion": [BOT]}, {"prompt": [USER], "completion": "b."}])

    assert list(records(Demonstrations, path).train()) == [{"prompt": [USER], "completion": [BOT]}] * 2


def test_text_that_is_no_transcript_is_not_taken_for_one(tmp_path: Path) -> None:
    path = put(tmp_path, [{"text": "Assistant: a"}])

    with pytest.raises(DataError, match="need the columns prompt"):
        list(records(Demonstrations, path).train())
    with pytest.raises(DataError, match="begin with 'Human:'"):
        list(records(Preferences, put(tmp_path, [{"chosen": "a", "rejected": "b"}]), format="transcript").train())


@pytest.mark.parametrize(
    ("kind", "row", "traits", "unread"),
    [
        (Demonstrations, {"conversations": SHAREGPT, "id": 3}, ("ShareGPT roles",), ("id",)),
        (Demonstrations, {"messages": [USER, BOT], "tools": []}, ("tools",), ()),
        (
            Demonstrations,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, BOT]},
            ("content in parts",),
            (),
        ),
        (
            Preferences,
            {"chosen": f"{TRANSCRIPT} b.", "rejected": f"{TRANSCRIPT} c.", "p_chosen": 0.7, "source": "x"},
            ("transcripts (Human:, Assistant:)", "implicit prompts"),
            ("source",),
        ),
        (Prompts, {"prompt": "a?"}, (), ()),
    ],
)
def test_what_columns_do_not_tell_is_told_and_what_is_not_read(
    tmp_path: Path, kind: type[Records], row: dict[str, Any], traits: tuple[str, ...], unread: tuple[str, ...]
) -> None:
    (part,) = records(kind, put(tmp_path, [row])).parts

    found = format_of_part(part, kind.__name__, kind.columns)

    assert found is not None
    assert (found.traits, found.unread) == (traits, unread)


def test_content_in_parts_becomes_one_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "?"}]

    path = put(tmp_path, [{"messages": [{"role": "user", "content": parts}, BOT]}])

    assert list(records(Demonstrations, path).train()) == [{"messages": [USER, BOT]}]


def test_tools_stay_with_a_chat_and_a_call_needs_no_words(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]

    path = put(tmp_path, [{"messages": [USER, call], "tools": tools}])

    assert list(records(Demonstrations, path).train()) == [
        {"messages": [USER, {**call, "content": ""}], "tools": tools}
    ]


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        (
            Demonstrations,
            [{"prompt": "a?", "completion": "b."}, {"messages": [USER, BOT]}],
            ":2: the row is in the format 'messages', those before it in 'prompt-completion'; "
            "part the source, or say sources.mine.format or .columns",
        ),
        (
            Demonstrations,
            [{"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}],
            ":1: the content of a turn has parts of the type 'image', and only text is read; "
            "correct the row or leave it out",
        ),
        (
            Demonstrations,
            [{"messages": [{"role": "user", "content": [7]}]}],
            ':1: \'messages\' must be messages such as {"role": "user", "content": "..."}, '
            "and is {'role': 'user', 'content': [7]}; correct the row or leave it out",
        ),
        (
            Ratings,
            [{"messages": [USER], "label": True}],
            ":1: the chat does not end with an answer of the assistant; correct the row or leave it out",
        ),
        (
            Preferences,
            [{"instruction": "a?", "output": "b."}],
            ":1: 'output' must be a list of two answers, the chosen one first; correct the row or leave it out",
        ),
    ],
)
def test_a_row_that_is_not_what_its_format_says_is_refused(
    tmp_path: Path, kind: type[Records], rows: list[dict[str, Any]], message: str
) -> None:
    path = put(tmp_path, rows)

    with pytest.raises(DataError) as refused:
        list(records(kind, path).train())

    assert str(refused.value) == f"{path}{message}"


def test_a_named_format_wins_over_the_columns(tmp_path: Path) -> None:
    path = put(tmp_path, [{"prompt": "x", "completion": "y", "question": "a?", "answer": "b."}])

    assert list(records(Demonstrations, path, format="question-answer").train()) == [{"messages": [USER, BOT]}]


def test_a_row_without_the_columns_of_the_named_format_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, [{"question": "a?", "anwser": "b."}])

    with pytest.raises(DataError) as refused:
        list(records(Demonstrations, path, format="question-answer").train())

    assert str(refused.value) == (
        f"{path}:1: the format 'question-answer' needs the columns question + answer; the row has question, anwser; "
        "correct sources.mine.format or the row"
    )
