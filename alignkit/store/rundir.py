"""The layout under `runs/`: the only place that knows it.

stages/finetune-f8d922c0/           finished means: the folder has this name
stages/finetune-f8d922c0.partial/   where the stage works
stages/.locks/                      who works on what
sources/                            sources that had to be written or unpacked
cache/                              hashes and the like, safe to delete
rlhf/                               recipe.toml, plan.json, report.html of a recipe's last run
rlhf-compare/                       the same of its last comparison, and comparison.json
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import DiskError
from alignkit.store.durable import publish, sync_and_list, sync_folder, write_json, write_text

ORDER, STARTED, FAILURE, STAGE, LOG = "order.json", "started.json", "failure.json", "stage.json", "log.txt"
ARTIFACT, CHECKPOINTS, SCRATCH = "artifact", "checkpoints", "scratch"
OBSERVERS = "observers.log"
"""In a recipe's folder: what observers have raised."""


def stage_folder(runs: Path, name: str, fingerprint: str) -> Path:
    """Return where a stage lies when it is finished."""
    return runs / "stages" / f"{name}-{fingerprint[:8]}"


def partial_folder(runs: Path, name: str, fingerprint: str) -> Path:
    """Return where a stage works."""
    return runs / "stages" / f"{name}-{fingerprint[:8]}.partial"


def runs_of(partial: Path) -> Path:
    """Return under which `runs/` a stage works."""
    return partial.parent.parent


def finished_folder(partial: Path) -> Path:
    """Return where the stage that works in this folder will lie."""
    return partial.with_name(partial.name.removesuffix(".partial"))


def lock_file(partial: Path) -> Path:
    """Return the file that is locked while somebody works on a stage: beside the stages, to survive the renaming."""
    return partial.parent / ".locks" / f"{finished_folder(partial).name}.lock"


def recipe_folder(runs: Path, recipe: str) -> Path:
    return runs / recipe


def report_path(runs: Path, recipe: str) -> Path:
    return recipe_folder(runs, recipe) / "report.html"


def comparison_path(runs: Path, recipe: str) -> Path:
    return recipe_folder(runs, recipe) / "comparison.json"


def cache_folder(runs: Path) -> Path:
    return runs / "cache"


def file_hashes(runs: Path) -> Path:
    """Return where hashes of files are remembered."""
    return cache_folder(runs) / "hashes.json"


def zygote_log(runs: Path) -> Path:
    return cache_folder(runs) / "zygote.log"


def source_folder(runs: Path, name: str, fingerprint: str) -> Path:
    """Return where a source lies that had to be written or unpacked."""
    return runs / "sources" / f"{name}-{fingerprint[:8]}"


def prepare(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a source's folder, once: others that need it wait, and a crash leaves nothing half-written."""
    from filelock import FileLock  # here, since every `alignkit plan` loads this module

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
