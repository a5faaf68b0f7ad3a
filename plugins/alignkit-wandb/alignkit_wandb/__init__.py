"""Weights & Biases.

wandb counts steps over a whole run, and drops what goes back; stages count their own. So each stage's step is a figure
itself, `STAGE/step`, and the axis of that stage's others.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from alignkit import PluginError, TrackedRun, TrackerFunction, hookimpl, tracker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class WandbRun:
    """Sends figures to a run of wandb."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        online = not run.offline and os.environ.get("WANDB_MODE", "online") == "online"
        if online and not wandb.login(prompt=False):
            raise PluginError("wandb has no API key", remedy="call `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.recipe),
            id=run.id,
            name=run.name,
            resume="allow" if online else None,  # offline, `wandb sync` puts runs of one id together
            config=dict(run.settings),
            mode="offline" if run.offline else None,
            settings=wandb.Settings(console="off"),  # what the terminal shows is redrawn all the time
        )

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/step": step, **figures})

    def show(self, stage: str, samples: Mapping[str, Sequence[object]]) -> None:
        import wandb

        rows = list(zip(*samples.values(), strict=True))
        self._run.log({f"{stage}/samples": wandb.Table(columns=list(samples), data=rows)})

    def finish(self, state: str) -> None:
        self._run.finish(exit_code=int(state != "finished"))


@tracker("wandb")
def wandb(run: TrackedRun) -> WandbRun:
    """Send figures to Weights & Biases, or write them for `wandb sync`."""
    return WandbRun(run)


@hookimpl
def alignkit_trackers() -> list[TrackerFunction]:
    return [wandb]
