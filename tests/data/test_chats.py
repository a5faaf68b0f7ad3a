"""Chats: calls of tools, turns that are not learnt, and what counts as the answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.contract.kinds import Demonstrations, Preferences, Prompts, Ratings, Records
from alignkit.show.audit_lines import facts
from alignkit.sources.audit import audit
from alignkit.sources.source import RecordOptions
from tests.data.test_records import put, records, refusal

USER = {"role": "user", "content": "a?"}
MORE = {"role": "user", "content": "and?"}
SYSTEM = {"role": "system", "content": "s"}
TOOL = {"role": "tool", "content": "seen"}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def bot(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {**more, "type": "function", "function": {"name": "look", "arguments": arguments}}


def read(folder: Path, kind: type[Records], row: dict[str, Any], **options: Any) -> dict[str, Any]:
    (found,) = records(kind, put(folder, [row]), **options).train()
    return found


# Calls of tools


OBJECT = {"thing": "door"}
TEXT = json.dumps(OBJECT)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (Demonstrations, lambda said: {"messages": [USER, said, TOOL, bot("b.")]}),
        (Demonstrations, lambda said: {"prompt": [USER, said, TOOL], "completion": [bot("b.")]}),
        (Prompts, lambda said: {"prompt": [USER, said, TOOL]}),
        (Prompts, lambda said: {"messages": [USER, said, TOOL, MORE]}),
        (Preferences, lambda said: {"prompt": [USER], "chosen": [said], "rejected": [bot("c.")]}),
        (Preferences, lambda said: {"chosen": [USER, said], "rejected": [USER, bot("c.")]}),
        (Ratings, lambda said: {"messages": [USER, said], "label": True}),
        (Ratings, lambda said: {"prompt": [USER], "completion": [said], "rating": 1.0}),
    ],
)
@pytest.mark.parametrize(
    "said",
    [
        bot("", tool_calls=[call(TEXT, id="1")]),
        bot("", tool_calls=json.dumps([call(OBJECT, id="1")])),
        {"role": "assistant", "content": None, "tool_calls": [call(TEXT, id="1")], "function_call": None},
    ],
)
def test_arguments_in_text_are_read_as_the_object_that_they_hold(
    tmp_path: Path, kind: type[Records], make: Any, said: dict[str, Any]
) -> None:
    as_object = bot("", tool_calls=[call(OBJECT, id="1")])

    assert read(tmp_path, kind, make(said)) == read(tmp_path, kind, make(as_object))


def test_calls_in_the_older_format_become_calls_of_tools(tmp_path: Path) -> None:
    older = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": TEXT}},
        {"role": "function", "name": "look", "content": "seen"},
        bot("b."),
    ]

    row = read(tmp_path, Demonstrations, {"messages": older})

    assert row["messages"] == [USER, bot("", tool_calls=[call(OBJECT)]), {**TOOL, "name": "look"}, bot("b.")]


@pytest.mark.parametrize(
    ("said", "calls"),
    [
        (json.dumps({"name": "look", "arguments": OBJECT}), [{"name": "look", "arguments": OBJECT}]),
        (json.dumps({"name": "look", "arguments": TEXT}), [{"name": "look", "arguments": OBJECT}]),
        (json.dumps([call(OBJECT), call({})]), [call(OBJECT), call({})]),
        ({"name": "look"}, [{"name": "look", "arguments": {}}]),
    ],
)
def test_what_a_sharegpt_turn_calls_is_a_call_of_a_tool(tmp_path: Path, said: Any, calls: list[Any]) -> None:
    turns = [("human", "a?"), ("function_call", said), ("observation", "seen"), ("gpt", "b.")]

    row = read(tmp_path, Demonstrations, {"conversations": [{"from": who, "value": value} for who, value in turns]})

    assert row["messages"] == [USER, bot("", tool_calls=calls), TOOL, bot("b.")]


def test_a_sharegpt_call_that_is_none_is_refused_with_its_place(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a?"}, {"from": "function_call", "value": "look(door)"}]
    path = put(tmp_path, [{"conversations": turns}])

    assert refusal(tmp_path, Demonstrations, path) == (
        'FOLDER/rows.jsonl:1: a call of a tool must be such as {"function": {"name": "...", "arguments": {...}}}, '
        "and is 'look(door)'; correct the row or leave it out"
    )


@pytest.mark.parametrize("nothing", [None, [], "[]", ""])
def test_a_turn_that_calls_nothing_has_no_calls(tmp_path: Path, nothing: Any) -> None:
    row = read(tmp_path, Demonstrations, {"messages": [{**USER, "tool_calls": nothing}, bot("b.", tool_calls=nothing)]})

    assert row == {"messages": [USER, bot("b.")]}


@pytest.mark.parametrize("arguments", ["", {}, "{}", None])
def test_a_call_without_arguments_is_read(tmp_path: Path, arguments: Any) -> None:
    row = read(tmp_path, Demonstrations, {"messages": [USER, bot("", tool_calls=[call(arguments)])]})

    assert row["messages"][1]["tool_calls"] == [call({})]


def test_a_call_without_a_wrapper_stays_without_one(tmp_path: Path) -> None:
    row = read(
        tmp_path, Demonstrations, {"messages": [USER, bot("", tool_calls=[{"name": "look", "arguments": TEXT}])]}
    )

    assert row["messages"][1]["tool_calls"] == [{"name": "look", "arguments": OBJECT}]


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        (
            bot("", tool_calls=[call("the door")]),
            "the arguments of a call of 'look' must be an object, or text that holds one in JSON, and are 'the door'",
        ),
        (
            bot("", tool_calls=[call("[1]")]),
            "the arguments of a call of 'look' must be an object, or text that holds one in JSON, and are '[1]'",
        ),
        (bot("", tool_calls="look"), "'tool_calls' must be a list of calls, and is 'look'"),
        (
            bot("", tool_calls=["look"]),
            'a call of a tool must be such as {"function": {"name": "...", "arguments": {...}}}, and is \'look\'',
        ),
        (
            bot("", tool_calls=[{"function": {"arguments": {}}}]),
            'a call of a tool must be such as {"function": {"name": "...", "arguments": {...}}}, '
            "and is {'function': {'arguments': {}}}",
        ),
        (
            bot("", tool_calls=[{"name": "look", "parameters": OBJECT}]),
            "a call of 'look' has 'parameters' where it must have 'arguments'",
        ),
        (
            bot("", tool_calls=[call('{"n": NaN}')]),
            "the arguments of a call of 'look' must be an object, or text that holds one in JSON, "
            "and are '{\"n\": NaN}'",
        ),
        ({**USER, "tool_calls": [call({})]}, "a turn of the role 'user' calls a tool; only the assistant does"),
    ],
)
def test_what_is_no_call_is_refused_with_its_place(tmp_path: Path, turn: dict[str, Any], problem: str) -> None:
    path = put(tmp_path, [{"messages": [USER, turn, bot("b.")]}])

    assert refusal(tmp_path, Demonstrations, path) == f"FOLDER/rows.jsonl:1: {problem}; correct the row or leave it out"


# Turns that are not learnt


@pytest.mark.parametrize("said", [{"weight": 0}, {"weight": 0.0}, {"weight": False}, {"train": False}, {"loss": False},
                                  {"trainable": 0}, {"loss_mask": 0}, {"masked": True}, {"loss_weight": 0.0},
                                  {"train": "False"}])  # fmt: skip
def test_a_turn_that_is_not_to_be_learnt_has_the_weight_0(tmp_path: Path, said: dict[str, Any]) -> None:
    row = read(tmp_path, Demonstrations, {"messages": [USER, bot("no", **said), MORE, bot("b.")]})

    assert row["messages"] == [USER, bot("no", weight=0), MORE, bot("b.")]


def test_a_sharegpt_turn_keeps_its_weight(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "a?", "weight": 0},
        {"from": "gpt", "value": "no", "weight": 0},
        {"from": "human", "value": "and?"},
        {"from": "gpt", "value": "b.", "weight": 1},
    ]

    row = read(tmp_path, Demonstrations, {"conversations": turns})

    assert row["messages"] == [USER, bot("no", weight=0), MORE, bot("b.", weight=1)]


def test_what_only_looks_like_a_weight_stays_a_key_of_its_turn(tmp_path: Path) -> None:
    turn = bot("b.", loss=2.31, train="yes")

    assert read(tmp_path, Demonstrations, {"messages": [USER, turn]})["messages"] == [USER, turn]


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        (bot("b.", weight=0.5), "the weight of a turn must be 0 (it is not learnt) or 1, and is 0.5"),
        (bot("b.", weight="0"), "the weight of a turn must be 0 (it is not learnt) or 1, and is '0'"),
        (
            bot("b.", weight=1, train=False),
            "the keys train and weight of a turn contradict each other on whether it is learnt",
        ),
        (
            bot("b.", weight=0),
            "nothing can be learnt from 'messages': every answer in it has the weight 0",
        ),
        (MORE, "nothing can be learnt from 'messages': it has no answer of the assistant"),
    ],
)
def test_a_chat_that_does_not_say_what_is_learnt_is_refused(tmp_path: Path, turn: dict[str, Any], problem: str) -> None:
    path = put(tmp_path, [{"messages": [USER, turn]}])

    assert refusal(tmp_path, Demonstrations, path) == f"FOLDER/rows.jsonl:1: {problem}; correct the row or leave it out"


# What counts as the answer


TRANSCRIPT = "\n\nHuman: a?\n\nAssistant:"
THANKS = {"role": "user", "content": "thanks"}


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        (  # what both begin with is the prompt, though one is given
            {"prompt": [USER], "chosen": [bot("b"), MORE, bot("c")], "rejected": [bot("b"), MORE, bot("d")]},
            [USER, bot("b"), MORE],
            [bot("c")],
            [bot("d")],
        ),
        (  # the same call on both sides is no part of what is compared
            {"chosen": [USER, bot("x"), TOOL, bot("c")], "rejected": [USER, bot("x"), TOOL, bot("d")]},
            [USER, bot("x"), TOOL],
            [bot("c")],
            [bot("d")],
        ),
        (  # what the tool said differs, so the answers part before it
            {"prompt": [USER], "chosen": [bot("x"), TOOL, bot("c")], "rejected": [bot("x"), {**TOOL, "content": "no"},
             bot("d")]},
            [USER],
            [bot("x"), TOOL, bot("c")],
            [bot("x"), {**TOOL, "content": "no"}, bot("d")],
        ),
        (  # one side answers at once
            {"prompt": [USER], "chosen": [bot("x"), TOOL, bot("c")], "rejected": [bot("d")]},
            [USER],
            [bot("x"), TOOL, bot("c")],
            [bot("d")],
        ),
        (  # an answer that goes on begins with its first turn
            {"prompt": [USER], "chosen": [bot("b"), bot("c")], "rejected": [bot("b"), bot("d")]},
            [USER],
            [bot("b"), bot("c")],
            [bot("b"), bot("d")],
        ),
        (  # whole chats beside a prompt with a system text
            {"prompt": [SYSTEM, USER], "chosen": [USER, bot("c")], "rejected": [USER, bot("d")]},
            [SYSTEM, USER],
            [bot("c")],
            [bot("d")],
        ),
        (  # whole chats with a system text beside a prompt without
            {"prompt": [USER], "chosen": [SYSTEM, USER, bot("c")], "rejected": [SYSTEM, USER, bot("d")]},
            [SYSTEM, USER],
            [bot("c")],
            [bot("d")],
        ),
    ],
)  # fmt: skip
def test_a_pair_is_compared_from_where_its_answers_part(
    tmp_path: Path, row: dict[str, Any], prompt: object, chosen: object, rejected: object
) -> None:
    assert read(tmp_path, Preferences, row) == {"prompt": prompt, "chosen": chosen, "rejected": rejected}


LEAVE_OUT = "or leave the row out"
MIDDLE = f"put what comes before its last answer into the prompt, the same for both sides, {LEAVE_OUT}"
BEFORE = (
    "which is not part of the prompt; put into the prompt what comes before the answer, or begin both sides of a pair "
    f"alike, {LEAVE_OUT}"
)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (
            Preferences,
            {"prompt": [USER], "chosen": [bot("b"), THANKS], "rejected": [bot("c"), THANKS]},
            "'chosen' does not end with an answer of the assistant, but with a turn of the role 'user'; "
            f"end it with the answer, {LEAVE_OUT}",
        ),
        (
            Preferences,
            {"chosen": [USER, bot("b")], "rejected": [USER, bot("c"), TOOL]},
            "'rejected' does not end with an answer of the assistant, but with a turn of the role 'tool'; "
            f"end it with the answer, {LEAVE_OUT}",
        ),
        (
            Preferences,
            {"prompt": [USER], "chosen": [{"role": "user", "content": "b"}], "rejected": [bot("c")]},
            "'chosen' is a turn of the role 'user', not an answer of the assistant; if it is the answer, give it the "
            f'role "assistant"; else correct the row {LEAVE_OUT}',
        ),
        (
            Preferences,
            {"prompt": [USER], "chosen": [bot("b"), MORE, bot("c")], "rejected": [bot("d"), MORE, bot("e")]},
            f"'chosen' goes on with a turn of the role 'user' behind its first answer; {MIDDLE}",
        ),
        (
            Preferences,
            {"chosen": [SYSTEM, USER, bot("b")], "rejected": [USER, bot("c")]},
            f"'chosen' begins with a turn of the role 'system', {BEFORE}",
        ),
        (
            Preferences,
            {"prompt": [USER], "chosen": [MORE, bot("b")], "rejected": [MORE, bot("c")]},
            f"'chosen' begins with a turn of the role 'user', {BEFORE}",
        ),
        (
            Preferences,
            {"chosen": [USER, bot("b")], "rejected": [USER]},
            "'rejected' is a turn of the role 'user', not an answer of the assistant; if it is the answer, give it the "
            f'role "assistant"; else correct the row {LEAVE_OUT}',
        ),
        (
            Preferences,
            {"prompt": [USER], "chosen": [USER, bot("b")], "rejected": [USER]},
            "'rejected' must be at least one message, and is []; correct the row or leave it out",
        ),
        (
            Preferences,
            {"prompt": [USER, bot("a")], "chosen": [bot("b")], "rejected": [bot("c")]},
            "'prompt' ends with an answer, so it asks nothing; take that turn out of the prompt",
        ),
        (
            Prompts,
            {"prompt": [USER, bot("b")]},
            "'prompt' ends with an answer, so it asks nothing; take that turn out of the prompt",
        ),
        (
            Preferences,
            {"chosen": f"{TRANSCRIPT} b\n\nHuman: thanks", "rejected": f"{TRANSCRIPT} c\n\nHuman: no"},
            f"'chosen' goes on with 'Human:' behind its answer; end it with the answer, {LEAVE_OUT}",
        ),
        (
            Preferences,
            {"prompt": TRANSCRIPT, "chosen": " b", "rejected": " c\n\nHuman: no"},
            f"'rejected' goes on with 'Human:' behind its answer; end it with the answer, {LEAVE_OUT}",
        ),
        (
            Ratings,
            {"prompt": [USER], "completion": [bot("b"), THANKS], "label": True},
            "'completion' does not end with an answer of the assistant, but with a turn of the role 'user'; "
            f"end it with the answer, {LEAVE_OUT}",
        ),
        (
            Demonstrations,
            {"prompt": [USER], "completion": [bot("b"), MORE, bot("c")]},
            f"'completion' goes on with a turn of the role 'user' behind its first answer; {MIDDLE}",
        ),
        (
            Demonstrations,
            {"prompt": [USER], "completion": [bot("b", weight=0)]},
            "'completion' has the weight 0: nothing is learnt from it; correct the row or leave it out",
        ),
    ],
)
def test_what_does_not_answer_is_refused(
    tmp_path: Path, kind: type[Records], row: dict[str, Any], message: str
) -> None:
    assert refusal(tmp_path, kind, put(tmp_path, [row])) == f"FOLDER/rows.jsonl:1: {message}"


# What else a prompt is made of


CHATS = [
    (Demonstrations, {"messages": [USER, bot("b")]}),
    (Demonstrations, {"prompt": [USER], "completion": [bot("b")]}),
    (Demonstrations, {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]}),
    (Preferences, {"prompt": [USER], "chosen": [bot("b")], "rejected": [bot("c")]}),
    (Preferences, {"chosen": [USER, bot("b")], "rejected": [USER, bot("c")]}),
    (Prompts, {"prompt": [USER]}),
    (Prompts, {"messages": [USER]}),
    (Ratings, {"prompt": [USER], "completion": [bot("b")], "label": True}),
    (Ratings, {"messages": [USER, bot("b")], "rating": 1}),
]


@pytest.mark.parametrize(("kind", "row"), CHATS)
@pytest.mark.parametrize("given", [[LOOK], json.dumps([LOOK]), [json.dumps(LOOK)]])
def test_tools_beside_a_chat_are_kept_in_every_kind(
    tmp_path: Path, kind: type[Records], row: dict[str, Any], given: Any
) -> None:
    assert read(tmp_path, kind, {**row, "tools": given}) == {**read(tmp_path, kind, row), "tools": [LOOK]}


def test_tools_in_the_input_of_a_pair_are_kept(tmp_path: Path) -> None:
    row = {
        "input": {"messages": [USER], "tools": [LOOK], "parallel_tool_calls": True},
        "preferred_output": [bot("b")],
        "non_preferred_output": [bot("c")],
    }

    assert read(tmp_path, Preferences, row)["tools"] == [LOOK]


def test_tools_that_are_none_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path, [{"prompt": [USER], "tools": ["look"]}])

    assert refusal(tmp_path, Prompts, path) == (
        "FOLDER/rows.jsonl:1: 'tools' must be a list of tools as JSON schemas, and is ['look']; "
        "correct the row or leave it out"
    )


@pytest.mark.parametrize(("kind", "row"), CHATS)
def test_a_system_text_beside_a_chat_is_its_first_turn(
    tmp_path: Path, kind: type[Records], row: dict[str, Any]
) -> None:
    found, without = read(tmp_path, kind, {**row, "system": "s"}), read(tmp_path, kind, row)
    column = "messages" if "messages" in without else "prompt"

    assert found == {**without, column: [SYSTEM, *without[column]]}


def test_a_system_text_that_the_chat_begins_with_is_not_repeated(tmp_path: Path) -> None:
    row = {"messages": [SYSTEM, USER, bot("b")], "system": "s"}

    assert read(tmp_path, Demonstrations, row) == {"messages": [SYSTEM, USER, bot("b")]}


def test_two_system_texts_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path, [{"messages": [SYSTEM, USER, bot("b")], "system": "other"}])

    assert refusal(tmp_path, Demonstrations, path) == (
        "FOLDER/rows.jsonl:1: the column 'system' says something else than the system turn of 'messages'; "
        "take the column out, or make both say the same"
    )


def test_answers_of_several_turns_are_told(tmp_path: Path) -> None:
    row = {"prompt": [USER], "chosen": [bot("x"), TOOL, bot("b")], "rejected": [bot("c")]}

    found = audit(records(Preferences, put(tmp_path, [row])), RecordOptions())

    assert ("answers", "1 have several turns; the last of them is the answer") in list(facts(found))
