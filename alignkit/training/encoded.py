"""Rows as tokens, encoded once: the first process writes them into the run's cache, all read them from there.

A list of tokens takes 50 bytes each in Python. In the cache a token takes 1 to 4, and one more that says whether it is
learnt, and no process holds them. What lies there belongs to the rows, their tokenizer and whatever else their encoding
depends on; what is damaged is made anew.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Generic, Protocol, TypeVar
from weakref import finalize

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Preferences, Records
from alignkit.contract.stage import Stage
from alignkit.store.durable import damage, hash_file, publish, read_json, sync_and_list, write_json
from alignkit.store.leases import once
from alignkit.training import parallel
from alignkit.training.encoding import (
    NOT_LEARNT,
    Encoding,
    LabelledPair,
    LabelledRow,
    LabelledTokens,
    LengthReport,
    encode_pairs,
)
from alignkit.training.made_rows import MadeRows
from alignkit.training.mixed_rows import Mixed, ReadRows, mixed, value_of
from alignkit.training.row_texts import Row

VERSION = 1
"""Raised when rows are encoded otherwise, or written otherwise."""
ROWS_AT_ONCE = 1024
"""Rows that are written together."""
TOKENS, LEARNT, ENDS, FACTS = "tokens.bin", "learnt.bin", "ends.bin", "facts.json"
ROWS, ROW_ENDS, VALUES = "rows.bin", "row-ends.bin", "values.bin"
T = TypeVar("T")


class EncodedRow(Protocol):
    """What is encoded of a row; where it is ordered, the row is with it."""

    @property
    def row(self) -> Row: ...


R = TypeVar("R", bound=EncodedRow)
K = TypeVar("K", bound=Records)


class _Bytes:
    """A file of which parts are read; pages of a mapping would count as this process's memory."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        finalize(self, os.close, self._file)

    def read(self, start: int, end: int) -> bytes:
        return os.pread(self._file, end - start, start)


def _span(ends: "np.ndarray[Any, np.dtype[np.int64]]", row: int) -> tuple[int, int]:
    """Return where a row begins and ends, of those that follow each other."""
    return int(ends[row - 1]) if row else 0, int(ends[row])


class EncodedRows(MadeRows[LabelledTokens]):
    """Rows that lie in a folder; each is read when it is asked for, and none is kept."""

    def __init__(self, folder: Path) -> None:
        facts = read_json(folder / FACTS)
        self.lengths = LengthReport(**facts["lengths"])
        self._kind = np.dtype(facts["kind"])
        self._ends = np.fromfile(folder / ENDS, np.int64)
        self._tokens, self._learnt = _Bytes(folder / TOKENS), _Bytes(folder / LEARNT)
        file = folder / VALUES
        self.values: list[float] = np.fromfile(file, np.float64).tolist() if file.is_file() else []
        """What a mix orders the rows by."""

    def __len__(self) -> int:
        return len(self._ends)

    def made(self, row: int) -> LabelledTokens:
        start, end = _span(self._ends, row)
        size = self._kind.itemsize
        tokens = np.frombuffer(self._tokens.read(start * size, end * size), self._kind)
        learnt = np.frombuffer(self._learnt.read(start, end), np.bool_)
        return LabelledTokens(tokens.tolist(), np.where(learnt, tokens.astype(np.int64), NOT_LEARNT).tolist())


class EncodedPairs(MadeRows[T]):
    """Pairs that lie in a folder, their sides one after the other; each is read and made when it is asked for."""

    def __init__(self, folder: Path, make: Callable[[LabelledPair], T]) -> None:
        self._sides, self._make = EncodedRows(folder), make
        self._ends = np.fromfile(folder / ROW_ENDS, np.int64)
        self._rows = _Bytes(folder / ROWS)

    @property
    def lengths(self) -> LengthReport:
        return self._sides.lengths

    @property
    def values(self) -> list[float]:
        return self._sides.values

    def __len__(self) -> int:
        return len(self._ends)

    def made(self, row: int) -> T:
        kept = json.loads(self._rows.read(*_span(self._ends, row)))
        return self._make(LabelledPair(self._sides[2 * row], self._sides[2 * row + 1], kept))


def encode_once(
    stage: Stage,
    records: K,
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[K], Encoding[LabelledRow]],
    *depends_on: object,
) -> Mixed[LabelledTokens]:
    """Return rows to learn from that `encode` yields, from the cache where they lie there.

    `depends_on` is what the encoding depends on besides the records and the tokenizer.
    """

    def read(some: K) -> ReadRows[LabelledTokens]:
        encoder = Encoder(lambda: encode(some), lambda row: [row.tokens])
        rows = EncodedRows(_in_cache(stage, some, tokenizer, encoder, depends_on))
        return ReadRows(rows, rows.lengths, rows.values)

    return mixed(records, read)


