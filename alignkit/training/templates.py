"""Chats as text, by anybody's template: what a policy is asked, where its answers stand, what a template refuses.

What is learnt of a turn is what follows the text that a policy would be asked with, up to the end of the turn. What a
template writes behind the last turn, such as the heading of a next answer, is left off.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from alignkit.errors import DataError

Turn = Mapping[str, Any]
Chat = Sequence[Turn]
Learn = Literal["all", "last"]
Tools = Sequence[Mapping[str, Any]] | None
"""JSON schemas of what a chat may call."""

RAISED = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a chat template may end in: its own refusals, and what Python raises at its expressions and filters."""
PROBE = "\u2042q7x\u2042"
"""A content that stands in nobody's text: asterisms around a word."""
WEIGHT = "weight"
"""The key of a turn that says whether it is learnt: 0 or 1, as in OpenAI's format for fine-tuning."""
CALLS = "tool_calls"
"""The key of a turn that holds calls of tools."""
TEMPLATE = "chat template"
"""Where an error is whose row is not known."""
ANOTHER = 'give the source of the policy another template: chat_template = "FILE"'
OWN_KEYS = ("role", "content", WEIGHT, "tool_call_id")
"""Keys of turns that are not told where a template does not read them."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names of a turn's thought; transformers gives it to templates under each of the first two."""
SHOWN = 40
"""Characters of a rendering that a message shows."""


class Spoken(NamedTuple):
    """A chat as text, up to the end of the last answer that is learnt."""

    text: str
    spans: list[tuple[int, int]]
    """Where in the text the answers that are learnt stand, the closing of their turns included."""


@dataclass(frozen=True)
class _Whole:
    """A chat, and all of it as its template renders it."""

    turns: Chat
    tokenizer: PreTrainedTokenizerBase
    tools: Tools
    text: str

    def until(self, place: int, *, asking: bool = False) -> str:
        """Render the turns before a place."""
        return rendered(self.tokenizer, self.turns[:place], asking=asking, tools=self.tools) if place else ""


def rendered(tokenizer: PreTrainedTokenizerBase, chat: Chat, *, asking: bool = False, tools: Tools = None) -> str:
    """Render a chat by the tokenizer's template, with the opening of an answer where `asking`.

    Raises DataError where the chat has tools, or calls of them, and the template has no place for them, where it asks
    nothing, and with what the template said where it refuses the chat.
    """
    source = str(tokenizer.chat_template)
    if tools and "tools" not in source:
        problem = "the row has tools, and the chat template has no place for them"
        raise DataError(problem, TEMPLATE, f"take the column tools out, or {ANOTHER}")
    if CALLS not in source and any(turn.get(CALLS) for turn in chat):
        problem = "the row has calls of tools, and the chat template has no place for them"
        raise DataError(problem, TEMPLATE, f"leave the row out, or {ANOTHER}")
    hidden = () if WEIGHT in source else (WEIGHT,)
    turns: list[Turn] = [{key: value for key, value in turn.items() if key not in hidden} for turn in chat]
    if _reads_parts(tokenizer, source):
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    text = _applied(tokenizer, turns, asking=asking, tools=tools)
    if asking and not text.strip():
        raise _nothing()
    return text


def _nothing() -> DataError:
    return DataError("the chat template writes nothing for the chat", TEMPLATE, f"leave the row out, or {ANOTHER}")


def _applied(tokenizer: PreTrainedTokenizerBase, turns: Chat, *, asking: bool = False, tools: Tools = None) -> str:
    """Apply the chat template. Raises DataError with what it said where it refuses the chat."""
    given: list[Any] | None = [dict(tool) for tool in tools] if tools else None
    chat: list[Any] = [*turns]
    try:
        return cast("str", tokenizer.apply_chat_template(chat, given, tokenize=False, add_generation_prompt=asking))
    except RAISED as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the chat template refuses the chat: {said}", TEMPLATE, f"correct the row, or {ANOTHER}"
        ) from error


@lru_cache(maxsize=64)
def _reads_parts(tokenizer: PreTrainedTokenizerBase, _: str) -> bool:
    """Return whether a template shows contents in parts alone, as those of models that read images, too."""

    def shows(content: Any) -> bool:
        try:
            return PROBE in _applied(tokenizer, [{"role": "user", "content": content}])
        except DataError:
            return False

    return not shows(PROBE) and shows([{"type": "text", "text": PROBE}])


