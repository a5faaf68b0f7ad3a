"""Records to tokens: what a model reads, which of its tokens are learnt, and what does not fit.

Strings are taken as they stand, prompt and answer joined, and closed by the end-of-sequence token. Chats are rendered
by the tokenizer's template. Nothing is cut or left out without being counted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from alignkit.contract.stage import Stage
from alignkit.errors import DataError, RecipeError

Row = Mapping[str, Any]
Turn = Mapping[str, Any]
Chat = Sequence[Turn]
Learn = Literal["all", "last"]
Tools = Sequence[Mapping[str, Any]] | None
"""JSON schemas of what a chat may call."""

RAISED = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a chat template may end in: its own refusals, and what Python raises at its expressions and filters."""

PROBE = "q7x"
"""An answer that stands in no template's own text."""

NOT_LEARNT = -100
"""The label of a token that the loss leaves out, as torch has it."""


class Tokens(NamedTuple):
    """A sequence with its labels: the tokens that are learnt, NOT_LEARNT elsewhere."""

    ids: list[int]
    labels: list[int]


class Pair(NamedTuple):
    """A chosen and a rejected sequence, each the prompt with its answer, and their row."""

    chosen: list[int]
    rejected: list[int]
    row: Row


class Prompt(NamedTuple):
    """What a policy is asked, as tokens and as text, with its row."""

    ids: list[int]
    text: str
    row: Row


@dataclass(frozen=True)
class Lengths:
    """What a length limit does to rows."""

    limit: int
    rows: int = 0
    cut: int = 0
    """Rows whose end is cut off."""
    dropped: int = 0
    """Rows left out."""
    longest: int = 0
    """Tokens of the longest row before anything was cut."""

    @property
    def lost(self) -> float:
        """The share of rows that are cut or left out."""
        return (self.cut + self.dropped) / max(self.rows, 1)


def demonstrations(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limit: int, learn: Learn = "all"
) -> tuple[list[Tokens], Lengths]:
    """Encode demonstrations, learning answers only: in chats those of all assistant turns, or of the last.

    A row longer than the limit loses its end, or is left out where none of its answer remains.
    """
    kept, lengths = list[Tokens](), Lengths(limit)
    for row in rows:
        whole = demonstration(row, tokenizer, learn)
        short = Tokens(whole.ids[:limit], whole.labels[:limit])
        fits = any(label != NOT_LEARNT for label in short.labels)
        lengths = counted(lengths, len(whole.ids), dropped=not fits, cut=fits and len(whole.ids) > limit)
        if fits:
            kept.append(short)
    return kept, lengths


