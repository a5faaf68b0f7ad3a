"""The audit of a source: every row read once, in bounded memory, and told what is in it.

Rows that cannot be learnt from are counted, and refused unless the source says `on_bad_rows = "skip"`. What can be
learnt from but had better be known (duplicates, contradictions, what both sides of the split share, a bias to length)
is told and refused never. Texts are remembered by their hash alone.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from alignkit.check.floors import FEWEST, MEASURED, TRAIN, Features, difference, words_win
from alignkit.contract.kinds import Records
from alignkit.contract.records import Part, Row, format_of_part, is_held_out, key_of, placed_rows
from alignkit.contract.shapes import TRANSCRIPTS
from alignkit.errors import DataError, Problem
from alignkit.plan.source import SHOWN, RecordOptions, refused_rows

BIASED = 0.65
"""From this share on, that the longer answer wins is worth a word."""
LENGTHS = (16, 64, 256, 1024, 4096, 16384)
"""Bounds of the histogram of characters."""
CONTROL = re.compile(r"<\|[a-zA-Z_]+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<(?:eos|bos|pad|unk)>")
"""Text that a tokenizer may take for a special token."""


@dataclass
class Audit:
    """What is in a source."""

    source: str
    kind: str
    format: str = ""
    """The format that the rows were read in; empty for columns that the source names."""
    traits: list[str] = field(default_factory=list)
    """What the format does not tell of them, such as `ShareGPT roles`."""
    unread: list[str] = field(default_factory=list)
    """Columns that nothing is made of."""
    chats: bool = False
    """The rows are chats, not strings."""
    rows: int = 0
    held_out: int = 0
    """Rows that are kept aside to measure on."""
    share: float | None = None
    """Of the prompts that are to be kept aside; None where those have an address of their own."""
    bad: int = 0
    """Rows that cannot be learnt from."""
    first_bad: list[str] = field(default_factory=list)
    quarantine: str = ""
    """The file that bad rows were written to."""
    prompts: int = 0
    """Prompts that differ."""
    duplicates: int = 0
    """Rows that another one is equal to, letter by letter."""
    near: int = 0
    """Rows that another one is equal to but for case and white space."""
    contradictions: int = 0
    """Pairs that another one turns round; of judged answers, those that another row judges otherwise."""
    ties: int = 0
    """Pairs of which neither answer is preferred: `p_chosen` is 0.5."""
    overlap: int = 0
    """Held-out rows whose prompt is learnt from, too."""
    longer_wins: float | None = None
    """Share of the pairs whose chosen answer is the longer one, ties half; of ratings, that a good one is."""
    words_win: float | None = None
    """Share of the pairs that a classifier of words tells rightly, on a sample."""
    labels: dict[str, int] = field(default_factory=dict)
    """How often each label is given."""
    blank: int = 0
    """Texts of white space alone, which raw text has between its paragraphs."""
    control: int = 0
    """Rows with text that a tokenizer may take for a special token."""
    controls: dict[str, int] = field(default_factory=dict)
    """Such texts, and in how many rows each is."""
    lengths: list[int] = field(default_factory=lambda: [0] * (len(LENGTHS) + 1))
    """Rows by characters, up to each of LENGTHS and above."""
    longest: int = 0
    """Characters of the longest row."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def remarks(self) -> Iterator[Problem]:
        """Give what had better be known before anything is trained."""
        where = f"source {self.source!r}"
        total = self.rows + self.held_out
        if self.bad:
            problem = f"{self.bad} of {total + self.bad} rows are bad and left out, such as {self.first_bad[0]}"
            yield Problem(problem, where, f"they lie in {self.quarantine}")
        if not (self.rows and self.held_out):
            yield self._one_sided(where)
        if self.overlap:
            problem = f"{self.overlap} of {self.held_out} held-out rows have a prompt that is learnt from, too"
            yield Problem(problem, where, "take them out of one of the two, else what is measured is memory")
        if self.contradictions:
            said = "answers are judged otherwise" if self.kind == "Ratings" else "pairs are turned round"
            yield Problem(f"{self.contradictions} {said} by another one", where, "look at their labels")
        if self.ties > total / 100:
            yield Problem(f"{self.ties} pairs prefer neither answer", where, "take them out: they teach nothing")
        if self.duplicates + self.near > total / 100:
            problem = f"{self.duplicates} rows are there twice, {self.near} more but for case and white space"
            yield Problem(problem, where, "take them out, unless they are meant to weigh more")
        if self.longer_wins is not None and total >= FEWEST and abs(self.longer_wins - 0.5) > BIASED - 0.5:
            word = "longer" if self.longer_wins > 0.5 else "shorter"
            share = max(self.longer_wins, 1 - self.longer_wins)
            problem = f"the {word} answer wins in {share:.0%} of the rows"
            yield Problem(problem, where, "a model can learn the length alone; hold its accuracy against that")
        if len(self.labels) == 1:
            yield Problem(f"every label is {next(iter(self.labels))}", where, "give rows of both labels")
        if self.control:
            most = sorted(self.controls.items(), key=lambda one: -one[1])[:SHOWN]
            told = ", ".join(f"{text} in {times}" for text, times in most)
            problem = f"{self.control} rows hold text that a tokenizer may take for a special token ({told})"
            yield Problem(problem, where, "take it out where it is not meant")
        if self.format == "chosen-rejected" and TRANSCRIPTS in self.traits:
            remedy = f'sources.{self.source}.format = "transcript" reads them as chats, for the model\'s chat template'
            yield Problem("transcripts are read as plain text", where, remedy)

    def _one_sided(self, where: str) -> Problem:
        """Say why all rows are on one side."""
        what = "no rows are held out" if self.rows else "all rows are held out"
        things = "texts" if self.kind == "Text" else "prompts"
        if self.share == 0:
            return Problem(f"{what}: held_out is 0", where, "nothing will be measured on them; set it if that matters")
        if self.prompts == 1:
            problem = f"{what}: all rows have the same prompt, and a prompt is on one side only"
        else:
            problem = f"{what}: {self.prompts} {things} are few for a share of {self.share or 0:g}"
        return Problem(problem, where, 'give a file of its own to measure on: held_out = "FILE"')


