"""The layout under `runs/`: the only place that knows it.

stages/finetune-f8d922c0/           finished means: the folder has this name
stages/finetune-f8d922c0.partial/   where the stage works
stages/.locks/                      who works on what
sources/                            sources that had to be written or unpacked
cache/                              hashes and the like, safe to delete
rlhf/                               recipe.toml, plan.json, report.html of a recipe's last run
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alignkit.contract.events import Figure
from alignkit.contract.kinds import Artifact, kinds_by_name
from alignkit.errors import DiskError, LockedError, StageError
from alignkit.run.durable import Listing, damage, publish, sync_and_list, sync_folder, write_json, write_text

FORMAT = 1
"""Raised when `stage.json` changes its form."""

ORDER, STARTED, FAILURE, STAGE, LOG = "order.json", "started.json", "failure.json", "stage.json", "log.txt"
ARTIFACT, CHECKPOINTS, SCRATCH = "artifact", "checkpoints", "scratch"

PATIENCE = 0.3
"""Seconds to wait for a lock: another runner's glance at it takes less, a stage more."""


def stage_folder(runs: Path, name: str, fingerprint: str) -> Path:
    """Say where a stage lies when it is finished."""
    return runs / "stages" / f"{name}-{fingerprint[:8]}"


def partial_folder(runs: Path, name: str, fingerprint: str) -> Path:
    """Say where a stage works."""
    return runs / "stages" / f"{name}-{fingerprint[:8]}.partial"


def finished_folder(partial: Path) -> Path:
    """Say where the stage that works in this folder will lie."""
    return partial.with_name(partial.name.removesuffix(".partial"))


def recipe_folder(runs: Path, recipe: str) -> Path:
    return runs / recipe


def report_path(runs: Path, recipe: str) -> Path:
    return recipe_folder(runs, recipe) / "report.html"


def cache_folder(runs: Path) -> Path:
    return runs / "cache"


def zygote_log(runs: Path) -> Path:
    return cache_folder(runs) / "zygote.log"


@dataclass(frozen=True)
class Finished:
    """A finished stage, as its `stage.json` tells it."""

    folder: Path
    facts: Mapping[str, Any]

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
    def figures(self) -> tuple[Figure, ...]:
        return tuple(Figure(**figure) for figure in self.facts["figures"])

    @property
    def content(self) -> str:
        """A hash over all files of the artifact: equal where a rerun made the very same."""
        return str(self.facts["artifact"]["content"])

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


def finished(runs: Path, name: str, fingerprint: str, *, content: bool = False) -> Finished | None:
    """Find a finished stage; None where there is none.

    Raises StageError where the folder belongs to another fingerprint, or an artifact's file is gone or has another
    size (or another hash, if `content` is asked for).
    """
    folder = stage_folder(runs, name, fingerprint)
    if not folder.is_dir():
        return None
    found = Finished(folder, _stage_facts(folder))
    if found.facts["fingerprint"] != fingerprint:
        raise StageError(
            f"this folder holds another stage, whose fingerprint {found.facts['fingerprint']} begins alike",
            str(folder),
            "move it away",
        )
    if wrong := damage(folder / ARTIFACT, found.facts["artifact"]["files"], content=content):
        raise StageError(
            f"the finished stage is damaged: {wrong}", str(folder), f"put it back, or run again with --again {name}"
        )
    return found


def _stage_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / STAGE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{STAGE} cannot be read ({error})", str(folder), "move the folder away") from error
    if facts.get("format") != FORMAT:
        problem = f"{STAGE} has format {facts.get('format')}, and this alignkit reads format {FORMAT}"
        raise StageError(problem, str(folder), "move the folder away, or use the version that wrote it")
    return facts


def all_finished(runs: Path) -> list[Finished]:
    """List the finished stages of all recipes, by name."""
    folders = sorted((runs / "stages").glob("*")) if (runs / "stages").is_dir() else []
    return [Finished(f, _stage_facts(f)) for f in folders if "." not in f.name and (f / STAGE).is_file()]


def finish(partial: Path, artifact: Artifact, facts: Mapping[str, Any]) -> Path:
    """Commit a stage: list and sync its artifact, write `stage.json` last, and rename the folder."""
    files = sync_and_list(partial / ARTIFACT)
    made = {
        "kind": type(artifact).__name__,
        "facts": _portable(artifact.model_dump(mode="json"), partial),
        "files": files,
        "content": _content(files),
    }
    write_json(partial / STAGE, {"format": FORMAT, **facts, "artifact": made})
    return _settle(partial)


def finish_complete(partial: Path) -> bool:
    """Rename a stage that was complete when its process died, and say whether it was."""
    facts = read_json(partial / STAGE)
    complete = bool(facts) and not damage(partial / ARTIFACT, facts["artifact"]["files"], content=True)
    if complete:
        _settle(partial)
    return complete


def _settle(partial: Path) -> Path:
    """Clear a complete stage of its scraps, and rename it; one that it replaces is removed last."""
    for name in (CHECKPOINTS, SCRATCH):
        shutil.rmtree(partial / name, ignore_errors=True)
    for name in (ORDER, STARTED, FAILURE):
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


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the small files of a working stage; empty where it is not there (yet)."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return facts


@contextmanager
def hold(partial: Path) -> Iterator[None]:
    """Hold a stage's lock: its folder belongs to nobody else meanwhile.

    The lock lies beside the stages, so that it survives the renaming; the system frees it when its holder dies.
    Raises LockedError naming the holder.
    """
    with _locked(partial):
        write_json(_holder(partial), {"pid": os.getpid(), "host": socket.gethostname()})
        yield


def check_free(partial: Path) -> None:
    """Raise LockedError where somebody works on a stage at the moment."""
    with _locked(partial):
        pass


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    (partial.parent / ".locks").mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial.parent / ".locks" / f"{finished_folder(partial).name}.lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise busy(partial) from error
    try:
        yield
    finally:
        lock.release()


def _holder(partial: Path) -> Path:
    return partial.parent / ".locks" / f"{finished_folder(partial).name}.json"


def busy(partial: Path) -> LockedError:
    """Say who works on a stage."""
    holder = read_json(_holder(partial))
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return LockedError(f"{who} is working on it", str(finished_folder(partial)), "wait for it, or stop it")


def source_folder(runs: Path, name: str, fingerprint: str) -> Path:
    """Say where a source lies that had to be written or unpacked."""
    return runs / "sources" / f"{name}-{fingerprint[:8]}"


def prepare(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a source's folder, once: others that need it wait, and a crash leaves nothing half-written."""
    if folder.is_dir():
        return folder
    staged = folder.with_suffix(".partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
            write(staged)
            sync_and_list(staged)
            publish(staged, folder)
    return folder


def open_run(runs: Path, recipe: str, text: str, plan: Mapping[str, Any]) -> Path:
    """Write down what is about to run. Raises DiskError where `runs` cannot be written to."""
    folder = recipe_folder(runs, recipe)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "recipe.toml", text)
        write_json(folder / "plan.json", plan)
        sync_folder(runs)
    except OSError as error:
        raise DiskError(
            f"the folder for runs cannot be written to ({error.strerror})", str(runs), "choose another with --runs"
        ) from error
    return folder