def encode_pairs_once(
    stage: Stage,
    records: Preferences,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    make: Callable[[LabelledPair], T],
) -> Mixed[T]:
    """Return pairs to learn from, from the cache where they lie there, as `make` makes them of their tokens."""

    def read(some: Preferences) -> ReadRows[T]:
        encoder = Encoder(
            lambda: encode_pairs(some.train(), tokenizer, limit),
            lambda pair: [pair.chosen, pair.rejected],
            lambda pair: json.dumps(pair.row, ensure_ascii=False, default=str),
        )
        rows = EncodedPairs(_in_cache(stage, some, tokenizer, encoder, ["pairs", limit]), make)
        return ReadRows(rows, rows.lengths, rows.values)

    return mixed(records, read)


@dataclass(frozen=True)
class Encoder(Generic[R]):
    """How what is encoded is written."""

    encode: Callable[[], Encoding[R]]
    sequences: Callable[[R], list[LabelledTokens]]
    row: Callable[[R], str] | None = None
    """Its row as text, where that is kept."""


def _in_cache(
    stage: Stage,
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder[R],
    depends_on: Sequence[object],
) -> Path:
    """Return the folder of encoded rows, and see to it that they lie there."""
    order = records.mix.order if records.mix else None
    folder = stage.cache / f"rows-{_key(records, tokenizer, [*depends_on, *([order] if order else [])])}"

    def make() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        _write(folder, len(tokenizer), encoder, order)

    # A stage that runs beside this one, here or elsewhere, may want the same rows.
    lock = folder.parent / ".locks" / f"{folder.name}.lock"
    parallel.first(lambda: once(lock, lambda: _is_whole(folder), make))
    return folder


def _key(records: Records, tokenizer: PreTrainedTokenizerBase, depends_on: Sequence[object]) -> str:
    """Hash what the rows are and how they are encoded; a file that was changed has another size or another time."""
    files = [path.stat() for part in records.parts for path in part.paths]
    stamps = [(file.st_size, file.st_mtime_ns) for file in files]
    parts = [part.model_dump(mode="json") for part in records.parts]
    rows = [VERSION, type(records).__name__, records.fingerprint, parts, stamps, depends_on]
    text = json.dumps([*rows, _facts_of(tokenizer)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _facts_of(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    """Return what a tokenizer makes tokens by."""
    words = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else [repr(tokenizer), tokenizer.get_vocab()]
    return [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.chat_template, words]


def _is_whole(folder: Path) -> bool:
    facts = read_json(folder / FACTS)
    return bool(facts) and not damage(folder, facts["files"], hash_file)


def _write(folder: Path, vocabulary: int, encoder: Encoder[R], order: str | None) -> None:
    """Write rows as they are encoded, by all cores; the folder has its name once all of them are there."""
    kind = np.min_scalar_type(vocabulary)
    staged = folder.with_suffix(f".{token_hex(4)}.partial")
    staged.mkdir(parents=True)
    try:
        with _all_cores():
            lengths = _write_rows(staged, kind, encoder, order)
        write_json(staged / FACTS, {"kind": kind.name, "lengths": asdict(lengths), "files": sync_and_list(staged)})
        publish(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write_rows(folder: Path, kind: "np.dtype[Any]", encoder: Encoder[R], order: str | None) -> LengthReport:
    rows, lengths = encoder.encode(), LengthReport(0)

    def told() -> Iterator[R]:
        nonlocal lengths
        lengths = yield from rows

    left, end, row_end = told(), 0, 0
    with ExitStack() as opened:
        names = [TOKENS, LEARNT, ENDS] + ([ROWS, ROW_ENDS] if encoder.row else [])
        tokens, learnt, ends, *texts = (opened.enter_context((folder / name).open("wb")) for name in names)
        while some := list(islice(left, ROWS_AT_ONCE)):
            sequences = [sequence for row in some for sequence in encoder.sequences(row)]
            tokens.write(np.array([token for row in sequences for token in row.ids], kind).tobytes())
            labels = np.array([label for row in sequences for label in row.labels], np.int64)
            learnt.write((labels != NOT_LEARNT).tobytes())
            end = _write_ends(ends, end, [len(row.ids) for row in sequences])
            if encoder.row:
                written = [encoder.row(row).encode("utf-8", "surrogatepass") for row in some]
                texts[0].write(b"".join(written))
                row_end = _write_ends(texts[1], row_end, [*map(len, written)])
            if order:
                with (folder / VALUES).open("ab") as values:
                    values.write(np.array([value_of(row.row, order) for row in some]).tobytes())
    return lengths


def _write_ends(file: BinaryIO, before: int, sizes: Sequence[int]) -> int:
    """Write where each of these ends that follow each other, and return where the last does."""
    ends = before + np.cumsum(sizes, dtype=np.int64)
    file.write(ends.tobytes())
    return int(ends[-1])


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let tokenizers use threads, which they must not do in a process that is forked from later."""
    before = os.environ.get("TOKENIZERS_PARALLELISM", "false")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before
