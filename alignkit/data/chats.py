"""Chats: turns as people write them become messages, and what counts as the answer.

A turn comes as a message (`role`, `content`), as a ShareGPT turn (`from`, `value`), or with content in parts. Calls of
tools come as chat templates want them, or as OpenAI's interface does, with arguments in text that holds JSON.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.errors import DataError

Turn = dict[str, Any]
Chat = list[Turn]

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who speaks in a message."""

ROLE_OF = {
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

TURN_KEYS = (
    "role",
    "content",
    "tool_calls",
    "tool_call_id",
    "name",
    "reasoning_content",
    "thinking",
    "weight",
)
"""What is read of a turn; a chat template may read more."""

NOTHING_ELSE = {"role", "content"}
"""The keys of nearly all turns, which are messages as they stand."""

SAID_OTHERWISE = {
    "train": True,
    "trainable": True,
    "loss": True,
    "loss_mask": True,
    "loss_weight": True,
    "masked": False,
}
"""Other keys that say whether a turn is learnt -> the value that says it is."""
IN_WORDS = {"true": True, "false": False}
"""How tables write those values."""


def as_messages(value: Any) -> Any:
    """Return a chat's turns as messages; what is none is left, for the checks to refuse. May raise DataError."""
    return [plain(turn) for turn in value] if isinstance(value, list) else value


def roles_in(chat: Any) -> set[Any]:
    """Return the roles that speak in a chat as it stands in a row."""
    turns = [turn for turn in chat if isinstance(turn, dict)] if isinstance(chat, list) else []
    said = [str(turn.get("role", turn.get("from"))).lower() for turn in turns]
    return {ROLE_OF.get(role, role) for role in said}


def plain(turn: Any) -> Any:
    """Return one turn as a message. Raises DataError, without a place, for calls, contents and weights that are none.

    ShareGPT's names become ours, content in parts becomes one text, arguments in text become an object; keys that
    hold nothing are left out.
    """
    if not isinstance(turn, dict) or (turn.keys() == NOTHING_ELSE and isinstance(turn["content"], str)):
        return turn
    turn = {name: value for name, value in turn.items() if value is not None or name == "content"}
    if "from" in turn and "value" in turn and "role" not in turn:
        turn = _from_sharegpt(turn)
    turn = _weighed(_with_calls(turn))
    content = turn.get("content")
    if isinstance(content, list):
        return {**turn, "content": _joined(content)}
    if content is None and turn.get("tool_calls"):
        return {**turn, "content": ""}
    return turn


def _from_sharegpt(turn: Turn) -> Turn:
    """Return a ShareGPT turn with our names; what `function_call` says are calls, written as JSON."""
    others = {name: value for name, value in turn.items() if name not in ("from", "value")}
    who, said = str(turn["from"]).lower(), turn["value"]
    role = ROLE_OF.get(who, turn["from"])
    if who != "function_call":
        return {"role": role, "content": said, **others}
    calls = _read_json(said)
    return {"role": role, "content": "", "tool_calls": calls if isinstance(calls, list) else [calls], **others}


def _joined(parts: list[Any]) -> Any:
    """Join the parts of a content that are text; what is no part stays as it is, and is refused by the checks.

    Raises DataError for parts of another type, such as images.
    """
    texts = [_text_of(part) for part in parts]
    if None not in texts:
        return "".join(text for text in texts if text is not None)
    others = {str(part["type"]) for part in parts if isinstance(part, dict) and part.get("type", "text") != "text"}
    if others:
        types = " and ".join(map(repr, sorted(others)))
        raise DataError(f"the content of a turn has parts of the type {types}, and only text is read")
    return parts


def _text_of(part: Any) -> str | None:
    if isinstance(part, dict):
        part = part.get("text", part.get("value")) if part.get("type", "text") == "text" else None
    return part if isinstance(part, str) else None


# Calls of tools


def _with_calls(turn: Turn) -> Turn:
    """Return a turn with its calls as chat templates want them; those of OpenAI's older format become such."""
    if turn.get("role") == "function":
        turn = {**turn, "role": "tool"}
    if "function_call" in turn and "tool_calls" not in turn:
        turn = {**turn, "tool_calls": [{"type": "function", "function": turn["function_call"]}]}
        del turn["function_call"]
    if "tool_calls" not in turn:
        return turn
    calls = _read_json(turn["tool_calls"])
    others = {name: value for name, value in turn.items() if name != "tool_calls"}
    if calls in ([], "", None):
        return others
    if turn.get("role") != "assistant":
        raise DataError(f"a turn of the role {turn.get('role')!r} calls a tool; only the assistant does")
    if not isinstance(calls, list):
        raise DataError(f"'tool_calls' must be a list of calls, and is {_shown(calls)}")
    return {**others, "tool_calls": [_call(call) for call in calls]}


def _call(call: Any) -> Turn:
    """Return a call, its arguments as an object; without any it has none, as where a columnar file has a null."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        wanted = '{"function": {"name": "...", "arguments": {...}}}'
        raise DataError(f"a call of a tool must be such as {wanted}, and is {_shown(call)}")
    given = function.get("arguments")
    if given is None and function.get("parameters") is not None:
        raise DataError(f"a call of {function['name']!r} has 'parameters' where it must have 'arguments'")
    arguments = {} if given in (None, "") else _read_json(given)
    if not isinstance(arguments, dict):
        problem = f"the arguments of a call of {function['name']!r} must be an object, or text that holds one in JSON"
        raise DataError(f"{problem}, and are {_shown(given)}")
    read = {**function, "arguments": arguments}
    return {**call, "function": read} if "function" in call else read


def _read_json(value: Any) -> Any:
    """Read what a text holds as JSON; any other value, or text that is none, stays as it is."""
    try:
        return json.loads(value, parse_constant=_no_json) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _no_json(constant: str) -> Any:
    """Refuse NaN and infinities, which Python reads and JSON does not have."""
    raise ValueError(constant)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_tools(value: Any) -> list[Turn] | None:
    """Read the tools that a chat may call: JSON schemas, as a list or written as JSON. None where it is neither."""
    tools = _read_json(value)
    tools = [_read_json(tool) for tool in tools] if isinstance(tools, list) else None
    return tools if tools is not None and all(isinstance(tool, dict) for tool in tools) else None


# What is learnt of a chat


def _weighed(turn: Turn) -> Turn:
    """Return an assistant's turn with its weight, 0 or 1, where it says one; of others nothing is learnt."""
    flags = {name: _flag(turn[name]) for name in SAID_OTHERWISE if name in turn}
    said = {name: flag for name, flag in flags.items() if flag is not None}
    if not said and "weight" not in turn:
        return turn
    others = {name: value for name, value in turn.items() if name not in said and name != "weight"}
    if turn.get("role") != "assistant":
        return others
    weights = {int(flag is SAID_OTHERWISE[name]) for name, flag in said.items()}
    if "weight" in turn:
        if (weight := _flag(turn["weight"])) is None:
            raise DataError(f"the weight of a turn must be 0 (it is not learnt) or 1, and is {_shown(turn['weight'])}")
        weights.add(int(weight))
    if len(weights) > 1:
        keys = " and ".join([*sorted(said), *(["weight"] if "weight" in turn else [])])
        raise DataError(f"the keys {keys} of a turn contradict each other on whether it is learnt")
    return {**others, "weight": weights.pop()}


def _flag(value: Any) -> bool | None:
    """Read a flag; None where it is none, such as a number that somebody logged."""
    if isinstance(value, str):
        return IN_WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def teaches_nothing(turns: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether every answer in a chat is marked as not to be learnt, or there is none."""
    return all(turn["role"] != "assistant" or turn.get("weight") == 0 for turn in turns)


def text_of(turn: Mapping[str, Any]) -> str:
    """Return what a turn says as text, its calls of tools included."""
    calls = turn.get("tool_calls")
    return str(turn["content"]) + (json.dumps(calls, ensure_ascii=False, default=str) if calls else "")


# What counts as the answer


def part_pair(prompt: Chat, chosen: Chat, rejected: Chat) -> tuple[Chat, Chat, Chat]:
    """Part two chats where what is compared begins; give the prompt and both answers.

    What both sides begin with belongs to the prompt, up to the last place where the assistant begins to answer in
    both. Behind a prompt that is given, sides begin with the assistant.
    """
    shared = next((i for i, (x, y) in enumerate(zip(chosen, rejected, strict=False)) if x != y), None)
    shared = min(len(chosen), len(rejected)) if shared is None else shared
    both = [_both_answer(turns) for turns in zip(chosen, rejected, strict=False)]
    starts = [i for i in range(min(shared + 1, len(both))) if both[i] and not (i and both[i - 1])]
    size = starts[-1] if starts and (not prompt or starts[0] == 0) else 0
    return [*prompt, *chosen[:size]], chosen[size:], rejected[size:]


def _both_answer(turns: Sequence[Any]) -> bool:
    return all(isinstance(turn, dict) and turn.get("role") == "assistant" for turn in turns)


def check_answer(turns: Sequence[Turn], column: str, place: str) -> None:
    """Refuse a chat that is no answer: what the assistant says, and what tools return to it, up to what it says last.

    Raises DataError.
    """
    first, last, leave_out = turns[0]["role"], turns[-1]["role"], "or leave the row out"
    if last != "assistant":
        if len(turns) == 1:
            remedy = f'if it is the answer, give it the role "assistant"; else correct the row {leave_out}'
            raise DataError(f"{column!r} is a turn of the role {last!r}, not an answer of the assistant", place, remedy)
        problem = f"{column!r} does not end with an answer of the assistant, but with a turn of the role {last!r}"
        raise DataError(problem, place, f"end it with the answer, {leave_out}")
    if first != "assistant":
        problem = f"{column!r} begins with a turn of the role {first!r}, which is not part of the prompt"
        remedy = f"put into the prompt what comes before the answer, or begin both sides of a pair alike, {leave_out}"
        raise DataError(problem, place, remedy)
    if other := next((turn["role"] for turn in turns if turn["role"] not in ("assistant", "tool")), None):
        problem = f"{column!r} goes on with a turn of the role {other!r} behind its first answer"
        remedy = f"put what comes before its last answer into the prompt, the same for both sides, {leave_out}"
        raise DataError(problem, place, remedy)
    if teaches_nothing(turns):
        problem = f"{column!r} has the weight 0: nothing is learnt from it"
        raise DataError(problem, place, "correct the row or leave it out")
