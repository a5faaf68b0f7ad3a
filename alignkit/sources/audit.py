"""The audit of a source: every row read once, in bounded memory, and told what is in it.

Rows that cannot be learnt from are counted, and refused unless the source says `on_bad_rows = "skip"`. What can be
learnt from but warned of (duplicates, contradictions, what both sides of the split share, a bias to length)
is told and refused never. Texts are remembered by their hash alone, in 24 to 48 bytes a row.
"""

import json
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from alignkit.contract.kinds import Records
from alignkit.data.arrow import NullFields
from alignkit.data.chats import TURN_KEYS, text_of
from alignkit.data.floors import FEWEST, MEASURED, TRAIN, Features, difference, words_win
from alignkit.data.formats import TRANSCRIPTS
from alignkit.data.records import Part, Row, format_of_part, is_held_out, key_of, placed_rows
from alignkit.data.values import CONTENTS, form_of
from alignkit.errors import DataError, Problem
from alignkit.sources.source import SHOWN, BadRows, RecordOptions

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
    in_recipe: bool = True
    """A recipe names the source; else it is files by themselves."""
    split: str = ""
    """The split of a folder that it reads."""
    splits: list[str] = field(default_factory=list)
    """All splits of that folder."""
    chats: bool = False
    """The rows are chats, not strings."""
    turn_keys: dict[str, int] = field(default_factory=dict)
    """Keys of turns besides `role` and `content`, and how many turns have each."""
    not_learnt: int = 0
    """Answers in chats that are not learnt: their `weight` is 0."""
    several_turns: int = 0
    """Answers of pairs and judged answers that have several turns, as where tools are called."""
    without_value: list[str] = field(default_factory=list)
    """Fields of structures in columnar files that are null in every row, by their path."""
    ending: str = ""
    """What nearly all answers end with."""
    endings: list[int] = field(default_factory=lambda: [0, 0])
    """How many answers end so, and how many were looked at."""
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
        """Yield the warnings about these rows."""
        where = f"source {self.source!r}"
        total = self.rows + self.held_out
        if self.bad:
            problem = f"{self.bad} of {total + self.bad} rows are bad and left out, such as {self.first_bad[0]}"
            yield Problem(problem, where, f"they lie in {self.quarantine}")
        if not (self.rows and self.held_out):
            yield self._one_sided(where)
        if self.without_value:
            told = ", ".join(self.without_value[:SHOWN]) + (", ..." if len(self.without_value) > SHOWN else "")
            problem = f"{told}: null in every row, and read as if not there, as columnar files fill up structures"
            yield Problem(problem, where, "write the rows as JSON Lines if a null is meant")
        if unread := [column for column in self.unread if column in OF_PROMPTS]:
            problem = f"the columns {', '.join(unread)} are not read, and may be part of what is asked"
            yield Problem(problem, where, "write what they say into the prompt, or take them out")
        if self.ending:
            times, of = self.endings
            problem = f"{times} of {of} answers end with the same {len(self.ending)} characters, {self.ending!r}"
            yield Problem(problem, where, "take them out unless they are meant: an answer's end is marked by itself")
        if self.overlap:
            problem = f"{self.overlap} of {self.held_out} held-out rows have a prompt that is learnt from, too"
            yield Problem(problem, where, "take them out of one of the two, else what is measured is memory")
        if self.contradictions:
            said = "answers are judged otherwise" if self.kind == "Ratings" else "pairs contradict another row"
            yield Problem(f"{self.contradictions} {said} by another one", where, "look at their labels")
        if self.ties > total / 100:
            yield Problem(f"{self.ties} pairs prefer neither answer", where, "take them out: they teach nothing")
        if self.duplicates + self.near > total / 100:
            problem = f"{self.duplicates} duplicate rows, {self.near} more that differ in case or white space alone"
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
            key = f"sources.{self.source if self.in_recipe else 'NAME'}.format"
            remedy = f'{key} = "transcript" reads them as chats, for the model\'s chat template'
            yield Problem("transcripts are read as plain text", where, remedy)

    def _one_sided(self, where: str) -> Problem:
        """Return why all rows are on one side."""
        what = "no rows are held out" if self.rows else "all rows are held out"
        things = "texts" if self.kind == "Text" else "prompts"
        if self.share == 0:
            return Problem(f"{what}: held_out is 0", where, "nothing will be measured on them; set it if that matters")
        if self.prompts == 1:
            problem = f"{what}: all rows have the same prompt, and a prompt is on one side only"
        else:
            problem = f"{what}: {self.prompts} {things} are few for a share of {self.share or 0:g}"
        return Problem(problem, where, 'give a file of its own to measure on: held_out = "FILE"')

    @property
    def unread_keys(self) -> list[str]:
        """Keys of turns that only a chat template may read."""
        return [key for key in self.turn_keys if key not in TURN_KEYS]


OF_PROMPTS = ("tools", "system", "functions", "documents", "chat_template_kwargs", "system_prompt")
"""Columns that change what a prompt is, in the data sets that have them."""
ENDINGS, LONGEST_ENDING, SHORTEST_ENDING = 10_000, 64, 5
"""Answers whose ends are compared, and characters of an end."""
NEARLY_ALL = 0.95