def said_by_assistant(turns: Chat, begin: int = 0) -> list[int]:
    """Return the places of the assistant's turns from a place on. Raises DataError where there is none."""
    places = [place for place, turn in enumerate(turns) if place >= begin and turn["role"] == "assistant"]
    if not places:
        raise DataError("the chat has no answer of the assistant to learn from", TEMPLATE, "leave it out")
    return places


def learnt_turns(turns: Chat, learn: Learn, begin: int = 0) -> list[int]:
    """Return the places of the turns that are learnt, from a place on: all of the assistant but those of weight 0, or
    the last of these.

    Raises DataError where there is none.
    """
    places = [place for place in said_by_assistant(turns, begin) if turns[place].get(WEIGHT) != 0]
    if not places:
        problem = "all answers of the chat have weight 0, so there is nothing to learn from"
        raise DataError(problem, TEMPLATE, "leave it out")
    return places if learn == "all" else places[-1:]


def spoken(turns: Chat, places: Sequence[int], tokenizer: PreTrainedTokenizerBase, tools: Tools = None) -> Spoken:
    """Render a chat and find the assistant's turns at these places in it.

    A template may ask otherwise than it renders an answer, or render earlier turns otherwise once more follows. An
    answer that is learnt alone is then put behind what a policy would be asked with. Raises DataError where an answer
    cannot be found, telling what differs.
    """
    whole = _Whole(turns, tokenizer, tools, rendered(tokenizer, turns, tools=tools))
    if not whole.text.strip():
        raise _nothing()
    spans = list[tuple[int, int]]()
    for place in places:
        asked = whole.until(place, asking=True)
        alike = whole.text.startswith(asked)
        begin = len(asked) if alike else _behind_heading(whole, place, asked)
        if len(places) == 1 and not alike and (text := _behind(whole, place, asked, begin)):
            return Spoken(text, [(len(asked), len(text))])
        if begin is None:
            raise _differs(whole, place, places)
        spans.append((begin, _end(whole, place, begin)))
    return Spoken(whole.text[: spans[-1][1]], spans)


def _behind_heading(whole: _Whole, place: int, asked: str) -> int | None:
    """Find where an answer begins behind the heading that it is asked with."""
    before = whole.until(place)
    heading = asked[len(before) :] if asked.startswith(before) else ""
    if not heading.strip():
        return None
    earliest, content = _content(whole, place - 1)[1], _content(whole, place)[0]
    found = whole.text.rfind(heading, earliest, content)
    return found + len(heading) if found >= 0 else None


def _behind(whole: _Whole, place: int, asked: str, begin: int | None) -> str | None:
    """Put an answer behind what a policy is asked with: as it stands behind its heading, or, where the template opens
    something when it asks, as the turn says it, if it begins with that."""
    if begin is not None:
        return asked + whole.text[begin : _end(whole, place, begin)]
    begin, end = _content(whole, place)
    base = min(begin, _shared(asked, whole.text))
    opened, content = asked[base:], str(whole.turns[place].get("content") or "").strip()
    if whole.text[base:begin].strip() or not content.startswith(opened.strip()):
        return None
    kept = whole.text[begin:end].strip()
    said = content[len(opened.strip()) : content.rfind(kept) + len(kept) if kept in content else None]
    return asked + (said.lstrip() if opened[-1:].isspace() else said) + whole.text[end : _end(whole, place, begin)]


def _end(whole: _Whole, place: int, begin: int) -> int:
    """Find where an answer ends that begins there: behind the mark that closes turns, where there is one."""
    last = place + 1 == len(whole.turns)
    after = (whole.text if last else whole.until(place + 1)).rstrip()
    known = whole.text.startswith(after)
    limit = len(after) if known else _content(whole, place + 1)[0]
    turn = whole.turns[place]
    content = str(turn.get("content") or "").strip()
    stands = whole.text.find(content, begin, limit)
    behind, mark = max(begin, stands + len(content)) if stands >= 0 else begin, closing_text(whole.tokenizer)
    found = whole.text.find(mark, behind, limit) if mark else -1
    if found >= 0:
        return found + len(mark)
    if known and after != whole.until(place + 1, asking=True).rstrip():
        return limit
    if known and turn.get(CALLS):  # they stand behind the content
        return limit - _shared_end(whole.until(place, asking=True).rstrip(), whole.text[begin:limit])
    return max(begin, _content(whole, place)[1])


