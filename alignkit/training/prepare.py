"""Sources on this machine, those that take torch to write included."""

from pathlib import Path

from alignkit.sources.fetch import Preparation, fetch
from alignkit.sources.source import Source
from alignkit.store import rundir


def opened(source: Source, runs: Path, offline: bool) -> object:
    """Get a source onto this machine, unpacked where it must be."""
    fetched = fetch([source], runs, offline)[source.name]
    if fetched.preparation:
        prepare(fetched.preparation)
    return fetched.artifact


def prepare(preparation: Preparation) -> None:
    """Write a source that takes torch to write."""

    def write(folder: Path) -> None:
        from alignkit.training.saving import as_readable_as_others, unpack

        if preparation.file:
            unpack(preparation.file, folder)
        else:
            from alignkit.demo.tiny import write_tiny

            write_tiny(folder)
            as_readable_as_others(folder)

    rundir.prepare(preparation.folder, write)
