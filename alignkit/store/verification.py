"""Whether finished stages are as they were written: every file is read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from alignkit.errors import Problem, StageError
from alignkit.store import rundir
from alignkit.store.durable import hash_file
from alignkit.store.results import read_finished
from alignkit.store.runs import KeptRun

AGAIN = "run the recipe again"


@dataclass(frozen=True)
class Verification:
    """What was found of one finished stage."""

    folder: Path
    size: int
    """Bytes of its artifact; 0 where nothing tells."""
    wrong: Problem | None


def verify_run(run: KeptRun) -> Iterator[Verification]:
    """Yield of each stage that a run has finished what `verify` says, and whether it is still what the run has made."""
    for stage in run.stages:
        if not stage.wanted or stage.fingerprint is None or not (stage.noted or stage.facts):
            continue
        folder = rundir.stage_folder(run.runs, stage.name, stage.fingerprint)
        if not folder.is_dir():
            yield Verification(folder, 0, Problem("the finished stage is gone", str(folder), AGAIN))
            continue
        (found,) = verify([folder])
        if stage.remade and not found.wrong:
            problem = f"it has been made again since {run.id}, and came out otherwise"
            found = replace(found, wrong=Problem(problem, str(folder), AGAIN))
        yield found


def verify(folders: Iterable[Path]) -> Iterator[Verification]:
    """Yield of each finished stage whether its `stage.json` and all files of its artifact are as they were written."""
    for folder in folders:
        size = 0
        try:
            finished = read_finished(folder)
            size = finished.size
            finished.check(hash_file)
        except StageError as error:
            yield Verification(folder, size, error.problems[0])
        else:
            yield Verification(folder, size, None)
