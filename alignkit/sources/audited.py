"""Check a source once for each content of it, and remember what was found."""

import hashlib
import json
from pathlib import Path

from alignkit.check.audit import Audit, audit
from alignkit.contract.kinds import Records
from alignkit.contract.records import split_of
from alignkit.contract.splits import split_called
from alignkit.plan.source import RecordOptions, Source

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
    staged = note.with_suffix(".partial")
    staged.write_text(json.dumps(found.as_dict(), indent=2) + "\n", "utf-8")
    staged.replace(note)
    return found


def known(source: Source, cache: Path) -> Audit | None:
    """Give what was found in a source before, maybe under another name; None where nobody looked."""
    note = _note(source, cache)
    return Audit(**{**json.loads(note.read_text("utf-8")), "source": source.name}) if note.is_file() else None


def _note(source: Source, cache: Path) -> Path:
    said = json.dumps([VERSION, source.fingerprint, source.kind.__name__, source.said()], sort_keys=True)
    return cache / f"audit-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"