def preferences(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[list[Pair], Lengths]:
    """Encode pairs; one with a side longer than the limit is left out, since a cut answer has no end to be judged."""
    kept, lengths = list[Pair](), Lengths(limit)
    for row in rows:
        chosen, rejected = (answered(row["prompt"], row[side], tokenizer).ids for side in ("chosen", "rejected"))
        longest = max(len(chosen), len(rejected))
        lengths = counted(lengths, longest, dropped=longest > limit)
        if longest <= limit:
            kept.append(Pair(chosen, rejected, row))
    return kept, lengths


def prompts(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[list[Prompt], Lengths]:
    """Encode prompts; one longer than the limit is left out, since its end is the question."""
    kept, lengths = list[Prompt](), Lengths(limit)
    for row in rows:
        ids = prompt_ids(tokenizer, row["prompt"])
        lengths = counted(lengths, len(ids), dropped=len(ids) > limit)
        if len(ids) <= limit:
            kept.append(Prompt(ids, prompt_text(tokenizer, row["prompt"]), row))
    return kept, lengths


def counted(lengths: Lengths, tokens: int, *, dropped: bool, cut: bool = False) -> Lengths:
    """Count one more row of so many tokens."""
    return replace(
        lengths,
        rows=lengths.rows + 1,
        cut=lengths.cut + cut,
        dropped=lengths.dropped + dropped,
        longest=max(lengths.longest, tokens),
    )


def report(stage: Stage, what: str, lengths: Lengths, max_lost: float) -> None:
    """Tell what does not fit, before anything is trained; raises DataError where that is too much, or all."""
    if not lengths.rows:
        raise DataError(f"there are no {what} to learn from", remedy="check the source and held_out")
    if not lengths.cut + lengths.dropped:
        return
    parts = [f"{n} {word}" for n, word in ((lengths.cut, "cut short"), (lengths.dropped, "left out")) if n]
    problem = (
        f"of {lengths.rows} {what}, {' and '.join(parts)}: they do not fit in max_length {lengths.limit} "
        f"(the longest has {lengths.longest} tokens)"
    )
    if lengths.lost > max_lost or lengths.dropped == lengths.rows:
        raise DataError(problem, remedy=f"raise max_length, or max_lost (now {max_lost:g}) if that is meant")
    if stage.latest() is None:  # else it was told before the stage was interrupted
        stage.warn(problem, "raise max_length if they matter")


def fitting_length(positions: int | None, max_length: int | None, at_most: int = 1024) -> int:
    """Choose the longest sequence: what the settings say, else what the model has positions for, at most 1024.

    Raises RecipeError where the settings ask for more than the model's positions.
    """
    if max_length is None:
        return min(positions or at_most, at_most)
    if positions is not None and max_length > positions:
        raise RecipeError(f"the model reads at most {positions} tokens", "max_length", f"set it to {positions} or less")
    return max_length


def shown(answer: str | Chat) -> str:
    """Give an answer as text for people."""
    return answer if isinstance(answer, str) else "\n".join(turn["content"] for turn in answer)


def parted(row: Row) -> tuple[str | Chat, str | Chat]:
    """Part a demonstration in what is asked and what is answered; a chat before the assistant's last turn."""
    if "messages" not in row:
        return row["prompt"], row["completion"]
    turns = row["messages"]
    place = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
    return turns[:place], turns[place : place + 1]


def demonstration(row: Row, tokenizer: PreTrainedTokenizerBase, learn: Learn = "all") -> Tokens:
    """Encode one row, whole: `prompt` and `completion`, or chat `messages`, with the `tools` that it may call."""
    if "messages" in row:
        return _chat(row["messages"], tokenizer, learn, row.get("tools"))
    return answered(row["prompt"], row["completion"], tokenizer, row.get("tools"))


def answered(prompt: str | Chat, answer: str | Chat, tokenizer: PreTrainedTokenizerBase, tools: Tools = None) -> Tokens:
    """Encode a prompt with its answer and the end-of-sequence token, the answer to be learnt.

    The prompt's tokens are those that a policy would be asked with: where joining the two strings would merge tokens
    across the seam, they are encoded apart. Raises DataError where one is a string and the other a chat.
    """
    if isinstance(prompt, str) and isinstance(answer, str):
        asked = prompt_ids(tokenizer, prompt)
        ids = _encode(tokenizer, prompt + answer)
        if ids[: len(asked)] != asked:
            ids = asked + _encode(tokenizer, answer, special=False)
        ids = _ended(ids, tokenizer)
        return Tokens(ids, [NOT_LEARNT] * len(asked) + ids[len(asked) :])
    turns = [*_as_chat(prompt, "user"), *_as_chat(answer, "assistant")]
    return _chat(turns, tokenizer, "last", tools)


def _as_chat(text: str | Chat, role: str) -> Chat:
    if isinstance(text, str):
        return [{"role": role, "content": text}] if text else []
    return text


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | Chat) -> list[int]:
    """Encode what a policy is asked; an answer's first token comes right behind.

    A chat is rendered with the opening of the assistant's turn. An empty prompt is the begin- or end-of-sequence token,
    since something must stand before an answer.
    """
    if not isinstance(prompt, str):
        return _encode(tokenizer, rendered(tokenizer, prompt, asking=True), special=False)
    ids = _encode(tokenizer, prompt)
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]  # some tokenizers close every text
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return ids or [cast("int", start)]


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str | Chat) -> str:
    """Give what a policy is asked as text: a string as it is, a chat as its template renders it."""
    return prompt if isinstance(prompt, str) else rendered(tokenizer, prompt, asking=True)


