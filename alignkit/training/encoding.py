"""Records to tokens: what a model reads, which of its tokens are learnt, and what does not fit.

Rows become texts first (`alignkit.training.row_texts`). A string is closed by the end-of-sequence token, and so is a
chat whose template closes no answer. Nothing is cut or left out without being counted.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

from transformers import PreTrainedTokenizerBase

from alignkit.contract.stage import Stage
from alignkit.data.records import Record
from alignkit.errors import DataError, RecipeError
from alignkit.training import templates
from alignkit.training.row_texts import Joined, Row, RowText, demonstration_text, prompt_text, text_with_answer
from alignkit.training.templates import Chat, Learn, Spoken, Tools

T = TypeVar("T")

SIDES = ("chosen", "rejected")
ROWS_AT_ONCE, TEXTS_AT_ONCE = 1024, 64
"""Rows, and texts of any length, that are encoded together."""
NOT_LEARNT = -100
"""The label of a token that the loss leaves out, as torch has it."""


class LabelledTokens(NamedTuple):
    """A sequence with its labels: the tokens that are learnt, NOT_LEARNT elsewhere."""

    ids: list[int]
    labels: list[int]


class LabelledRow(NamedTuple):
    """A sequence with its labels, and the row that it was made of, where it is one row's."""

    tokens: LabelledTokens
    row: Row = MappingProxyType({})


class TokenPair(NamedTuple):
    """A chosen and a rejected sequence, each the prompt with its answer, and their row."""

    chosen: list[int]
    rejected: list[int]
    row: Row


class LabelledPair(NamedTuple):
    """The two sequences of a pair, their answers labelled, and their row."""

    chosen: LabelledTokens
    rejected: LabelledTokens
    row: Row

    @property
    def tokens(self) -> TokenPair:
        return TokenPair(self.chosen.ids, self.rejected.ids, self.row)


Placed = tuple[int, int, int]
"""A token, and where it begins and ends in its text."""


class Prompt(NamedTuple):
    """What a policy is asked, as tokens and as text, with its row."""

    ids: list[int]
    text: str
    row: Row


@dataclass(frozen=True)
class LengthReport:
    """What a length limit does to rows."""

    limit: int
    rows: int = 0
    cut: int = 0
    """Rows whose end is cut off."""
    dropped: int = 0
    """Rows left out."""
    longest: int = 0
    """Tokens of the longest row before anything was cut."""
    answer: int = 0
    """Tokens of the limit that are kept free for an answer."""
    refused: int = 0
    """Rows, besides, that the chat template refuses and that are left out, as their source says."""

    @property
    def lost(self) -> float:
        """The share of rows that are cut or left out."""
        return (self.cut + self.dropped) / max(self.rows, 1)


def encoded(rows: Iterable[Row], encode: Callable[[Row], T]) -> Iterator[tuple[Row, T | None]]:
    """Encode rows one by one; None for one that cannot be encoded and whose source leaves bad rows out.

    Raises DataError with the row's place where its source does not.
    """
    for row in rows:
        try:
            found = encode(row)
        except DataError as error:
            if not (isinstance(row, Record) and row.skip):
                raise at_place(error, row) from error
            yield row, None
            continue
        yield row, found


def at_place(error: DataError, row: Row) -> DataError:
    """Return of an error in a row where the row stands, if that is known."""
    place = row.place if isinstance(row, Record) else ""
    return DataError(error.problem, place or error.where, error.remedy)


def at_same_place(row: Row, values: Mapping[str, Any]) -> Row:
    """Make a row of other values that stands where a row does."""
    return row.with_values(values) if isinstance(row, Record) else values


Encoding = Generator[T, None, LengthReport]
"""Yields rows as tokens, one by one, and returns what the length limit did to them."""


def collected(rows: Encoding[T]) -> tuple[list[T], LengthReport]:
    """Return all rows, and what the length limit did to them."""
    kept: list[T] = []
    while True:
        try:
            kept.append(next(rows))
        except StopIteration as end:
            lengths: LengthReport = end.value
            return kept, lengths


