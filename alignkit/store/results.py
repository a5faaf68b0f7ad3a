"""What finished stages made: found and verified, and how a stage becomes finished."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.contract.events import Result, result_of
from alignkit.contract.kinds import Artifact, kinds_by_name
from alignkit.errors import StageError
from alignkit.store.durable import Listing, damage, hash_file, publish, read_sealed, sync_and_list, write_sealed
from alignkit.store.rundir import (
    ARTIFACT,
    CHECKPOINTS,
    FAILURE,
    FIRST,
    NODES,
    ORDER,
    SCRATCH,
    STAGE,
    STARTED,
    finished_folder,
    stage_folder,
    stages_folder,
)

FORMAT = 1
"""Raised when `stage.json` changes its form."""


@dataclass(frozen=True)
class Finished:
    """A finished stage, as its `stage.json` tells it."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the stage."""
        return self.folder.name.rpartition("-")[0]

    @property
    def method(self) -> str:
        return str(self.facts["method"])

    @property
    def made(self) -> str:
        """The kind of its artifact."""
        return str(self.facts["artifact"]["kind"])

    @property
    def seconds(self) -> float:
        return float(self.facts["seconds"])

    @property
    def results(self) -> tuple[Result, ...]:
        return tuple(map(result_of, self.facts["results"]))

    @property
    def content(self) -> str:
        """A hash over all files of the artifact: equal where a rerun made the very same."""
        return str(self.facts["artifact"]["content"])

    @property
    def size(self) -> int:
        """Bytes of the artifact."""
        return sum(file["bytes"] for file in self.facts["artifact"]["files"].values())

    @property
    def made_from(self) -> Mapping[str, str]:
        """Stage -> the content of its artifact, for each stage that it started from."""
        return dict(self.facts["made_from"])

    @property
    def artifact(self) -> Artifact:
        """The typed artifact. Raises StageError where the plugin that defines its kind is not loaded."""
        kind = kinds_by_name().get(self.made)
        if kind is None:
            problem = f"it made a {self.made}, and no plugin that is loaded defines this kind"
            raise StageError(problem, str(self.folder), "install the plugin, or load its file with -p")
        return kind.model_validate(_placed(self.facts["artifact"]["facts"], self.folder))

    def check(self, hash_of: Callable[[Path], str] | None = None) -> None:
        """Raise StageError where a file of the artifact is gone or has another size, or, with `hash_of`, another
        content than was written."""
        if wrong := damage(self.folder / ARTIFACT, self.facts["artifact"]["files"], hash_of):
            problem = f"the finished stage is damaged: {wrong}"
            raise StageError(problem, str(self.folder), f"put it back, or run again with --again {self.name}")


def find_finished(runs: Path, name: str, fingerprint: str) -> Finished | None:
    """Find a finished stage; None where there is none.

    Raises StageError where the folder belongs to another fingerprint, its `stage.json` is damaged, or an artifact's
    file is gone or has another size.
    """
    folder = stage_folder(runs, name, fingerprint)
    if not folder.is_dir():
        return None
    found = read_finished(folder)
    if found.facts["fingerprint"] != fingerprint:
        raise StageError(
            f"this folder holds another stage, whose fingerprint {found.facts['fingerprint']} begins alike",
            str(folder),
            "move it away",
        )
    found.check()
    return found


def finished_in(runs: Path) -> Iterator[Path]:
    """Yield the folders of all finished stages, by name."""
    for folder in sorted(stages_folder(runs).glob("*-*")):
        if folder.is_dir() and not folder.suffix:
            yield folder


def read_finished(folder: Path) -> Finished:
    """Return what the `stage.json` of a finished stage tells. Raises StageError where it cannot be read."""
    try:
        facts = read_sealed(folder / STAGE)
    except (OSError, ValueError) as error:
        name = folder.name.rpartition("-")[0]
        remedy = f"put it back, or run again with --again {name}"
        raise StageError(f"{STAGE} of the finished stage cannot be read ({error})", str(folder), remedy) from error
    if facts.get("format") != FORMAT:
        problem = f"{STAGE} has format {facts.get('format')}, and this alignkit reads format {FORMAT}"
        raise StageError(problem, str(folder), "move the folder away, or use the version that wrote it")
    return Finished(folder, facts)


def latest(results: Iterable[Result]) -> tuple[Result, ...]:
    """Keep the last of the results of each name, in the order of first mention."""
    return tuple({result.name: result for result in results}.values())


def told_facts(folder: Path) -> dict[str, Any]:
    """Return what is in a stage's `stage.json`, for people; empty where it is not there (yet) or damaged."""
    try:
        return read_sealed(folder / STAGE)
    except (OSError, ValueError):
        return {}


def finish(partial: Path, artifact: Artifact, facts: Mapping[str, Any]) -> Path:
    """Commit a stage: list and sync its artifact, write `stage.json` last, and rename the folder."""
    files = sync_and_list(partial / ARTIFACT)
    made = {
        "kind": type(artifact).__name__,
        "facts": _portable(artifact.model_dump(mode="json"), partial),
        "files": files,
        "content": _content(files),
    }
    write_sealed(partial / STAGE, {"format": FORMAT, **facts, "artifact": made})
    return _settle(partial)


def finish_complete(partial: Path) -> bool:
    """Rename a stage that was complete when its process died, and say whether it was."""
    facts = told_facts(partial)
    complete = bool(facts) and not damage(partial / ARTIFACT, facts["artifact"]["files"], hash_file)
    if complete:
        _settle(partial)
    return complete


def _settle(partial: Path) -> Path:
    """Clear a complete stage of its scraps, and rename it; one that it replaces is removed last."""
    for name in (CHECKPOINTS, SCRATCH, NODES):
        shutil.rmtree(partial / name, ignore_errors=True)
    for name in (ORDER, STARTED, FAILURE, FIRST):
        (partial / name).unlink(missing_ok=True)
    final, old = finished_folder(partial), partial.with_suffix(".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    publish(partial, final)
    shutil.rmtree(old, ignore_errors=True)
    return final


def _content(files: Listing) -> str:
    lines = [f"{facts['sha256']} {name}" for name, facts in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _portable(value: Any, folder: Path) -> Any:
    """Write paths inside the folder as {"inside": relative}, so that it can be renamed and moved."""
    if isinstance(value, dict):
        return {key: _portable(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(f"{folder}{os.sep}"):
        return {"inside": str(Path(value).relative_to(folder))}
    return value


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, dict) and value.keys() == {"inside"}:
        return folder / value["inside"]
    if isinstance(value, dict):
        return {key: _placed(item, folder) for key, item in value.items()}
    return [_placed(item, folder) for item in value] if isinstance(value, list) else value