def _content(whole: _Whole, place: int) -> tuple[int, int]:
    """Find where in the text a turn's content stands: where the text changes once the turn says something else."""
    turns = [*whole.turns]
    turns[place] = {**turns[place], "content": PROBE}
    other = rendered(whole.tokenizer, turns, tools=whole.tools)
    begin = _shared(whole.text, other)
    return begin, len(whole.text) - _shared_end(whole.text[begin:], other[begin:])


def _shared(one: str, other: str) -> int:
    """Count the characters that both begin with."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


def _shared_end(one: str, other: str) -> int:
    return _shared(one[::-1], other[::-1])


def _differs(whole: _Whole, place: int, places: Sequence[int]) -> DataError:
    """Return how a template renders an answer otherwise than it asks for it."""
    asked, before = whole.until(place, asking=True), whole.until(place)
    shared = _shared(asked, whole.text)
    start = len(before) if len(before) <= shared and asked.startswith(before) else max(0, shared - SHOWN // 2)
    with_, by = asked[start : start + SHOWN], whole.text[start : start + SHOWN]
    problem = f"the chat template renders an answer otherwise than it asks for it: asked with {with_!r}, answered with"
    helps = f'learn the last turn alone (learn = "last"), or {ANOTHER}' if _last_works(whole, places) else ANOTHER
    return DataError(f"{problem} {by!r}", TEMPLATE, helps)


def _last_works(whole: _Whole, places: Sequence[int]) -> bool:
    if len(places) < 2:
        return False
    try:
        spoken(whole.turns, places[-1:], whole.tokenizer, whole.tools)
    except DataError:
        return False
    return True


def closing(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special or added token right behind the answer that ends a chat, by the chat template.

    None where the template closes answers by no such token, or refuses a question and an answer.
    """
    return _closing(tokenizer, str(tokenizer.chat_template))


def closing_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return that token as it stands in a text; empty where there is none."""
    found = closing(tokenizer)
    return "" if found is None else str(tokenizer.convert_ids_to_tokens(found))


QUESTION: Turn = {"role": "user", "content": "?"}
PROBED: Chat = [QUESTION, {"role": "assistant", "content": PROBE}]


@lru_cache(maxsize=64)
def _closing(tokenizer: PreTrainedTokenizerBase, _: str) -> int | None:
    """Find it, once for each template that a tokenizer has had."""
    end = _rest(tokenizer, PROBED)
    found = _marked(tokenizer, end)
    if end and end == _rest(tokenizer, PROBED, asking=True):  # it may be the heading of a next answer
        inside = _rest(tokenizer, [*PROBED, QUESTION])
        return found if not inside or _marked(tokenizer, inside) == found else None
    return found


def _rest(tokenizer: PreTrainedTokenizerBase, chat: Chat, *, asking: bool = False) -> str:
    """Return what a template writes behind an answer; nothing where it refuses the chat or loses the answer."""
    try:
        _, answer, rest = rendered(tokenizer, chat, asking=asking).rpartition(PROBE)
    except DataError:
        return ""
    return rest.lstrip() if answer else ""


def _marked(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """Return the special or added token that a text begins with."""
    ids = cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    known = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return ids[0] if ids and ids[0] in known else None


def learnt_heading(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the heading that a policy must write itself, since the template does not ask with it; empty where none."""
    try:
        asked, text = rendered(tokenizer, PROBED[:1], asking=True), rendered(tokenizer, PROBED)
    except DataError:
        return ""
    heading, answer, _ = text.partition(PROBE)
    alike = asked == rendered(tokenizer, PROBED[:1])
    return heading[len(asked) :].strip() if answer and alike and heading.startswith(asked) else ""


def unread_keys(tokenizer: PreTrainedTokenizerBase, keys: Iterable[str]) -> list[str]:
    """Return those of the keys of turns that the template does not mention."""
    words = set(re.findall(r"\w+", str(tokenizer.chat_template)))
    told = {*OWN_KEYS, *words, *(THOUGHTS if words & set(THOUGHTS[:2]) else ())}
    return [key for key in keys if key not in told]
