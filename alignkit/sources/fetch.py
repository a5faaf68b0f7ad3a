"""Get sources onto this machine, and check their rows, before any model is loaded."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict

from alignkit.contract.judges import JudgeScheme
from alignkit.contract.kinds import Artifact, Judge, JudgeReward, Records
from alignkit.errors import AlignkitError, DataError, Problem, RecipeError
from alignkit.sources import hub
from alignkit.sources.audit import Audit
from alignkit.sources.audited import check_source
from alignkit.sources.source import JudgeOptions, Source
from alignkit.store import rundir

SIDES: tuple[Literal["train", "held_out"], ...] = ("train", "held_out")


class Preparation(BaseModel):
    """A source that takes torch to write, so that the worker does it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path | None
    """What to unpack; without it the built-in model is written."""
    folder: Path
    """Where it shall lie."""


@dataclass(frozen=True)
class Fetched:
    """A source that a stage can start from, once `preparation` (if any) is done by the stage's worker."""

    artifact: Artifact
    preparation: Preparation | None = None
    remarks: tuple[Problem, ...] = ()
    """Warnings about its rows."""


def fetch(
    sources: Iterable[Source], runs: Path, offline: bool, doing: Callable[[str], None] = lambda what: None
) -> dict[str, Fetched]:
    """Get sources, each to a folder of its own, and check all rows of records; `doing` is told which of them.

    What was fetched and checked before is not looked at again. Raises DataError, for all sources at once.
    """
    fetched: dict[str, Fetched] = {}
    errors: list[AlignkitError] = []
    for source in sources:
        try:
            if source.how == "hub":
                doing(f"fetching {source.name!r}")
            one = _fetch(source, runs, offline)
            if isinstance(one.artifact, Records):
                doing(f"reading the rows of {source.name!r}")
                found = check_source(source, one.artifact, rundir.cache_folder(runs))
                one = replace(one, remarks=tuple(found.remarks()))
            fetched[source.name] = one
        except AlignkitError as error:
            errors.append(error)
    if errors:
        raise DataError.of([problem for error in errors for problem in error.problems])
    return fetched


def open_judges(sources: Iterable[Source], schemes: Mapping[str, JudgeScheme]) -> None:
    """Open the judges that are no policies once, as their stages will, so that what is missing, such as a key, is told
    before any stage runs. Raises RecipeError, for all of them at once."""
    errors: list[AlignkitError] = []
    for source in sources:
        artifact = source.artifact() if isinstance(source.options, JudgeOptions) and not source.fetched else None
        judge = artifact.judge if isinstance(artifact, JudgeReward) else artifact
        if not isinstance(judge, Judge) or judge.scheme not in schemes or schemes[judge.scheme].policy:
            continue
        scheme = schemes[judge.scheme]
        try:
            scheme.open(judge, scheme.settings.model_validate(dict(judge.options)), None)
        except AlignkitError as error:
            errors.append(error)
    if errors:
        raise RecipeError.of([problem for error in errors for problem in error.problems])


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
    if not source.fetched:
        return Fetched(source.artifact())
    assert source.fingerprint
    folder = rundir.source_folder(runs, source.name, source.fingerprint).resolve()
    if source.how == "hub":
        return Fetched(_from_hub(source, folder, offline))
    artifact = source.artifact(folder)
    if isinstance(artifact, Records):
        rundir.prepare(folder, lambda staged: _write_built_in(source, staged))
        return Fetched(artifact)
    file = source.files[0] if source.how == "gguf" else None
    return Fetched(artifact, Preparation(file=file, folder=folder))


def _from_hub(source: Source, folder: Path, offline: bool) -> Artifact:
    """Get rows that are limited one by one into the folder, once; anything else whole, into the hub's own cache."""
    if hub.is_limited(source) and (folder.is_dir() or not offline):
        rundir.prepare(folder, lambda staged: hub.write_rows(source, staged))
        return hub.written(source, folder)
    return source.artifact(hub.snapshot(source, source.commit, offline))


def _write_built_in(source: Source, folder: Path) -> None:
    from alignkit.demo import reviews, sums

    for side in SIDES:
        if source.address == "builtin:sums":
            made = sums.rows(cast("sums.Kind", source.word), side)
        else:
            made = reviews.rows(cast("reviews.Kind", source.word), side)
        with (folder / f"{source.word}-{side}.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
