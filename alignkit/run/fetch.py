"""Get sources onto this machine, and check their rows, before any model is loaded."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from alignkit.check.audit import Audit
from alignkit.check.sources import check_source
from alignkit.contract.kinds import Artifact, Records
from alignkit.errors import AlignkitError, DataError, Problem
from alignkit.plan.lock import lock_path, read_lock, write_lock
from alignkit.plan.plan import Plan
from alignkit.plan.source import Source
from alignkit.run import rundir
from alignkit.run.failures import one_line
from alignkit.run.order import Preparation

SIDES: tuple[Literal["train", "held_out"], ...] = ("train", "held_out")
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""What is fetched of a model: no code, and weights that are pickled only where it has no others."""
PICKLED = "pytorch_model*"


@dataclass(frozen=True)
class Fetched:
    """A source that a stage can start from, once `preparation` (if any) is done by the stage's worker."""

    artifact: Artifact
    preparation: Preparation | None = None
    remarks: tuple[Problem, ...] = ()
    """What had better be known of its rows."""


def fetch(sources: Iterable[Source], runs: Path, offline: bool) -> dict[str, Fetched]:
    """Get sources, each to a folder of its own, and check all rows of records.

    What was fetched and checked before is not looked at again. Raises DataError, for all sources at once.
    """
    fetched: dict[str, Fetched] = {}
    errors: list[AlignkitError] = []
    for source in sources:
        try:
            one = _fetch(source, runs, offline)
            if isinstance(one.artifact, Records):
                found = check_source(source, one.artifact, rundir.cache_folder(runs))
                one = replace(one, remarks=tuple(found.remarks()))
            fetched[source.name] = one
        except AlignkitError as error:
            errors.append(error)
    if errors:
        raise DataError.of([problem for error in errors for problem in error.problems])
    return fetched


def audits(sources: Iterable[Source], runs: Path, offline: bool) -> tuple[list[Audit], list[AlignkitError]]:
    """Get and check sources of records, one by one; give what is in them, and what is wrong with the others."""
    found: list[Audit] = []
    errors: list[AlignkitError] = []
    for source in sources:
        try:
            records = _fetch(source, runs, offline).artifact
            assert isinstance(records, Records)
            found.append(check_source(source, records, rundir.cache_folder(runs)))
        except AlignkitError as error:
            errors.append(error)
    return found, errors


def _fetch(source: Source, runs: Path, offline: bool) -> Fetched:
    if source.how == "hub":
        return Fetched(source.artifact(_snapshot(source, source.commit, offline)))
    if not source.fetched:
        return Fetched(source.artifact())
    assert source.fingerprint
    folder = rundir.source_folder(runs, source.name, source.fingerprint).resolve()
    artifact = source.artifact(folder)
    if isinstance(artifact, Records):
        rundir.prepare(folder, lambda staged: _write_reviews(source, staged))
        return Fetched(artifact)
    file = source.files[0] if source.how == "gguf" else None
    return Fetched(artifact, Preparation(file=file, folder=folder))


def _write_reviews(source: Source, folder: Path) -> None:
    from alignkit.demo import reviews

    kind = cast("reviews.Kind", source.word)
    for side in SIDES:
        with (folder / f"{source.word}-{side}.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in reviews.rows(kind, side))


def pin(plan: Plan, runs: Path, offline: bool) -> None:
    """Find out the commits of the hub sources that are needed and have none yet, and write them into the lock file."""
    path = lock_path(plan.recipe.path, runs)
    used = {name for stage in plan.stages if stage.wanted for several in stage.inputs.values() for name in several}
    unknown = [plan.sources[name] for name in plan.sources if name in used and plan.sources[name].fingerprint is None]
    if unknown:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lock(path, read_lock(path) | {source.address: _newest(source, offline) for source in unknown})


def _newest(source: Source, offline: bool) -> str:
    """Fetch what the hub has now (offline: what the local cache has), and give its commit."""
    return _snapshot(source, source.address.partition("@")[2] or "main", offline).name


def _snapshot(source: Source, revision: str, offline: bool) -> Path:
    """Give the folder of a hub repository at a commit, from the local cache where it is there."""
    if issubclass(source.kind, Records):
        return _download(source, revision, offline, None)
    folder = _download(source, revision, offline, MODEL_FILES)
    if not list(folder.glob("*.safetensors")):
        folder = _download(source, revision, offline, [*MODEL_FILES, PICKLED])
    if not list(folder.glob("*.safetensors")) and not list(folder.glob(PICKLED)):
        problem = f"source {source.name!r}: the model {source.repository} has no weights that can be read"
        raise DataError(problem, source.address, "name a revision that has them as safetensors")
    return folder


def _download(source: Source, revision: str, offline: bool, patterns: list[str] | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            source.repository,
            repo_type=_type(source),
            revision=revision,
            allow_patterns=patterns,
            local_files_only=offline,
        )
    except Exception as error:
        raise _unreachable(source, error) from error
    return Path(folder)


def _type(source: Source) -> str:
    return "dataset" if issubclass(source.kind, Records) else "model"


def _unreachable(source: Source, error: Exception) -> DataError:
    problem = f"source {source.name!r} cannot be fetched ({one_line(error)})"
    return DataError(problem, source.address, "check name and network, or give a folder")
