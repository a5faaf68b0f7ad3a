"""Files that survive a crash: written whole, synced, and only then given their name."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Listing = dict[str, dict[str, Any]]
"""Relative path -> {"bytes": n, "sha256": hex}."""


def write_text(path: Path, text: str) -> None:
    """Write a file so that at any moment either the old or the new content is there, also after a power cut."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with staged.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
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
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def publish(staged: Path, final: Path) -> None:
    """Give a synced folder its name: after this it counts."""
    staged.rename(final)
    sync_folder(final.parent)


def damage(folder: Path, listing: Listing, *, content: bool) -> str:
    """Say what is wrong with the first listed file that is not as it was written; empty where all are.

    Sizes are always compared, hashes only if `content` is asked for: that reads everything.
    """
    for name, facts in listing.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
        if content and _hash(path) != facts["sha256"]:
            return f"{name} is not as it was written"
    return ""


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