def hashes() -> "array[int]":
    """Make room for hashes of 8 bytes each, in the order of the rows."""
    return array("q")


@dataclass
class _Seen:
    """Hashes of what was read."""

    whole: "array[int]" = field(default_factory=hashes)
    normal: "array[int]" = field(default_factory=hashes)
    """Of the same in small letters, white space made alike."""
    pairs: "array[int]" = field(default_factory=hashes)
    reversed: "array[int]" = field(default_factory=hashes)
    """Of the pairs whose answers are the other way round."""
    answered: "array[int]" = field(default_factory=hashes)
    """Of judged answers with their prompts."""
    judged: "array[float]" = field(default_factory=lambda: array("d"))
    """How each of them is judged."""
    train: "array[int]" = field(default_factory=hashes)
    """Of prompts that are learnt from, and of those that are held out."""
    held_out: "array[int]" = field(default_factory=hashes)
    forms: Counter[str] = field(default_factory=Counter)
    longer: list[float] = field(default_factory=lambda: [0.0, 0.0])
    sample: tuple[list[Features], list[Features]] = field(default_factory=lambda: ([], []))
    """Differences of the first pairs, to learn from and to measure on."""
    ends: dict[int, str] = field(default_factory=dict)
    """The first answers that differ, by their hash -> what each ends with, backwards."""


def audit(records: Records, options: RecordOptions, quarantine: Path | None = None) -> Audit:
    """Read every row of a source once and tell what is in it.

    Bad rows go to the file `quarantine`, where they are skipped. Raises DataError with the first bad rows where they
    are not, or are more than the share `max_bad`, and where no row is left.
    """
    kind = type(records)
    found, seen, bad_rows, nulls = Audit(records.name, kind.__name__), _Seen(), BadRows(), NullFields()
    found.in_recipe = records.parts[0].in_recipe
    found.share = options.held_out if isinstance(options.held_out, float) else None
    if form := format_of_part(records.parts[0], kind.__name__, kind.columns):
        found.format, found.traits, found.unread = form.name, list(form.traits), list(form.unread)

    with ExitStack() as resources:
        file: TextIO | None = None

        def bad(error: DataError, row: Row | None) -> None:
            nonlocal file
            bad_rows.note(error)
            if quarantine and options.on_bad_rows == "skip":
                file = file or resources.enter_context(quarantine.open("w", encoding="utf-8"))
                file.write(json.dumps({"problem": str(error), "row": row}, default=str) + "\n")
                found.quarantine = str(quarantine)

        for part in records.parts:
            for _, row in placed_rows(part, kind.__name__, kind.columns, bad, nulls):
                count(row, part, found, seen)
    good = found.rows + found.held_out
    found.bad, found.first_bad = bad_rows.count, [str(error) for error in bad_rows.first]
    if bad_rows.count and (options.on_bad_rows == "fail" or found.bad > options.max_bad * (good + found.bad)):
        raise bad_rows.refusal(records.parts[0], good, options)
    if not good:
        raise DataError(f"source {records.name!r} has no rows", remedy="give it rows, or widen its split")
    _refuse_two_forms(records, seen)
    kept = {"tools", *(name for part in records.parts for name in part.keep)}
    found.without_value = [path for path in nulls.without_value() if is_handed_on(path, kept)]
    found.ending, *found.endings = common_ending(list(seen.ends.values()))
    _compare(seen, found)
    if seen.longer[1]:
        found.longer_wins = seen.longer[0] / seen.longer[1]
        train, held_out = seen.sample
        cut = len(train) * 4 // 5  # too few held-out rows: those at the end of the sample
        found.words_win = words_win(train, held_out) or words_win(train[:cut], train[cut:])
    return found


def _compare(seen: _Seen, found: Audit) -> None:
    """Count what rows have in common."""
    import numpy as np

    train, held_out = np.array(seen.train), np.array(seen.held_out)
    found.prompts = len(np.union1d(train, held_out))
    found.overlap = int(np.isin(held_out, train).sum())
    first = np.unique(np.array(seen.whole), return_index=True)[1]
    found.duplicates = len(seen.whole) - len(first)
    found.near = len(first) - len(np.unique(np.array(seen.normal)[first]))
    if seen.pairs:  # a pair contradicts one before it that is the same the other way round
        pairs, first = np.unique(np.array(seen.pairs), return_index=True)
        turned = np.array(seen.reversed)
        place = np.searchsorted(pairs, turned).clip(max=len(pairs) - 1)
        found.contradictions += int(((pairs[place] == turned) & (first[place] < np.arange(len(turned)))).sum())
    if seen.answered:  # an answer, one before it that is the same
        judged = np.array(seen.judged)
        _, first, which = np.unique(np.array(seen.answered), return_index=True, return_inverse=True)
        found.contradictions += int((judged[first][which] != judged).sum())


