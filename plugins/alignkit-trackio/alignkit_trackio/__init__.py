"""Trackio: on this machine, or on a Space that the environment names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from alignkit import PluginError, TrackedRun, TrackerFunction, hookimpl, tracker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVERS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioRun:
    """Sends figures to a run of Trackio."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        if run.offline and (server := next(filter(os.environ.get, SERVERS), None)):
            raise PluginError(f"{server} names a server, and no connection may be opened", remedy="unset it")
        project = os.environ.get("TRACKIO_PROJECT", run.recipe)
        self._run = trackio.init(project, name=run.name, resume="allow", config=dict(run.settings), embed=False)

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def show(self, stage: str, samples: Mapping[str, Sequence[object]]) -> None:
        import trackio

        rows = [list(row) for row in zip(*samples.values(), strict=True)]
        self._run.log({f"{stage}/samples": trackio.Table(columns=list(samples), data=rows)})

    def finish(self, state: str) -> None:
        self._run.finish()


@tracker("trackio")
def trackio(run: TrackedRun) -> TrackioRun:
    """Send figures to Trackio."""
    return TrackioRun(run)


@hookimpl
def alignkit_trackers() -> list[TrackerFunction]:
    return [trackio]
