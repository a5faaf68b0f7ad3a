"""Checkpoints: staged, hashed, renamed into place; only then older ones go, and only verified ones are used."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.store.durable import damage, hash_file, publish, read_sealed, sync_and_list, write_sealed

KEPT = 2
"""Checkpoints kept: where the newest turns out damaged, the one before it serves."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint; `facts` are what the stage noted beside it."""

    folder: Path
    step: int
    facts: Mapping[str, Any]


def staged_folder(folder: Path, step: int) -> Path:
    """Return where a checkpoint is filled before it is committed."""
    return folder / f"step-{step}.partial"


def begin(staged: Path) -> None:
    """Make a staged folder, without what an interrupted attempt has left in it."""
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)


def commit(staged: Path, facts: Mapping[str, Any]) -> None:
    """Make a staged folder that was filled the newest checkpoint."""
    folder, step = staged.parent, _step(staged)
    (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle that can hold a token, and that nobody reads
    listing = sync_and_list(staged)
    write_sealed(staged / MANIFEST, {"step": step, "files": listing, **facts})
    final = folder / f"step-{step}"
    shutil.rmtree(final, ignore_errors=True)
    publish(staged, final)
    for old in _committed(folder)[KEPT:]:
        shutil.rmtree(old)


def newest(folder: Path, damaged: Callable[[str, str], None], *, read: bool = True) -> Checkpoint | None:
    """Return the newest checkpoint whose files are all as they were written.

    `damaged` is told the name of each newer one, and what is wrong with it. Without `read` files are known by their
    sizes alone: another process has read them.
    """
    for path in _committed(folder):
        try:
            facts = read_sealed(path / MANIFEST)
            wrong = damage(path, facts["files"], hash_file if read else None)
        except (OSError, ValueError, KeyError):
            wrong = f"{MANIFEST} cannot be read"
        if not wrong:
            return Checkpoint(path, facts["step"], facts)
        damaged(path.name, wrong)
    return None


def discard_others(folder: Path, kept: Checkpoint | None) -> None:
    """Remove what a crash left half-written, and damaged checkpoints."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if kept is None or _step(path) > kept.step or path.suffix == ".partial":
            shutil.rmtree(path)


def _committed(folder: Path) -> list[Path]:
    """List committed checkpoints, the newest first."""
    found = (path for path in folder.glob("step-*") if path.suffix != ".partial")
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def steps(folder: Path) -> Iterator[int]:
    """Return the steps of committed checkpoints, the newest first, without verifying them."""
    return map(_step, _committed(folder))