def fitting(
    rows: Iterable[Row], limit: int, encode: Callable[[Row], T], size: Callable[[T], int]
) -> tuple[list[T], LengthReport]:
    """Encode rows, and leave out those that are longer than the limit; `size` counts a row's tokens."""
    kept, lengths = list[T](), LengthReport(limit)
    for _, found in encoded(rows, encode):
        if found is None:
            lengths = replace(lengths, refused=lengths.refused + 1)
            continue
        lengths = counted(lengths, size(found), dropped=size(found) > limit)
        if size(found) <= limit:
            kept.append(found)
    return kept, lengths


def demonstrations(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limit: int, learn: Learn = "all"
) -> tuple[list[LabelledTokens], LengthReport]:
    """Encode demonstrations, learning answers only: in chats those of all assistant turns, or of the last.

    A row longer than the limit loses its end, or is left out where none of its answer remains.
    """
    kept, lengths = collected(encode_demonstrations(rows, tokenizer, limit, learn))
    return [one.tokens for one in kept], lengths


def encode_demonstrations(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limit: int, learn: Learn = "all"
) -> Encoding[LabelledRow]:
    """Yield demonstrations encoded as `demonstrations` does."""
    lengths = LengthReport(limit)
    for row, whole in _demonstrated(rows, tokenizer, learn):
        if whole is None:
            lengths = replace(lengths, refused=lengths.refused + 1)
            continue
        short = LabelledTokens(whole.ids[:limit], whole.labels[:limit])
        asked = short.labels[1:]  # nothing stands before the first
        fits = asked.count(NOT_LEARNT) < len(asked)
        lengths = counted(lengths, len(whole.ids), dropped=not fits, cut=fits and len(whole.ids) > limit)
        if fits:
            yield LabelledRow(short, row)
    return lengths


def _demonstrated(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, learn: Learn
) -> Iterator[tuple[Row, LabelledTokens | None]]:
    """Encode demonstrations, many at once; None for one that is left out for what it is."""
    for some in _several(rows, ROWS_AT_ONCE):
        texts = list(encoded(some, lambda row: demonstration_text(row, tokenizer, learn)))
        labelled = iter(_labelled([text for _, text in texts if text is not None], tokenizer))
        yield from ((row, None if text is None else next(labelled)) for row, text in texts)


def _several(rows: Iterable[T], count: int) -> Iterator[list[T]]:
    """Yield so many rows at once."""
    left = iter(rows)
    while some := list(islice(left, count)):
        yield some


def preferences(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[TokenPair], LengthReport]:
    """Encode pairs; one with a side longer than the limit is left out, since a cut answer has no end to be judged."""
    pairs, lengths = collected(encode_pairs(rows, tokenizer, limit))
    return [pair.tokens for pair in pairs], lengths