@dataclass
class _Seen:
    """Hashes of what was read."""

    whole: set[int] = field(default_factory=set)
    normal: set[int] = field(default_factory=set)
    pairs: set[int] = field(default_factory=set)
    judged: dict[int, float] = field(default_factory=dict)
    """Prompt and answer -> how it was judged first."""
    train: set[int] = field(default_factory=set)
    held_out: Counter[int] = field(default_factory=Counter)
    longer: list[float] = field(default_factory=lambda: [0.0, 0.0])
    sample: tuple[list[Features], list[Features]] = field(default_factory=lambda: ([], []))
    """Differences of the first pairs, to learn from and to measure on."""


def audit(records: Records, options: RecordOptions, quarantine: Path | None = None) -> Audit:
    """Read every row of a source once and tell what is in it.

    Bad rows go to the file `quarantine`, where they are skipped. Raises DataError with the first bad rows where they
    are not, or are more than the share `max_bad`, and where no row is left.
    """
    kind = type(records)
    found, seen, errors = Audit(records.name, kind.__name__), _Seen(), list[DataError]()
    found.share = options.held_out if isinstance(options.held_out, float) else None
    if form := format_of_part(records.parts[0], kind.__name__, kind.columns):
        found.format, found.traits, found.unread = form.name, list(form.traits), list(form.unread)

    with ExitStack() as resources:
        file: TextIO | None = None

        def bad(error: DataError, row: Row | None) -> None:
            nonlocal file
            found.bad += 1
            if len(errors) < SHOWN:
                errors.append(error)
            if quarantine and options.on_bad_rows == "skip":
                file = file or resources.enter_context(quarantine.open("w", encoding="utf-8"))
                file.write(json.dumps({"problem": str(error), "row": row}, default=str) + "\n")
                found.quarantine = str(quarantine)

        for part in records.parts:
            for _, row in placed_rows(part, kind.__name__, kind.columns, bad):
                count(row, part, found, seen)
    total = found.rows + found.held_out + found.bad
    found.first_bad = [str(error) for error in errors]
    if errors and (options.on_bad_rows == "fail" or found.bad > options.max_bad * total):
        raise refused_rows(records.name, errors, found.bad, total, options)
    if not found.rows + found.held_out:
        raise DataError(f"source {records.name!r} has no rows", remedy="give it rows, or widen its split")
    found.prompts = len(seen.train | seen.held_out.keys())
    found.overlap = sum(times for prompt, times in seen.held_out.items() if prompt in seen.train)
    if seen.longer[1]:
        found.longer_wins = seen.longer[0] / seen.longer[1]
        train, held_out = seen.sample
        cut = len(train) * 4 // 5  # too few held-out rows: those at the end of the sample
        found.words_win = words_win(train, held_out) or words_win(train[:cut], train[cut:])
    return found


