"""Sources on the hub, by their commit: models and data sets whole, or of a data set the rows that are asked for."""

import json
from pathlib import Path
from typing import Any

from alignkit.contract.kinds import Artifact, Records
from alignkit.data.hubsets import check_names, rows_of_split, unreadable
from alignkit.data.records import Part, hub_set, limits, split_of
from alignkit.errors import DataError
from alignkit.sources.source import RecordOptions, Source

MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""What is fetched of a model: no code, and weights that are pickled only where it has no others."""
PICKLED = "pytorch_model*"


def is_limited(source: Source) -> bool:
    """Return whether only so many rows of a data set are asked for: those are read from the hub, and no more."""
    return isinstance(source.options, RecordOptions) and limits(_parts(source)[0])[1] is not None


def write_rows(source: Source, folder: Path) -> None:
    """Read the rows that are asked for from the hub into files, one for each part. Raises DataError."""
    for number, part in enumerate(_parts(source)):
        count = 0
        with (folder / _name(number, part)).open("w", encoding="utf-8") as lines:
            for row in rows_of_split(hub_set(part, source.commit), *limits(part)):
                lines.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                count += 1
        if not count:
            problem = f"source {source.name!r}: the split {split_of(part)!r} has no such rows"
            raise DataError(problem, source.address, "widen its slice")


def written(source: Source, folder: Path) -> Artifact:
    """Make the typed input of what `write_rows` wrote."""
    artifact = source.artifact(folder)
    assert isinstance(artifact, Records)
    local: dict[str, Any] = {"hub": None, "split": None, "rows": None}
    parts = [
        part.model_copy(update={**local, "paths": (folder / _name(number, part),)})
        for number, part in enumerate(artifact.parts)
    ]
    return artifact.model_copy(update={"parts": tuple(parts)})


def _parts(source: Source) -> tuple[Part, ...]:
    artifact = source.artifact(Path())
    assert isinstance(artifact, Records)
    return artifact.parts


def _name(number: int, part: Part) -> str:
    return f"{number}-{split_of(part).replace('/', '-')}.jsonl"


def newest(source: Source, offline: bool) -> str:
    """Ask the hub for the commit that a source stands for now (offline: the local cache), and fetch what it needs."""
    revision = source.address.partition("@")[2] or "main"
    if offline or not issubclass(source.kind, Records):
        return snapshot(source, revision, offline).name
    from huggingface_hub import HfApi

    try:
        commit = str(HfApi().repo_info(source.repository, repo_type=_type(source), revision=revision).sha)
    except Exception as error:
        raise _unreachable(source, error) from error
    if not is_limited(source):  # a wrong name is told before all of it is fetched
        for part in _parts(source):
            check_names(hub_set(part, commit))
        snapshot(source, commit, offline)
    return commit


def snapshot(source: Source, revision: str, offline: bool) -> Path:
    """Return the folder of a hub repository at a commit, from the local cache where it is there."""
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
    return unreadable(source.name, source.address, error)
