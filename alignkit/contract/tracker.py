"""Trackers: where the figures of a run go besides its report, such as TensorBoard or a server.

A tracker is one function under `@tracker`, chosen by `trackers = ["NAME"]` in a recipe or by `--track NAME`. It opens
the tracker's run and returns what takes the figures.

A run with all its stages is one run of the tracker, its figures named `STAGE/METRIC`: people expect one line in the
table of runs for each command, with all its settings, and curves of one name laid over those of other runs. Each stage
counts its own steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Protocol

from alignkit.contract.names import check_offer, summary_of
from alignkit.errors import PluginError

Table = Mapping[str, Sequence[str | float | None]]
"""A table: columns of equal length, by name; None where a row has nothing there."""


@dataclass(frozen=True)
class TrackedRun:
    """A run, as its tracker is told of it."""

    recipe: str
    name: str
    """When it began, and four digits: the name of its folder under `runs/RECIPE/`. A run that goes on with one that was
    interrupted has that one's name."""
    resumed: bool
    """A tracker of this kind has had figures of it."""
    settings: Mapping[str, str | int | float | bool | None]
    """All settings of all stages, by `STAGE/SETTING`."""
    folder: Path
    """A folder of the tracker alone, for what it writes."""
    offline: bool
    """Open no connection."""

    @property
    def id(self) -> str:
        """What tells it from all other runs."""
        return f"{self.recipe}-{self.name}"


class Tracker(Protocol):
    """What takes the figures of a run. All calls come from one thread; one that fails or hangs is the last."""

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Take figures of one step of a stage, by `STAGE/METRIC`; a result is `STAGE/RESULT/before` and `.../after`,
        at the stage's last step. When this returns they are where a crash of the run does not reach them."""
        ...

    def show(self, stage: str, samples: Table) -> None:
        """Take the samples of a stage that is finished: texts, and numbers of them."""
        ...

    def finish(self, state: str) -> None:
        """End: the run is `finished`, `failed` or `stopped`."""
        ...


@dataclass(frozen=True)
class TrackerFunction:
    """A tracker that a plugin offers."""

    name: str
    summary: str
    open: Callable[[TrackedRun], Tracker]


def tracker(name: str) -> Callable[[Callable[[TrackedRun], Tracker]], TrackerFunction]:
    """Make a tracker of `f(run: TrackedRun) -> Tracker`, which opens the tracker's run, or goes on with it."""

    def wrap(function: Callable[[TrackedRun], Tracker]) -> TrackerFunction:
        check_offer("tracker", name, function)
        if len(signature(function).parameters) != 1:
            raise PluginError(
                f"tracker {name!r} is not of the form f(run: TrackedRun) -> Tracker",
                function.__module__,
                "give it one parameter",
            )
        return TrackerFunction(name, summary_of(function), function)

    return wrap
