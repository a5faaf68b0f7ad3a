"""Notes: what was found of something, kept in a folder under the hash of all that it depends on.

A note that is damaged or cannot be read is no note: whoever asks looks again.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.store.durable import read_json, write_text


def note_path(folder: Path, subject: str, *depends_on: object) -> Path:
    """Return where the note lies on what a subject (`tokens`, `audit`) is for these JSON values."""
    text = json.dumps(depends_on, sort_keys=True, default=str)
    return folder / f"{subject}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.json"


def read_note(path: Path) -> dict[str, Any]:
    """Return what was noted, empty where nothing was or it is damaged."""
    return read_json(path)


def write_note(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a note, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(facts, indent=2) + "\n")
