"""MLflow. Its own identifiers are random: a run that goes on is found by the tag `alignkit.run`."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from alignkit import PluginError, TrackedRun, TrackerFunction, hookimpl, tracker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOCAL = ("", "file", "sqlite")
"""Schemes of stores that need no connection."""
STRANGE = re.compile(r"[^\w\-. :/]")
"""What names of metrics and parameters may not have."""
STATES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MlflowRun:
    """Sends figures to a run of MLflow."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        self._client = client = MlflowClient()
        if run.offline and urlsplit(client.tracking_uri).scheme not in LOCAL:
            raise PluginError("MLFLOW_TRACKING_URI names a server, and no connection may be opened", remedy="unset it")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", run.recipe)
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        earlier = client.search_runs([experiment], f"tags.`alignkit.run` = '{run.id}'", max_results=1)
        tags = {"alignkit.run": run.id}
        tracked = earlier[0] if earlier else client.create_run(experiment, tags=tags, run_name=run.name)
        self._id = tracked.info.run_id
        client.update_run(self._id, status="RUNNING")
        for setting, value in run.settings.items():
            client.log_param(self._id, STRANGE.sub("_", setting), value)

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(STRANGE.sub("_", name), value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def show(self, stage: str, samples: Mapping[str, Sequence[object]]) -> None:
        table = {name: list(column) for name, column in samples.items()}
        self._client.log_table(self._id, table, f"{stage}/samples.json")

    def finish(self, state: str) -> None:
        self._client.set_terminated(self._id, STATES[state])


@tracker("mlflow")
def mlflow(run: TrackedRun) -> MlflowRun:
    """Send figures to MLflow: its local store, or a server."""
    return MlflowRun(run)


@hookimpl
def alignkit_trackers() -> list[TrackerFunction]:
    return [mlflow]
