"""The layout under `runs/`: the only place that knows it.

stages/finetune-f8d922c0/           finished means: the folder has this name
stages/finetune-f8d922c0.partial/   where the stage works
stages/.locks/                      who works on what: a lock, and a lease with its number
sources/                            sources that had to be written or unpacked, and their locks
index.html                          all runs with links to their reports
cache/                              hashes and the like, safe to delete
rlhf/2026-11-27T21-15-21-3fa9/      a run of a recipe: recipe.toml, plan.json, run.json, data.json, events.jsonl,
                                    report.html
rlhf/latest                         a link to the one that began last
rlhf-compare/2026-...               a comparison: the same, and comparison.json
                                    expected.json, where figures were expected of what was run
"""

import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignkit.errors import DiskError
from alignkit.store.durable import publish, sync_and_list, sync_folder, write_json, write_text
from alignkit.store.leases import once

ORDER, STARTED, FAILURE, STAGE, LOG = "order.json", "started.json", "failure.json", "stage.json", "log.txt"
FIRST = "first.json"
"""In a stage's folder: the attempt that the first of several processes works on, before it has done anything."""
ARTIFACT, CHECKPOINTS, SCRATCH, NODES = "artifact", "checkpoints", "scratch", "nodes"
SNAPSHOTS = "snapshots"
"""In an artifact: a folder for each policy on the way to the one that the artifact is, by its step."""
RECIPE, PLAN, RUN, DATA = "recipe.toml", "plan.json", "run.json", "data.json"
REPORT, COMPARISON, EXPECTED = "report.html", "comparison.json", "expected.json"
EVENTS, OBSERVERS = "events.jsonl", "observers.log"
"""In a run's folder: what it has told, and what observers have raised."""
SHORT = 8
"""Digits of a fingerprint that are shown, as in a stage's folder."""
TRACKERS = "trackers"
"""In a run's folder: what trackers write, and how far they are."""
LATEST = "latest"
RESERVED = ("stages", "sources", "cache")
"""Folders under `runs/` beside those of the recipes, so no recipe can have these names."""
TIMED = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-[0-9a-f]{4}")
"""The name of a run's folder: when it began (UTC), and four digits that set apart what began in the same second."""


def stages_folder(runs: Path) -> Path:
    return runs / "stages"


def sources_folder(runs: Path) -> Path:
    return runs / "sources"


def stage_folder(runs: Path, name: str, fingerprint: str) -> Path:
    """Return where a stage lies when it is finished."""
    return stages_folder(runs) / f"{name}-{fingerprint[:SHORT]}"


def partial_folder(runs: Path, name: str, fingerprint: str) -> Path:
    """Return where a stage works."""
    return stages_folder(runs) / f"{name}-{fingerprint[:SHORT]}.partial"


def runs_of(partial: Path) -> Path:
    """Return under which `runs/` a stage works."""
    return partial.parent.parent


def finished_folder(partial: Path) -> Path:
    """Return where the stage that works in this folder will lie."""
    return partial.with_name(partial.name.removesuffix(".partial"))


def snapshot_folder(artifact: Path, step: int) -> Path:
    """Return where the policy lies, in what a stage makes, that was kept after a step."""
    return artifact / SNAPSHOTS / str(step)


def snapshots_in(artifact: Path) -> dict[int, Path]:
    """Return what was kept on the way, by step, in that order."""
    found = {int(path.name): path for path in (artifact / SNAPSHOTS).glob("*") if path.name.isdecimal()}
    return dict(sorted(found.items()))


def lock_file(partial: Path) -> Path:
    """Return the file that is locked while somebody works on a stage: beside the stages, to survive the renaming."""
    return partial.parent / ".locks" / f"{finished_folder(partial).name}.lock"


def lock_of(folder: Path) -> Path | None:
    """Return the file that is locked while somebody works on the folder of a stage or of a source; None for others."""
    if folder.parent.name == "stages":
        return lock_file(folder.with_suffix(".partial"))
    return source_lock(folder) if folder.parent.name == "sources" else None


def source_lock(folder: Path) -> Path:
    """Return the file that is locked while somebody writes a source."""
    return folder.parent / ".locks" / f"{folder.stem}.lock"


def scrapped(folder: Path) -> Path:
    """Return the name under which a folder no longer counts as whole, and is cleared away by whoever comes next."""
    return folder.with_suffix(".replaced" if folder.parent.name == "stages" else ".partial")


def recipe_folder(runs: Path, recipe: str) -> Path:
    return runs / recipe


def tracker_folder(run: Path, tracker: str) -> Path:
    """Return where a tracker of a run writes."""
    return run / TRACKERS / tracker


def tracked_path(run: Path, tracker: str) -> Path:
    """Return where is kept what a tracker of a run has taken."""
    return run / TRACKERS / f"{tracker}.json"


