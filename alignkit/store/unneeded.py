"""What no kept run needs: found, and removed so that what is finished stays finished and what was stopped can go on.

A kept run needs the finished stages and the sources that its plan names, and whatever their artifacts point to. A stage
that is not finished is needed by a run that would go on with it. What somebody works on stays.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from alignkit.data.adapter_folder import base_folder, is_adapter
from alignkit.errors import StageError
from alignkit.store import rundir
from alignkit.store.heartbeat import Heartbeat
from alignkit.store.leases import held, is_free
from alignkit.store.runs import KeptRun, KeptStage, kept_runs

FOLDER = re.compile(r"[a-z].*-[0-9a-f]{8}(\.partial|\.replaced)?")
"""What a folder of a stage or of a source is called."""
DERIVED = {
    "rows-*": "rows as tokens",
    "preflight-*": "what a plan was checked for",
    "smoke": "a trial of all stages",
    "launch": "how stages were started",
}
"""Entries of the cache that are large or many, and made again where they are missing."""


@dataclass(frozen=True)
class Unneeded:
    """A folder that no kept run needs."""

    path: Path
    reason: str
    size: int
    """In bytes."""


def unneeded(runs: Path) -> list[Unneeded]:
    """Return what no kept run needs. Raises StageError where what a run needs cannot be told."""
    runs = runs.resolve()
    kept = kept_runs(runs)
    needed = _needed(kept, runs)
    places = [path for place in (rundir.stages_folder(runs), rundir.sources_folder(runs)) for path in _folders(place)]
    found = [Unneeded(path, _reason(path), _size(path)) for path in places if path not in needed and _is_free(path)]
    gone = {one.path for one in found}
    partials = [path for path in places if path.suffix == ".partial" and path not in gone]
    if any(run.state == "running" for run in (*kept, *kept_runs(rundir.smoke_folder(runs)))) or partials:
        return found
    cache = rundir.cache_folder(runs)
    derived = [(path, reason) for name, reason in DERIVED.items() for path in sorted(cache.glob(name))]
    return [*found, *(Unneeded(path, reason, _size(path)) for path, reason in derived if path.is_dir())]


def remove(found: Iterable[Unneeded], runs: Path) -> Iterator[Unneeded]:
    """Remove these folders, and yield each that is gone: what is needed or worked on by now stays."""
    still = {one.path for one in unneeded(runs)}
    for one in sorted(found, key=lambda one: one.path, reverse=True):  # what a crash left before what lies beside it
        with _held(one.path) as free:
            if free and one.path in still and one.path.is_dir():
                _delete(one.path)
                yield one


def _needed(kept: Iterable[KeptRun], runs: Path) -> set[Path]:
    needed: set[Path] = set()
    for run in kept:
        if (run.folder / rundir.PLAN).is_file() and not run.plan:
            problem = f"{rundir.PLAN} cannot be read, so it is not known what the run needs"
            raise StageError(problem, str(run.folder), f"put it back, or remove the run: alignkit runs rm {run.id}")
        for stage in run.stages:
            needed |= _needed_of(stage, goes_on=run.state != "finished")
        needed |= _needed_sources(run, runs)
    left = list(needed)
    while left:
        if (base := _base(left.pop(), runs)) and base not in needed:
            needed.add(base)
            left.append(base)
    return needed


def _needed_of(stage: KeptStage, *, goes_on: bool) -> set[Path]:
    """Return the folders of a stage that its run needs; a crash may have left a whole one under another name."""
    if not stage.wanted or stage.fingerprint is None:
        return set()
    finished = rundir.stage_folder(stage.runs, stage.name, stage.fingerprint)
    partial = rundir.partial_folder(stage.runs, stage.name, stage.fingerprint)
    if finished.is_dir():
        return {finished, partial} if goes_on else {finished}
    return {partial, partial.with_suffix(".replaced")}


def _needed_sources(run: KeptRun, runs: Path) -> set[Path]:
    """Return the folders of a run's sources, and the stages that the recipe takes by their path."""
    written = {rundir.source_folder(runs, one.name, one.fingerprint) for one in run.sources if one.fingerprint}
    files = [Path(file) for one in run.plan.get("sources", {}).values() for file in one["files"]]
    return written | {folder for file in files if (folder := _owner(file.resolve(), runs))}


def _base(folder: Path, runs: Path) -> Path | None:
    """Return the stage or the source whose weights an adapter belongs to."""
    artifact = folder / rundir.ARTIFACT
    with suppress(ValueError, OSError):
        if is_adapter(artifact) and (base := base_folder(artifact)):
            return _owner(base, runs)
    return None


def _owner(path: Path, runs: Path) -> Path | None:
    """Return the folder of the stage or the source that holds a path."""
    for place in (rundir.stages_folder(runs), rundir.sources_folder(runs)):
        if path != place and path.is_relative_to(place):
            return place / path.relative_to(place).parts[0]
    return None


def _folders(place: Path) -> list[Path]:
    found = place.iterdir() if place.is_dir() else ()
    return sorted(path for path in found if FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink())


def _reason(path: Path) -> str:
    if path.suffix:
        return "left by a run that is not kept" if path.suffix == ".partial" else "left by a crash"
    return "no kept run names it"


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _is_free(path: Path) -> bool:
    """Return whether nobody works on a folder; where there is no lock, nobody has."""
    lock = rundir.lock_of(path)
    return lock is None or not lock.exists() or is_free(lock, Heartbeat(), patience=0)


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Hold a folder's lock, and say whether nobody else does."""
    lock = rundir.lock_of(path)
    if lock is None:
        yield True
        return
    with held(lock, Heartbeat(), patience=0) as hold:
        yield hold is not None


def _delete(path: Path) -> None:
    """Remove a folder; one that counts as whole under its name loses that first, in case this is interrupted."""
    if rundir.lock_of(path) and not path.suffix:
        shutil.rmtree(rundir.scrapped(path), ignore_errors=True)
        path = path.rename(rundir.scrapped(path))
    shutil.rmtree(path)