def rendered(tokenizer: PreTrainedTokenizerBase, chat: Chat, *, asking: bool = False, tools: Tools = None) -> str:
    """Render a chat by the tokenizer's template, with the opening of an answer where `asking`.

    Raises DataError where the chat has tools and the template has no place for them, and with what the template said
    where it refuses the chat.
    """
    if tools and "tools" not in str(tokenizer.chat_template):
        remedy = "take the column tools out, or start from a policy whose template knows them"
        raise DataError("the rows have tools, and the chat template has no place for them", "chat template", remedy)
    turns: list[Any] = [dict(turn) for turn in chat]
    given: list[Any] | None = [dict(tool) for tool in tools] if tools else None
    try:
        return cast("str", tokenizer.apply_chat_template(turns, given, tokenize=False, add_generation_prompt=asking))
    except RAISED as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f"the chat template refuses the chat: {said}"
        remedy = "correct the row or leave it out, or start from a policy whose template takes such chats"
        raise DataError(problem, "chat template", remedy) from error


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Give the tokens that close an answer by the chat template, such as those of `<|im_end|>` or `<end_of_turn>`.

    It is the special or added token right behind the answer that ends a chat. Empty where the template closes answers
    by no such token, or refuses a question and an answer.
    """
    end = _behind(tokenizer, _PROBED)
    found = _marked(tokenizer, end)
    if end and end == _behind(tokenizer, _PROBED, asking=True):  # it may be the heading of a next answer
        inside = _behind(tokenizer, [*_PROBED, *_PROBED[:1]])
        found = found if not inside or _marked(tokenizer, inside) == found else None
    return frozenset() if found is None else frozenset([found])


_PROBED: Chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]


def _behind(tokenizer: PreTrainedTokenizerBase, chat: Chat, *, asking: bool = False) -> str:
    """Give what a template writes behind an answer; nothing where it refuses the chat or loses the answer."""
    try:
        _, answer, rest = rendered(tokenizer, chat, asking=asking).rpartition(PROBE)
    except DataError:
        return ""
    return rest.lstrip() if answer else ""


def _marked(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """Give the special or added token that a text begins with."""
    first = next(iter(_encode(tokenizer, text, special=False)), None)
    known = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return first if first in known else None


def _chat(turns: Chat, tokenizer: PreTrainedTokenizerBase, learn: Learn, tools: Tools = None) -> Tokens:
    """Encode a chat; where a token would reach into an answer, the answer is encoded apart, as a policy gives it."""
    text, spans = spoken(turns, tokenizer, learn, tools)
    tokens = _placed(text, tokenizer)
    if any(start < begin < end for _, start, end in tokens for begin, _ in spans):
        cuts = [0, *(begin for begin, _ in spans), len(text)]
        tokens = [
            (token, start + offset, end + offset)
            for offset, stop in pairwise(cuts)
            for token, start, end in _placed(text[offset:stop], tokenizer)
        ]
    ids = [token for token, _, _ in tokens]
    labels = [token if any(_within(start, end, span) for span in spans) else NOT_LEARNT for token, start, end in tokens]
    if labels[-1] != NOT_LEARNT and ids[-1] not in tokenizer.all_special_ids:  # the template closes no answer
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return Tokens(ids, labels)


def _placed(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int, int]]:
    """Encode a text as it stands; give each token with where it begins and ends."""
    found: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [(token, *place) for token, place in zip(found["input_ids"], found["offset_mapping"], strict=True)]


def _within(start: int, end: int, span: tuple[int, int]) -> bool:
    return start >= span[0] and span[0] < end <= span[1]


def spoken(
    turns: Chat, tokenizer: PreTrainedTokenizerBase, learn: Learn = "all", tools: Tools = None
) -> tuple[str, list[tuple[int, int]]]:
    """Render a chat; give the text and the spans in it that the assistant says, the closing of its turns included.

    White space at the end, which some templates leave behind the closing, is taken off: an answer ends with its end.

    Raises DataError where there is no such turn, or where the template renders the beginning of a chat differently
    once more follows, so that what was said cannot be found.
    """
    text = rendered(tokenizer, turns, tools=tools).rstrip()
    places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not places:
        raise DataError("a chat has no assistant turn, so nothing can be learnt from it", repr(turns[0])[:60])
    said = places if learn == "all" else places[-1:]
    return text, [_span(text, turns, place, tokenizer, tools) for place in said]


def _span(text: str, turns: Chat, place: int, tokenizer: PreTrainedTokenizerBase, tools: Tools) -> tuple[int, int]:
    before = rendered(tokenizer, turns[:place], asking=True, tools=tools) if place else ""
    after = rendered(tokenizer, turns[: place + 1], tools=tools).rstrip()
    if not (text.startswith(before) and text.startswith(after)):
        problem = "the chat template renders the beginning of a chat differently once more follows"
        raise DataError(problem, "chat template", 'use one that does not, or the last turn alone (learn = "last")')
    return len(before), len(after)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int]:
    return list(cast("list[int]", tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]))


def _ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = cast("int", tokenizer.eos_token_id)
    return ids if ids and ids[-1] == eos else [*ids, eos]


def documents(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Encode raw texts, each closed by the end-of-sequence token."""
    return (_ended(_encode(tokenizer, text), tokenizer) for text in texts)


def pack(documents: Iterable[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Lay documents end to end and cut the stream into blocks; no token is lost, the last block may be short."""
    block: list[int] = []
    for document in documents:
        block.extend(document)
        while len(block) >= size:
            yield block[:size]
            block = block[size:]
    if block:
        yield block


def padding_share(lengths: Sequence[int], batch: int) -> float:
    """Tell which share of the batches would be padding, were the rows taken in this order."""
    if not lengths:
        return 0.0
    groups = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    slots = sum(max(group) * len(group) for group in groups)
    return 1 - sum(lengths) / slots