def encode_pairs(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoding[LabelledPair]:
    """Yield pairs encoded as `preferences` does, their answers labelled."""
    lengths = LengthReport(limit)
    for pair in _pairs(rows, tokenizer):
        if pair is None:
            lengths = replace(lengths, refused=lengths.refused + 1)
            continue
        size = max(len(pair.chosen.ids), len(pair.rejected.ids))
        lengths = counted(lengths, size, dropped=size > limit)
        if size <= limit:
            yield pair
    return lengths


def _pairs(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[LabelledPair | None]:
    """Encode pairs, many at once; None for one that is left out for what it is."""

    def both(row: Row) -> list[RowText]:
        return [text_with_answer(row["prompt"], row[name], tokenizer, row.get("tools")) for name in SIDES]

    for some in _several(rows, ROWS_AT_ONCE):
        pairs = list(encoded(some, both))
        labelled = iter(_labelled([text for _, texts in pairs for text in texts or ()], tokenizer))
        for row, texts in pairs:
            yield None if texts is None else LabelledPair(next(labelled), next(labelled), row)


class AskedPrompt(NamedTuple):
    """Who is asked: the tokenizer of a policy, and how long a prompt with its answer may be."""

    tokenizer: PreTrainedTokenizerBase
    limit: int


def different(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the first row of each prompt."""
    seen = set[str]()
    for row in rows:
        if (prompt := repr(row["prompt"])) not in seen:
            seen.add(prompt)
            yield row


def asked_of_all(
    rows: Iterable[Row], asked: Sequence[AskedPrompt], count: int, answer: int
) -> tuple[list[Row], LengthReport]:
    """Take the first so many prompts, each once, that leave every policy room for an answer of so many tokens.

    A prompt that does not in one of them is left out for all.
    """
    kept, lengths = list[Row](), LengthReport(min(one.limit for one in asked), answer=answer)

    def over(row: Row) -> tuple[int, int]:
        """Return the tokens of the prompt where it is longest, and by how much it is too long for some policy."""
        sizes = [len(prompt_ids(one.tokenizer, row["prompt"], row.get("tools"))) for one in asked]
        return max(sizes), max(size + answer - one.limit for size, one in zip(sizes, asked, strict=True))

    for row, found in encoded(different(rows), over):
        if found is None:
            lengths = replace(lengths, refused=lengths.refused + 1)
            continue
        longest, excess = found
        lengths = counted(lengths, longest, dropped=excess > 0)
        if excess <= 0:
            kept.append(row)
        if len(kept) == count:
            break
    return kept, lengths


def prompts(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[list[Prompt], LengthReport]:
    """Encode prompts; one longer than the limit is left out, since its end is the question."""

    def prompt(row: Row) -> Prompt:
        asked, tools = row["prompt"], row.get("tools")
        return Prompt(prompt_ids(tokenizer, asked, tools), prompt_text(tokenizer, asked, tools), row)

    return fitting(rows, limit, prompt, lambda prompt: len(prompt.ids))


def counted(lengths: LengthReport, tokens: int, *, dropped: bool, cut: bool = False) -> LengthReport:
    """Count one more row of so many tokens."""
    return replace(
        lengths,
        rows=lengths.rows + 1,
        cut=lengths.cut + cut,
        dropped=lengths.dropped + dropped,
        longest=max(lengths.longest, tokens),
    )


def lost(what: str, lengths: LengthReport) -> str:
    """Return how many rows do not fit."""
    parts = [f"{n} {word}" for n, word in ((lengths.cut, "cut short"), (lengths.dropped, "left out")) if n]
    answer = f" with an answer of {lengths.answer}" if lengths.answer else ""
    return (
        f"of {lengths.rows} {what}, {' and '.join(parts)}: they do not fit in max_length {lengths.limit}{answer} "
        f"(the longest has {lengths.longest} tokens)"
    )


def too_much_lost(what: str, lengths: LengthReport, max_lost: float) -> DataError | None:
    """Return the error where more rows than the share `max_lost` do not fit, or none is left."""
    if not lengths.rows:
        refused = f"the chat template refuses all {lengths.refused} {what}"
        problem = refused if lengths.refused else f"there are no {what} to learn from"
        return DataError(problem, remedy="check the source and held_out")
    if lengths.lost <= max_lost and lengths.dropped < lengths.rows:
        return None
    remedy = f"raise max_length, or max_lost (now {max_lost:g}) if that is meant"
    return DataError(lost(what, lengths), remedy=remedy)


def report(stage: Stage, what: str, lengths: LengthReport, max_lost: float) -> None:
    """Report what does not fit, before anything is trained; raises DataError where that is too much, or all."""
    if error := too_much_lost(what, lengths, max_lost):
        raise error
    if stage.latest() is not None:
        return  # it was told before the stage was interrupted
    if lengths.refused:
        problem = f"{lengths.refused} {what} are left out: the chat template refuses them"
        stage.warn(problem, "`alignkit check` names the first of them and says why")
    if lengths.cut + lengths.dropped:
        stage.warn(lost(what, lengths), "raise max_length if they matter")


def fitting_length(positions: int | None, max_length: int | None, at_most: int = 1024) -> int:
    """Choose the longest sequence: what the settings say, else what the model has positions for, at most 1024.

    Raises RecipeError where the settings ask for more than the model's positions.
    """
    if max_length is None:
        return min(positions or at_most, at_most)
    if positions is not None and max_length > positions:
        raise RecipeError(f"the model reads at most {positions} tokens", "max_length", f"set it to {positions} or less")
    return max_length


def demonstration(row: Row, tokenizer: PreTrainedTokenizerBase, learn: Learn = "all") -> LabelledTokens:
    """Encode one row, whole: `prompt` and `completion`, or chat `messages`, with the `tools` that it may call.

    Turns of weight 0 are not learnt. Raises DataError where the chat template refuses a chat, or where an answer cannot
    be found in what it renders.
    """
    return _labelled([demonstration_text(row, tokenizer, learn)], tokenizer)[0]


def side(row: Row, name: str, tokenizer: PreTrainedTokenizerBase) -> LabelledTokens:
    """Encode a row's prompt with one of its answers, such as `chosen`, shown the tools that it may call."""
    return answered(row["prompt"], row[name], tokenizer, row.get("tools"))


def answered(
    prompt: str | Chat, answer: str | Chat, tokenizer: PreTrainedTokenizerBase, tools: Tools = None
) -> LabelledTokens:
    """Encode a prompt with its answer and the end-of-sequence token, the answer to be learnt.

    The prompt's tokens are those that a policy would be asked with: where joining the two strings would merge tokens
    across the seam, they are encoded apart. Of an answer of several turns the last one of the assistant is the answer,
    whatever its weight, and what stands before it belongs to the prompt.
    """
    return _labelled([text_with_answer(prompt, answer, tokenizer, tools)], tokenizer)[0]


def _labelled(texts: Sequence[RowText], tokenizer: PreTrainedTokenizerBase) -> list[LabelledTokens]:
    """Encode texts together."""
    joined = iter(_encode_joined([text for text in texts if isinstance(text, Joined)], tokenizer))
    spoken = iter(_encode_spoken([text for text in texts if isinstance(text, Spoken)], tokenizer))
    return [next(joined) if isinstance(text, Joined) else next(spoken) for text in texts]


def _encode_joined(texts: Sequence[Joined], tokenizer: PreTrainedTokenizerBase) -> list[LabelledTokens]:
    prompts = list(dict.fromkeys(prompt for prompt, _ in texts))
    alone = dict(zip(prompts, _encode_all(tokenizer, prompts), strict=True))
    wholes = _encode_all(tokenizer, [prompt + answer for prompt, answer in texts])
    found = []
    for (prompt, answer), whole in zip(texts, wholes, strict=True):
        asked = _asked(tokenizer, prompt, alone[prompt])
        if whole[: len(asked)] != asked:
            whole = asked + _encode(tokenizer, answer, special=False)
        ids = _ended(whole, tokenizer)
        found.append(LabelledTokens(ids, [NOT_LEARNT] * len(asked) + ids[len(asked) :]))
    return found


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | Chat, tools: Tools = None) -> list[int]:
    """Encode what a policy is asked; an answer's first token comes right behind.

    A chat is rendered with the opening of the assistant's turn. An empty prompt is the begin- or end-of-sequence token,
    since something must stand before an answer.
    """
    if not isinstance(prompt, str):
        return text_ids(tokenizer, prompt_text(tokenizer, prompt, tools))
    return _asked(tokenizer, prompt, _encode(tokenizer, prompt))


def _asked(tokenizer: PreTrainedTokenizerBase, prompt: str, ids: list[int]) -> list[int]:
    """Return the tokens of a prompt as a policy is asked with them."""
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]  # some tokenizers close every text
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return ids or [cast("int", start)]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text that was rendered: nothing is put before it or behind it."""
    return _encode(tokenizer, text, special=False)


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that close an answer by the chat template, such as that of `<|im_end|>` or `<end_of_turn>`.

    Empty where the template closes answers by no special or added token, or refuses a question and an answer.
    """
    found = templates.closing(tokenizer)
    return frozenset() if found is None else frozenset([found])


def _encode_spoken(texts: Sequence[Spoken], tokenizer: PreTrainedTokenizerBase) -> list[LabelledTokens]:
    """Encode chats up to their last learnt answers."""
    placed = _placed([text for text, _ in texts], tokenizer)
    closing = {*tokenizer.all_special_ids, *turn_ends(tokenizer)} if texts else set()
    found = [_chat(*spoken, tokens, tokenizer) for spoken, tokens in zip(texts, placed, strict=True)]
    end = cast("int", tokenizer.eos_token_id)
    # Where the template closes no answer, we do.
    return [row if row.ids[-1] in closing else LabelledTokens([*row.ids, end], [*row.labels, end]) for row in found]


def _chat(
    text: str, spans: Sequence[tuple[int, int]], tokens: list[Placed], tokenizer: PreTrainedTokenizerBase
) -> LabelledTokens:
    """Label the tokens of a chat that are within one of these spans.

    Where the tokens before an answer are not those that a policy would be asked with, the answer is encoded apart, as a
    policy gives it.
    """
    if not all(_as_asked(text, begin, tokens, tokenizer) for begin, _ in spans):
        cuts = [0, *(begin for begin, _ in spans), len(text)]
        parts = _placed([text[offset:stop] for offset, stop in pairwise(cuts)], tokenizer)
        tokens = [
            (token, start + offset, end + offset)
            for offset, part in zip(cuts, parts, strict=False)
            for token, start, end in part
        ]
    labels = [NOT_LEARNT] * len(tokens)
    for begin, stop in spans:
        for place, (token, start, end) in enumerate(tokens):
            if start >= begin < end <= stop:
                labels[place] = token
    return LabelledTokens([token for token, _, _ in tokens], labels)


def _as_asked(text: str, begin: int, tokens: Sequence[Placed], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokens before an answer are those of the text before it alone.

    They differ where a token reaches into the answer. Behind several white spaces they may differ even so: what parts
    a text into words takes white space at its end together, and leaves the last one to a word that follows.
    """
    if any(start < begin < end for _, start, end in tokens):
        return False
    if not text[max(0, begin - 2) : begin].isspace():
        return True
    return [token for token, _, end in tokens if end <= begin] == text_ids(tokenizer, text[:begin])


def _placed(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[Placed]]:
    """Encode texts as they stand; give each token with where it begins and ends."""
    if not texts:
        return []
    found: Any = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    both = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [[(token, *place) for token, place in zip(ids, places, strict=True)] for ids, places in both]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int]:
    return _encode_all(tokenizer, [text], special=special)[0]


def _encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
    if not texts:
        return []
    if len(texts) < ROWS_AT_ONCE // 2 or not tokenizer.is_fast:
        found: Any = tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False)
        return cast("list[list[int]]", found["input_ids"])
    # As it does itself, but for what it would also say of every token; the first text puts it into the right state.
    first, below = _encode_all(tokenizer, texts[:1], special=special), tokenizer.backend_tokenizer
    return first + [one.ids for one in below.encode_batch_fast(list(texts[1:]), add_special_tokens=special)]


def _ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = cast("int", tokenizer.eos_token_id)
    return ids if ids and ids[-1] == eos else [*ids, eos]


def documents(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Encode raw texts, each closed by the end-of-sequence token."""
    for some in _several(texts, TEXTS_AT_ONCE):
        for ids in _encode_all(tokenizer, some):
            yield _ended(ids, tokenizer)


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