def report_path(run: Path) -> Path:
    """Return where the report of a run lies."""
    return run / REPORT


def comparison_path(run: Path) -> Path:
    """Return where a run keeps what it has compared."""
    return run / COMPARISON


def expected_path(run: Path) -> Path:
    """Return where a run keeps which figures were expected of it, and what they are."""
    return run / EXPECTED


def run_folders(recipe: Path) -> list[Path]:
    """List the folders of a recipe's runs, the first first. Versions before kept its last run in the recipe's own."""
    timed = sorted(path for path in recipe.iterdir() if TIMED.fullmatch(path.name) and (path / RUN).is_file())
    return [recipe, *timed] if (recipe / PLAN).is_file() else timed


def recipe_folders(runs: Path) -> Iterator[Path]:
    """Yield the folders in which runs of recipes lie, by name."""
    for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
        if folder.is_dir() and folder.name not in RESERVED:
            yield folder


def runs_around(run: Path) -> Path:
    """Return under which `runs/` a run is kept."""
    return run.parent.parent if TIMED.fullmatch(run.name) else run.parent


def index_path(runs: Path) -> Path:
    """Return where the page lies that links all reports."""
    return runs / "index.html"


def cache_folder(runs: Path) -> Path:
    return runs / "cache"


def smoke_folder(runs: Path) -> Path:
    """Return the folder of results of a short trial."""
    return cache_folder(runs) / "smoke"


def file_hashes(runs: Path) -> Path:
    """Return where hashes of files are remembered."""
    return cache_folder(runs) / "hashes.json"


def zygote_log(runs: Path) -> Path:
    return cache_folder(runs) / "zygote.log"


def launch_folders(runs: Path) -> Path:
    """Return where launchers and nodes of stages leave each other files."""
    return cache_folder(runs) / "launch"


def source_folder(runs: Path, name: str, fingerprint: str) -> Path:
    """Return where a source lies that had to be written or unpacked."""
    return sources_folder(runs) / f"{name}-{fingerprint[:SHORT]}"


def prepare(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a source's folder, once: others that need it wait, and a crash leaves nothing half-written."""
    staged = folder.with_suffix(".partial")

    def make() -> None:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        write(staged)
        sync_and_list(staged)
        publish(staged, folder)

    once(source_lock(folder), folder.is_dir, make)
    return folder


def new_run(runs: Path, recipe: str, text: str, plan: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Make the folder of a run that begins, with what is known of it. Raises DiskError where that cannot be written."""
    try:
        folder = _new_folder(recipe_folder(runs, recipe))
        write_json(folder / RUN, facts)
        write_text(folder / RECIPE, text)
        write_json(folder / PLAN, plan)
        sync_folder(folder.parent)
        sync_folder(runs)
    except OSError as error:
        raise DiskError(
            f"the folder for runs cannot be written to ({error.strerror})", str(runs), "choose another with --runs"
        ) from error
    name_latest(folder)
    return folder


def _new_folder(recipe: Path) -> Path:
    """Make a folder that no other run has, and whose name comes after those of earlier runs of the same second."""
    recipe.mkdir(parents=True, exist_ok=True)
    while True:
        second = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
        taken = [int(path.name[-4:], 16) for path in recipe.glob(f"{second}-????") if TIMED.fullmatch(path.name)]
        number = max(taken) + 1 if taken else secrets.randbelow(0x8000)
        folder = recipe / f"{second}-{number:04x}"
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def name_latest(folder: Path) -> None:
    """Let `latest` name this run, at once; where links cannot be made there is none."""
    staged = folder.with_name(f".{LATEST}-{folder.name}")
    with suppress(OSError):
        staged.symlink_to(folder.name)
        staged.replace(folder.with_name(LATEST))
    with suppress(OSError):
        staged.unlink(missing_ok=True)


def latest_run(recipe: Path) -> Path | None:
    """Return the folder of a recipe's run that began last; None where it has none."""
    link = recipe / LATEST
    if link.is_symlink() and (link / RUN).is_file():
        return recipe / link.readlink()
    return next(reversed(run_folders(recipe)), None) if recipe.is_dir() else None


def remove_run(folder: Path) -> None:
    """Remove the folder of a run; of an earlier version's, which is its recipe's own, its files."""
    recipe = folder.parent
    if TIMED.fullmatch(folder.name):
        shutil.rmtree(folder)
    else:
        recipe = folder
        for name in (RECIPE, PLAN, REPORT, COMPARISON, OBSERVERS):
            (folder / name).unlink(missing_ok=True)
    left = run_folders(recipe)
    if left and TIMED.fullmatch(left[-1].name):
        name_latest(left[-1])
    else:
        (recipe / LATEST).unlink(missing_ok=True)
    with suppress(OSError):  # it holds other runs
        recipe.rmdir()
