"""Data sets of the hub, read by `datasets`: the rows of a split, and the names there are where one is wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.arrow import NullFields, rows_of_batches
from alignkit.errors import DataError

VERSION = 2
"""Raised when the same rows of a data set are read otherwise."""
BATCH = 256
"""Rows that are taken at once of what is read row by row."""


@dataclass(frozen=True)
class HubSet:
    """A data set of the hub: where it lies, and which of its rows are wanted."""

    source: str
    """The source that names it."""
    name: str
    """OWNER/NAME."""
    place: str
    """Where it is read from: its name, or the folder that it was fetched to."""
    config: str | None
    split: str
    commit: str | None = None
    held_out: bool = False
    """The source names the split by `held_out`."""

    @property
    def where(self) -> str:
        return f"hf:{self.name}"


def rows_of_split(
    found: HubSet, start: int = 0, stop: int | None = None, nulls: NullFields | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split, from `start` to before `stop`.

    Raises DataError, with the names there are where one is wrong.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(found.place, found.config, split=found.split, revision=found.commit, streaming=True)
        rows = rows.skip(start) if start else rows
        rows = rows if stop is None else rows.take(max(0, stop - start))
        for table in rows.with_format("arrow").iter(batch_size=BATCH):
            yield from rows_of_batches(table.to_batches(), nulls)
    except Exception as error:
        raise _refusal(found, error) from error


def check_names(found: HubSet) -> None:
    """Refuse a config or a split that the data set does not have; whatever else is wrong is told by reading it.

    Raises DataError, with the names there are.
    """
    if refusal := _wrong_name(found):
        raise refusal


def unreadable(source: str, where: str, error: Exception) -> DataError:
    """Say that a source on the hub cannot be fetched, with all that the library says about it."""
    said = " ".join(str(error).split())
    problem = f"source {source!r} cannot be fetched ({type(error).__name__}{': ' if said else ''}{said})"
    return DataError(problem, where, "check name and network, or give a folder")


def _refusal(found: HubSet, error: Exception) -> DataError:
    """Return what is wrong in our words where it is a name, else in those of the library."""
    return _wrong_name(found) or unreadable(found.source, found.where, error)


def _wrong_name(found: HubSet) -> DataError | None:
    """Return the names there are, where one is missing or none of them; None where that is not so, or not known."""
    try:
        configs, splits = _names(found)
    except Exception:  # what is wrong is said better where rows are read
        return None
    if not splits:
        names = "names none" if found.config is None else f"names {found.config!r}"
        problem = f"it has the configs {', '.join(configs)}, and source {found.source!r} {names}"
        return DataError(problem, found.where, _say("config", configs, found.config or ""))
    if found.split not in splits:
        problem = f"it has the splits {', '.join(splits)}, and source {found.source!r} reads {found.split!r}"
        return DataError(problem, found.where, _say("held_out" if found.held_out else "split", splits, found.split))
    return None


def _names(found: HubSet) -> tuple[list[str], list[str]]:
    """Return the configs that there are, and the splits of the one that is read; none where it is none of them."""
    from datasets import get_dataset_config_names, get_dataset_default_config_name, get_dataset_split_names

    given = {"revision": found.commit} if found.commit else {}
    configs = [str(name) for name in get_dataset_config_names(found.place, **given)]
    config = found.config or get_dataset_default_config_name(found.place, **given)
    if config not in configs:
        return configs, []
    return configs, [str(name) for name in get_dataset_split_names(found.place, config, **given)]


def _say(key: str, names: Sequence[str], wanted: str) -> str:
    """Advise to write one of the names there are, the most likely one."""
    likely = next((name for name in names if wanted in name), names[0])
    return f'write {key} = "{likely}"' + (", or another of them" if len(names) > 1 else "")
