"""Files that survive a crash: written whole, synced, and only then given their name."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

Listing = dict[str, dict[str, Any]]
"""Relative path -> {"bytes": n, "sha256": hex}."""

SEAL = "seal"
"""The key of a sealed file under which its own hash stands; files of earlier versions have none."""


def write_text(path: Path, text: str) -> None:
    """Write a file so that at any moment either the old or the new content is there, also after a power cut."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with staged.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError:
        with suppress(OSError):
            staged.unlink()
        raise
    sync_folder(path.parent)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a JSON object as `write_text` does."""
    write_text(path, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where it is not there (yet) or is no JSON."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return facts


def write_sealed(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a JSON object with a hash of itself, by which `read_sealed` tells whether it is as it was written."""
    write_json(path, {**facts, SEAL: _seal(facts)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what `write_sealed` wrote. Raises OSError, or ValueError where it is not as it was written."""
    facts = json.loads(path.read_text("utf-8"))
    if not isinstance(facts, dict):
        raise ValueError("it is no JSON object")
    seal = facts.pop(SEAL, None)
    if seal not in (None, _seal(facts)):
        raise ValueError("it is not as it was written")
    return facts


def _seal(facts: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(facts)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_and_list(folder: Path) -> Listing:
    """Make all files of a folder durable, and list them with size and hash."""
    listing = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            listing[path.relative_to(folder).as_posix()] = _synced(path)
    sync_folder(folder)
    return listing


def _synced(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def publish(staged: Path, final: Path) -> None:
    """Give a synced folder its name: after this it counts."""
    staged.rename(final)
    sync_folder(final.parent)


def damage(folder: Path, listing: Listing, hash_of: Callable[[Path], str] | None = None) -> str:
    """Return what is wrong with the first listed file that is not as it was written; empty where all are.

    Sizes are always compared, contents only with `hash_of`, such as `hash_file`, which reads everything.
    """
    for name, facts in listing.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
        if hash_of and hash_of(path) != facts["sha256"]:
            return f"{name} is not as it was written"
    return ""


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
