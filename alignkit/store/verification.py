"""Whether finished stages are as they were written: every file is read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alignkit.errors import Problem, StageError
from alignkit.store.durable import hash_file
from alignkit.store.results import read_finished


@dataclass(frozen=True)
class Verification:
    """What was found of one finished stage."""

    folder: Path
    size: int
    """Bytes of its artifact; 0 where nothing tells."""
    wrong: Problem | None


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
