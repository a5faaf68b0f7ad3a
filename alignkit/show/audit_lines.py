"""An audit, and what stages make of the rows, in words."""

from collections.abc import Iterator, Sequence

import click

from alignkit.estimate.preview import Piece, Preview
from alignkit.sources.audit import LENGTHS, Audit
from alignkit.text import plain, table

BAR = 30
"""Characters of the longest bar of a histogram."""
BEGINNING, END = 800, 400
"""Characters that are shown of a long text in a sample; what begins and ends it is what matters."""


def show_audit(found: Audit, width: int | None) -> list[str]:
    """Return the lines that tell what is in a source."""
    return [
        f"{found.source}: read as {read_as(found)}",
        *table([(f"  {name}", value) for name, value in facts(found)], width),
        *(f"  {line}" for line in _histogram(found)),
        *table([("  !", f"{one.problem}; {one.remedy}") for one in found.remarks()], width),
    ]


def read_as(found: Audit) -> str:
    """Return in words what the rows were read as, such as `chat preferences (sharegpt), ShareGPT roles`."""
    kind = found.kind.lower() if found.kind == "Text" else f"{'chat' if found.chats else 'plain'} {found.kind.lower()}"
    return ", ".join([f"{kind} ({found.format or 'the columns that the source names'})", *found.traits])


def facts(found: Audit) -> Iterator[tuple[str, str]]:
    """Yield what is in a source, each fact with its name."""
    yield "rows", f"{found.rows} to learn from, {found.held_out} held out"
    if found.bad:
        yield "left out", f"{found.bad} bad rows, in {found.quarantine}"
    if found.splits:
        yield "split", f"{plain(found.split)}, of {', '.join(map(plain, found.splits))}"
    unread = [f"the columns {', '.join(map(plain, found.unread))}"] if found.unread else []
    if found.unread_keys:
        keys = ", ".join(map(plain, found.unread_keys))
        unread.append(f"the keys {keys} of turns, unless the chat template reads them")
    if unread:
        yield "not read", "; ".join(unread)
    if found.several_turns:
        learnt = "all that the assistant says in them" if found.kind == "Demonstrations" else "the last of them"
        yield "answers", f"{found.several_turns} have several turns; {learnt} is the answer"
    if found.not_learnt:
        yield "not learnt", f"{found.not_learnt} answers of the weight 0"
    yield "prompts" if found.kind != "Text" else "texts", f"{found.prompts} differ"
    yield "twice", f"{found.duplicates} rows, {found.near} more but for case and white space"
    if found.blank:
        yield "blank", f"{found.blank} texts of white space alone"
    if found.longer_wins is not None:
        yield "contradictions", f"{found.contradictions} pairs contradict another one"
        if found.ties:
            yield "ties", f"{found.ties} pairs prefer neither answer"
        yield "longer wins", f"{found.longer_wins:.3f} (what an accuracy on these pairs is held against)"
    if found.words_win is not None:
        yield "words win", f"{found.words_win:.3f} (a classifier of words and pairs of words, on a sample)"
    if found.labels:
        yield "labels", ", ".join(f"{label} {times}" for label, times in sorted(found.labels.items()))
    if found.kind == "Ratings":
        yield "contradictions", f"{found.contradictions} answers are judged otherwise by another row"
    yield "overlap", f"{found.overlap} held-out rows have a prompt that is learnt from"


def _histogram(found: Audit) -> Iterator[str]:
    names = [f"up to {bound} characters" for bound in LENGTHS] + [f"to {found.longest} characters"]
    return _bars(list(zip(names, found.lengths, strict=True)))


def _bars(counted: Sequence[tuple[str, int]]) -> Iterator[str]:
    most = max((rows for _, rows in counted), default=0)
    for name, rows in counted:
        if rows:
            yield f"{name:>24}  {rows:8}  {'█' * max(1, round(BAR * rows / most))}"


def show_preview(stage: str, source: str, found: Preview, *, colour: bool) -> list[str]:
    """Return the lines on what a stage gets of a source: tokens, what does not fit, rows as the model sees them."""
    lines = [
        f"{stage} takes {source}: {tokens(found)}",
        *(f"  {line}" for line in _bars([(f"up to {bound} tokens", rows) for bound, rows in token_lengths(found)])),
        *(f"  !  {line}" for line in concerns(found)),
    ]
    for sample in found.samples:
        text = "".join(_painted(piece, colour) for piece in sample.pieces)
        lines.append(f"  {sample.role}")
        lines += [f"    {line}" for line in text.split("\n")]
    return lines


def tokens(found: Preview) -> str:
    """Return in a line what a stage gets of a source."""
    part = f" of {found.of}" if found.counted < found.of else ""
    return (
        f"{found.tokens} tokens in {found.counted}{part} rows, the middle row has {found.median:g}, 99 % at most "
        f"{found.most}, the longest {found.longest}; max_length is {found.limit}"
        + (f", {found.limit - found.room} of it for an answer" if found.room < found.limit else "")
        + (f"; {found.steps} {found.steps_are}" if found.steps else "")
    )


def token_lengths(found: Preview) -> list[tuple[int, int]]:
    """Return the histogram of tokens: the most that rows of a bar have, and how many rows there are."""
    return [(16 << place, rows) for place, rows in enumerate(found.lengths)]


def concerns(found: Preview) -> Iterator[str]:
    """Yield what does not fit, and which rows hold special tokens as text."""
    if found.over:
        yield f"{found.over} of {found.counted} rows are longer than {found.room} tokens, and {found.fate}"
    if found.refused:
        yield f"{found.refused} rows are refused by the chat template, and are no part of these figures"
    if found.same:
        yield f"{found.same} of {found.counted} pairs are the same to the model, and teach nothing; take them out"
    if found.special:
        share = f"{found.special} of {found.counted} rows hold a special token of the tokenizer as text"
        yield f"{share}: the model reads it as the token; take it out where it is not meant"


def shortened(text: str) -> str:
    """Leave out the middle of a long text, and say how much that is."""
    left_out = len(text) - BEGINNING - END
    return text if left_out <= 0 else f"{text[:BEGINNING]} [... {left_out} characters ...] {text[-END:]}"


def _painted(piece: Piece, colour: bool) -> str:
    """Write what is learnt in colour, or between brackets where there is none; nothing in it moves the cursor."""
    text = plain(shortened(piece.text))
    if not colour:
        return f"⟦{text}⟧" if piece.learnt else text
    return "\n".join(
        click.style(line, fg="green" if piece.learnt else None, dim=not piece.learnt) for line in text.split("\n")
    )
