"""All chats of a source as one model's template renders them: what it refuses, and what it leaves away.

Chats are rendered by the very functions that encode them for training; nothing is made into tokens.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Demonstrations, Preferences, Prompts, Ratings, Records
from alignkit.errors import DataError
from alignkit.sources.source import SHOWN
from alignkit.training import encoding, row_texts, templates
from alignkit.training.row_texts import Learnt, Row
from alignkit.training.templates import Chat, Learn


@dataclass
class Rendering:
    """What became of a source's chats."""

    rows: int = 0
    refused: int = 0
    """Rows that cannot be learnt from, or asked, by this template."""
    first: list[list[str]] = field(default_factory=list)
    """The first of these: problem, place and remedy."""
    unread: dict[str, int] = field(default_factory=dict)
    """Keys of turns that the template does not mention, and how many turns have each."""
    changed: int = 0
    """Answers that are learnt otherwise than they stand."""
    first_changed: str = ""
    """Where the first of them stands."""
    unshown: dict[str, int] = field(default_factory=dict)
    """Who else speaks in turns that do not stand in the text as they are in the row, and how many turns."""
    first_unshown: str = ""
    """Where the first of these stands."""

    @property
    def errors(self) -> list[DataError]:
        return [DataError(*one) for one in self.first]


class Rendered(NamedTuple):
    """What became of a row's turns."""

    changed: int = 0
    """Learnt answers that do not stand in the text as they are in the row."""
    unshown: Sequence[str] = ()
    """The roles of other turns, those of the assistant aside, that do not."""


def render_all(records: Records, tokenizer: PreTrainedTokenizerBase, learn: Learn = "all") -> Rendering:
    """Render every chat of a source."""
    found, keys, unshown = Rendering(), Counter[str](), Counter[str]()
    for row in chain(records.train(), records.held_out()):
        found.rows += 1
        keys.update(key for turn in turns_of(row) for key, value in turn.items() if value is not None)
        try:
            turns = _render(type(records), row, tokenizer, learn)
        except DataError as error:
            found.refused += 1
            if len(found.first) < SHOWN:
                placed = encoding.at_place(error, row)
                found.first.append([placed.problem, placed.where, placed.remedy])
            continue
        found.first_changed = found.first_changed or (row.place if turns.changed else "")
        found.first_unshown = found.first_unshown or (row.place if turns.unshown else "")
        found.changed += turns.changed
        unshown.update(turns.unshown)
    found.unshown = dict(unshown)
    found.unread = {key: keys[key] for key in templates.unread_keys(tokenizer, sorted(keys))}
    return found


def turns_of(row: Row) -> Iterator[dict[str, Any]]:
    """Yield all turns of a row's chats."""
    for name in ("prompt", "completion", "messages", "chosen", "rejected"):
        value = row.get(name)
        if isinstance(value, list):
            yield from value


def _render(kind: type[Records], row: Row, tokenizer: PreTrainedTokenizerBase, learn: Learn) -> Rendered:
    """Render a row's chats, and find what does not stand in the text as it is in the row."""
    if issubclass(kind, Prompts):
        text = row_texts.prompt_text(tokenizer, row["prompt"], row.get("tools"))
        return Rendered(unshown=() if isinstance(row["prompt"], str) else _unshown(row["prompt"], text))
    found = [_look(chat, tokenizer, row) for chat in _chats(kind, row, learn)]
    return Rendered(sum(one.changed for one in found), [role for one in found for role in one.unshown])


def _chats(kind: type[Records], row: Row, learn: Learn) -> Iterator[Learnt]:
    if issubclass(kind, Demonstrations):
        if chat := row_texts.demonstrated(row, learn):
            yield chat
        return
    pair = ("chosen", "rejected") if issubclass(kind, Preferences) else ()
    for name in ("completion",) if issubclass(kind, Ratings) else pair:
        if not (isinstance(row["prompt"], str) and isinstance(row[name], str)):
            yield row_texts.with_answer(row["prompt"], row[name])


def _look(chat: Learnt, tokenizer: PreTrainedTokenizerBase, row: Row) -> Rendered:
    """Render a chat, and count answers of which something is missing; what was asked with may begin them."""
    text, spans = templates.spoken(*chat, tokenizer, row.get("tools"))
    contents = [_squeezed(str(chat.turns[place].get("content") or "")) for place in chat.places]
    said = [_squeezed(text[max(0, begin - len(content)) : end])
            for (begin, end), content in zip(spans, contents, strict=True)]  # fmt: skip
    changed = sum(content not in answer for content, answer in zip(contents, said, strict=True))
    return Rendered(changed, _unshown(chat.turns[: chat.places[-1]], text))


def _unshown(turns: Chat, text: str) -> list[str]:
    """Return the roles of turns that do not stand in a text, white space aside; thoughts of the assistant may be left
    away."""
    others = [turn for turn in turns if turn["role"] != "assistant" and turn["content"].strip() not in text]
    whole = _squeezed(text) if others else ""
    return [str(turn["role"]) for turn in others if _squeezed(turn["content"]) not in whole]


def _squeezed(text: str) -> str:
    return "".join(text.split())
