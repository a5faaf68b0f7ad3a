"""Rows as texts: what is asked, what is answered, and which part of a text is learnt.

Strings are taken as they stand, prompt and answer joined. Chats are rendered by the tokenizer's template
(`alignkit.training.templates`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from transformers import PreTrainedTokenizerBase

from alignkit.training import templates
from alignkit.training.templates import Chat, Learn, Spoken, Tools

Row = Mapping[str, Any]


class Joined(NamedTuple):
    """A prompt and an answer that stand one behind the other."""

    prompt: str
    answer: str


RowText: TypeAlias = Joined | Spoken
"""A row as a text, with what is learnt of it."""


class Learnt(NamedTuple):
    """A chat, and the places of its turns that are learnt."""

    turns: Chat
    places: list[int]


def demonstrated(row: Row, learn: Learn) -> Learnt | None:
    """Return a demonstration as a chat; None where prompt and answer are strings."""
    if "messages" in row:
        return Learnt(row["messages"], templates.learnt_turns(row["messages"], learn))
    if isinstance(row["prompt"], str) and isinstance(row["completion"], str):
        return None
    before = _as_chat(row["prompt"], "user")
    turns = [*before, *_as_chat(row["completion"], "assistant")]
    return Learnt(turns, templates.learnt_turns(turns, learn, len(before)))


def with_answer(prompt: str | Chat, answer: str | Chat) -> Learnt:
    """Return a prompt with its answer as a chat, of which the last turn of the assistant is learnt."""
    before = _as_chat(prompt, "user")
    turns = [*before, *_as_chat(answer, "assistant")]
    return Learnt(turns, templates.said_by_assistant(turns, len(before))[-1:])


def demonstration_text(row: Row, tokenizer: PreTrainedTokenizerBase, learn: Learn) -> RowText:
    """Return a demonstration as a text; raises DataError where the chat template refuses it."""
    if chat := demonstrated(row, learn):
        return templates.spoken(*chat, tokenizer, row.get("tools"))
    return Joined(row["prompt"], row["completion"])


def text_with_answer(
    prompt: str | Chat, answer: str | Chat, tokenizer: PreTrainedTokenizerBase, tools: Tools = None
) -> RowText:
    """Return a prompt with its answer as a text, the answer to be learnt.

    Of an answer of several turns the last one of the assistant is the answer, whatever its weight, and what stands
    before it belongs to the prompt. Raises DataError where the chat template refuses it.
    """
    if isinstance(prompt, str) and isinstance(answer, str):
        return Joined(prompt, answer)
    return templates.spoken(*with_answer(prompt, answer), tokenizer, tools)


def answered_text(
    prompt: str | Chat, answer: str | Chat, tokenizer: PreTrainedTokenizerBase, tools: Tools = None
) -> tuple[str, str]:
    """Return what `answered` encodes as two texts: what is asked, and the answer with the closing of its turn."""
    whole = text_with_answer(prompt, answer, tokenizer, tools)
    if isinstance(whole, Joined):
        return whole
    text, ((start, _),) = whole
    return text[:start], text[start:]


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str | Chat, tools: Tools = None) -> str:
    """Return what a policy is asked as text: a string as it is, a chat as its template renders it."""
    return prompt if isinstance(prompt, str) else templates.rendered(tokenizer, prompt, asking=True, tools=tools)


def shown(answer: str | Chat) -> str:
    """Return an answer as text for people."""
    return answer if isinstance(answer, str) else "\n".join(turn["content"] for turn in answer)


def parted(row: Row) -> tuple[str | Chat, str | Chat]:
    """Part a demonstration in what is asked and what is answered; a chat before the assistant's last turn."""
    if "messages" not in row:
        return row["prompt"], row["completion"]
    turns = row["messages"]
    place = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
    return turns[:place], turns[place : place + 1]


def _as_chat(text: str | Chat, role: str) -> Chat:
    if isinstance(text, str):
        return [{"role": role, "content": text}] if text else []
    return text