def is_handed_on(path: str, columns: Collection[str]) -> bool:
    """Return whether a field is in a structure that is handed on whole, to a template or a reward function."""
    return path.partition(".")[0].partition("[")[0] in columns or ".arguments." in path


def common_ending(backwards: Sequence[str]) -> tuple[str, int, int]:
    """Return what nearly all texts end with, which are written backwards; how many do so, and how many there are."""
    ending, same = "", backwards
    while same and len(ending) < LONGEST_ENDING:
        letter, times = Counter(text[len(ending) : len(ending) + 1] for text in same).most_common(1)[0]
        if not letter or times < NEARLY_ALL * len(backwards):
            break
        ending += letter
        same = [text for text in same if text.startswith(ending)]
    told = ending[::-1]
    if len(backwards) < FEWEST or len(told.strip()) < SHORTEST_ENDING:
        return "", 0, 0
    return told, len(same), len(backwards)


def _refuse_two_forms(records: Records, seen: _Seen) -> None:
    """Refuse rows to measure on that are plain text where those to learn from are chats, or the other way round."""
    if len(seen.forms) > 1:
        counts = ", ".join(f"{seen.forms[form]} {form}" for form in ("chat", "plain"))
        problem = f"the rows to learn from and the held-out ones are mixed chats and plain text ({counts})"
        raise DataError(problem, f"source {records.name!r}", "write all rows in one form")


def count(row: Row, part: Part, found: Audit, seen: _Seen) -> None:
    """Count one good row."""
    texts = list(_texts(row))
    prompt, aside = hash(key_of(row)), is_held_out(row, part)
    if aside:
        found.held_out += 1
    else:
        found.rows += 1
    (seen.held_out if aside else seen.train).append(prompt)
    form = form_of(row)
    seen.forms[form] += 1
    found.chats = form == "chat"
    _count_turns(row, found)
    _count_several(row, found)
    _note_ends(row, seen)
    size = sum(map(len, texts))
    found.blank += "text" in row and not row["text"].strip()
    found.longest = max(found.longest, size)
    found.lengths[next((place for place, bound in enumerate(LENGTHS) if size <= bound), len(LENGTHS))] += 1
    whole = "\x00".join(texts)
    tools = json.dumps(row["tools"], default=str) if "tools" in row else ""
    seen.whole.append(hash((whole, tools, row.get("label"), row.get("rating"))))
    seen.normal.append(hash(" ".join(f"{whole}{tools}".casefold().split())))
    if ("<" in whole or "[" in whole) and (texts_found := set(CONTROL.findall(whole))):
        found.control += 1
        for text in texts_found:
            found.controls[text] = found.controls.get(text, 0) + 1
    if "chosen" in row:
        _count_pair(row, prompt, seen)
        if len(seen.sample[aside]) < (MEASURED if aside else TRAIN):
            seen.sample[aside].append(difference(_text_of(row["chosen"]), _text_of(row["rejected"])))
        found.ties += row.get("p_chosen") == 0.5
    elif "label" in row or "rating" in row:
        judged = row["label"] if "label" in row else row["rating"]
        if "label" in row:
            found.labels[str(judged).lower()] = found.labels.get(str(judged).lower(), 0) + 1
        seen.answered.append(hash(whole))
        seen.judged.append(float(judged))


def _count_turns(row: Row, found: Audit) -> None:
    """Count keys of turns, and answers that are not learnt."""
    for turn in (turn for column in CONTENTS if isinstance(row.get(column), list) for turn in row[column]):
        found.not_learnt += turn.get("weight") == 0
        for key in turn.keys() - {"role", "content"}:
            found.turn_keys[key] = found.turn_keys.get(key, 0) + 1


def _count_several(row: Row, found: Audit) -> None:
    answers = (row[column] for column in ("completion", "chosen", "rejected") if column in row)
    found.several_turns += sum(isinstance(answer, list) and len(answer) > 1 for answer in answers)


def _note_ends(row: Row, seen: _Seen) -> None:
    """Note what a row's answers end with, of each answer once."""
    for column in ("completion", "messages", "chosen", "rejected"):
        if column in row and len(seen.ends) < ENDINGS:
            value = row[column]
            answers = value if isinstance(value, list) else [{"role": "assistant", "content": value}]
            text = next((turn["content"] for turn in reversed(answers) if turn["role"] == "assistant"), "")
            if text:
                seen.ends.setdefault(hash(text), text[: -LONGEST_ENDING - 1 : -1])


def _count_pair(row: Row, prompt: int, seen: _Seen) -> None:
    chosen, rejected = _text_of(row["chosen"]), _text_of(row["rejected"])
    one, other = hash(chosen), hash(rejected)
    seen.pairs.append(hash((prompt, one, other)))
    seen.reversed.append(hash((prompt, other, one)))
    more = len(chosen) - len(rejected)
    seen.longer[0] += 0.5 if more == 0 else float(more > 0)
    seen.longer[1] += 1


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    for column in ("prompt", "completion", "messages", "chosen", "rejected", "text"):
        if column in row:
            yield _text_of(row[column])


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(map(text_of, value))