def count(row: Row, part: Part, found: Audit, seen: _Seen) -> None:
    """Count one good row."""
    texts = list(_texts(row))
    prompt, aside = hash(key_of(row)), is_held_out(row, part)
    if aside:
        found.held_out += 1
        seen.held_out[prompt] += 1
    else:
        found.rows += 1
        seen.train.add(prompt)
    found.chats = found.chats or any(isinstance(value, list) for value in row.values())
    size = sum(map(len, texts))
    found.blank += "text" in row and not row["text"].strip()
    found.longest = max(found.longest, size)
    found.lengths[next((place for place, bound in enumerate(LENGTHS) if size <= bound), len(LENGTHS))] += 1
    whole = "\x00".join(texts)
    _count_twins(hash((whole, row.get("label"), row.get("rating"))), whole, found, seen)
    if ("<" in whole or "[" in whole) and (texts_found := set(CONTROL.findall(whole))):
        found.control += 1
        for text in texts_found:
            found.controls[text] = found.controls.get(text, 0) + 1
    if "chosen" in row:
        _count_pair(row, prompt, found, seen)
        if len(seen.sample[aside]) < (MEASURED if aside else TRAIN):
            seen.sample[aside].append(difference(_text_of(row["chosen"]), _text_of(row["rejected"])))
        found.ties += row.get("p_chosen") == 0.5
    elif "label" in row or "rating" in row:
        judged = row["label"] if "label" in row else row["rating"]
        if "label" in row:
            found.labels[str(judged).lower()] = found.labels.get(str(judged).lower(), 0) + 1
        found.contradictions += seen.judged.setdefault(hash(whole), float(judged)) != float(judged)


def _count_twins(key: int, whole: str, found: Audit, seen: _Seen) -> None:
    before = len(seen.whole)
    seen.whole.add(key)
    if len(seen.whole) == before:
        found.duplicates += 1
        return
    before = len(seen.normal)
    seen.normal.add(hash(" ".join(whole.casefold().split())))
    found.near += len(seen.normal) == before


def _count_pair(row: Row, prompt: int, found: Audit, seen: _Seen) -> None:
    chosen, rejected = _text_of(row["chosen"]), _text_of(row["rejected"])
    one, other = hash(chosen), hash(rejected)
    found.contradictions += hash((prompt, other, one)) in seen.pairs
    seen.pairs.add(hash((prompt, one, other)))
    more = len(chosen) - len(rejected)
    seen.longer[0] += 0.5 if more == 0 else float(more > 0)
    seen.longer[1] += 1


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    for column in ("prompt", "completion", "messages", "chosen", "rejected", "text"):
        if column in row:
            yield _text_of(row[column])


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(turn["content"] for turn in value)
