"""Check a source once for each content of it, and remember what was found."""

from pathlib import Path

from alignkit.contract.kinds import Records
from alignkit.data.records import split_of
from alignkit.data.splits import split_called
from alignkit.sources.audit import Audit, audit
from alignkit.sources.source import RecordOptions, Source
from alignkit.store.notes import note_path, read_note, write_note

VERSION = 7
"""Raised when what an audit looks at changes."""


def check_source(source: Source, records: Records, cache: Path) -> Audit:
    """Audit a source's rows, or give what was found before; bad rows that are skipped go to a file in the cache.

    Raises DataError where rows are bad, or where there are none.
    """
    assert isinstance(source.options, RecordOptions)
    note = _note(source, cache)
    if found_before := known(source, cache):
        return found_before
    cache.mkdir(parents=True, exist_ok=True)
    found = audit(records, source.options, note.with_suffix(".bad.jsonl"))
    if source.splits:
        found.split, found.splits = split_called(split_of(records.parts[0])), list(source.splits)
    write_note(note, found.as_dict())
    return found


def known(source: Source, cache: Path) -> Audit | None:
    """Return what was found in a source before, maybe under another name; None where nobody looked."""
    facts = read_note(_note(source, cache))
    return Audit(**{**facts, "source": source.name}) if facts else None


def _note(source: Source, cache: Path) -> Path:
    return note_path(cache, "audit", VERSION, source.fingerprint, source.kind.__name__, source.said())
