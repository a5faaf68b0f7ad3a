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
from dataclasses import asdict
from itertools import islice
from operator import index
from pathlib import Path
from typing import overload

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Records
from alignkit.contract.stage import Stage
from alignkit.store.durable import damage, hash_file, publish, read_json, sync_and_list, write_json
from alignkit.training import parallel
from alignkit.training.encoding import NOT_LEARNT, Encoding, LabelledTokens, LengthReport

VERSION = 1
"""Raised when rows are encoded otherwise, or written otherwise."""
ROWS_AT_ONCE = 4096
"""Rows that are written together."""
TOKENS, LEARNT, ENDS, FACTS = "tokens.bin", "learnt.bin", "ends.bin", "facts.json"


class EncodedRows(Sequence[LabelledTokens]):
    """Rows that lie in a folder; each is read when it is asked for, and none is kept."""

    def __init__(self, folder: Path) -> None:
        facts = read_json(folder / FACTS)
        self.lengths = LengthReport(**facts["lengths"])
        self._kind = np.dtype(facts["kind"])
        self._ends = np.fromfile(folder / ENDS, np.int64)  # of each row; it begins where the one before ends
        self._tokens, self._learnt = (os.open(folder / name, os.O_RDONLY) for name in (TOKENS, LEARNT))

    def __del__(self) -> None:
        for file in (self._tokens, self._learnt):
            os.close(file)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> LabelledTokens: ...

    @overload
    def __getitem__(self, place: slice) -> list[LabelledTokens]: ...

    def __getitem__(self, place: int | slice) -> LabelledTokens | list[LabelledTokens]:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        row = range(len(self))[index(place)]
        start, end = int(self._ends[row - 1]) if row else 0, int(self._ends[row])
        # Read, not mapped: pages of a mapping would count as this process's memory.
        size = self._kind.itemsize
        tokens = np.frombuffer(os.pread(self._tokens, (end - start) * size, start * size), self._kind)
        learnt = np.frombuffer(os.pread(self._learnt, end - start, start), np.bool_)
        return LabelledTokens(tokens.tolist(), np.where(learnt, tokens.astype(np.int64), NOT_LEARNT).tolist())


def encode_once(
    stage: Stage,
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[], Encoding[LabelledTokens]],
    *depends_on: object,
) -> EncodedRows:
    """Return rows that `encode` yields, from the cache where they lie there.

    `depends_on` is what the encoding depends on besides the records and the tokenizer, the side of the records first.
    """
    folder = stage.cache / f"rows-{_key(records, tokenizer, depends_on)}"

    def made() -> Path:
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _write(folder, len(tokenizer), encode())
        return folder

    return EncodedRows(parallel.first(made))


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


def _write(folder: Path, vocabulary: int, rows: Encoding[LabelledTokens]) -> None:
    """Write rows as they are encoded, by all cores; the folder has its name once all of them are there."""
    kind = np.min_scalar_type(vocabulary)
    staged = folder.with_suffix(f".{os.getpid()}.partial")
    staged.mkdir(parents=True)
    lengths, total = LengthReport(0), 0

    def told() -> Iterator[LabelledTokens]:
        nonlocal lengths
        lengths = yield from rows

    try:
        with ExitStack() as files, _all_cores():
            tokens, learnt, ends = (files.enter_context((staged / name).open("wb")) for name in (TOKENS, LEARNT, ENDS))
            left = told()
            while some := list(islice(left, ROWS_AT_ONCE)):
                tokens.write(np.array([token for row in some for token in row.ids], kind).tobytes())
                labels = np.array([label for row in some for label in row.labels], np.int64)
                learnt.write((labels != NOT_LEARNT).tobytes())
                own = total + np.cumsum([len(row.ids) for row in some], dtype=np.int64)
                ends.write(own.tobytes())
                total = int(own[-1])
        facts = {"kind": kind.name, "lengths": asdict(lengths), "files": sync_and_list(staged)}
        write_json(staged / FACTS, facts)
        publish(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let tokenizers use threads, which they must not do in a process that is forked from later."""
    before = os.environ.get("TOKENIZERS_PARALLELISM", "false")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before
