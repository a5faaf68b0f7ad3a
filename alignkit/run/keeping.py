"""Keeping a run: its folder says what was asked, how far it is, how it ended, and holds its report."""

import logging
import os
import platform
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alignkit.contract.events import Event, StageFinished, plain
from alignkit.errors import INTERRUPTED, TERMINATED, AlignkitError
from alignkit.estimate.stage_previews import known_previews
from alignkit.plan.plan import Plan
from alignkit.run.provenance import versions
from alignkit.run.states import known_audits
from alignkit.show.index_page import write_index
from alignkit.show.planned import as_kept, mixes_in_words
from alignkit.show.report import write_report
from alignkit.store import rundir
from alignkit.store.durable import write_json
from alignkit.store.heartbeat import Heartbeat
from alignkit.store.results import told_facts
from alignkit.store.runs import KeptRun, hash_but_seed, this_process

SHOWN_EVERY = 10.0
"""Seconds, at least, between two reports while a stage goes on."""

SHARE = 0.02
"""Of the time, at most, that writing reports takes while a stage goes on."""

log = logging.getLogger(__name__)


class RunRecord:
    """Keeps a run, in a folder of its own, from its first moment: also where it fails, is stopped or dies.

    `with RunRecord(plan, runs) as record: run_plan(plan, record=record)`
    """

    def __init__(self, plan: Plan, runs: Path, arguments: Sequence[str] = ()) -> None:
        """Begin a run; `arguments` are those of its command. Raises DiskError where `runs` cannot be written to."""
        self._plan, self._runs = plan, runs.resolve()
        kept = as_kept(plan)
        self._facts: dict[str, Any] = {
            "state": "running",
            "process": this_process(),
            "began": _now(),
            "arguments": list(arguments),
            "methods": {stage.name: stage.method.name for stage in plan.stages if stage.wanted},
            "made_of": hash_but_seed(kept),
            "stages": {},
            "versions": versions(),
            "machine": {"host": socket.gethostname(), "system": platform.platform(), "cores": os.cpu_count()},
        }
        self._show_again = time.monotonic() + SHOWN_EVERY
        self._beats = ExitStack()
        self.folder = rundir.new_run(self._runs, plan.recipe.name, plan.recipe.text, kept, self._facts)

    def __enter__(self) -> Self:
        self._beats.enter_context(Heartbeat().of(self.folder / rundir.RUN))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beats.close()
        state, status, problem = end_of(error)
        del self._facts["process"]
        self._facts |= {"state": state, "ended": _now(), "status": status, "problem": problem}
        try:
            self._write()
            write_index(self._runs)
        except OSError as missing:
            log.warning("%s cannot be written (%s)", self.folder, missing.strerror)

    def __call__(self, event: Event) -> None:
        """Take notice of one event."""
        if isinstance(event, StageFinished):
            noted = self._facts["stages"] | {event.stage: _noted(event)}
            self._facts["stages"] = {name: noted[name] for name in self._facts["methods"] if name in noted}
            self._write()
        elif time.monotonic() >= self._show_again:
            self._show()

    def _write(self) -> None:
        write_json(self.folder / rundir.RUN, self._facts)
        write_json(self.folder / rundir.DATA, _found(self._plan, self._runs))
        self._show()

    def _show(self) -> None:
        """Write the report. One that cannot be written costs no run, and one that is slow is written seldom."""
        began = time.monotonic()
        try:
            write_report(KeptRun(self.folder))
        except Exception as error:
            log.warning("the report %s cannot be written (%r)", rundir.report_path(self.folder), error)
        now = time.monotonic()
        self._show_again = now + max(SHOWN_EVERY, (now - began) / SHARE)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def end_of(error: BaseException | None) -> tuple[str, int, str]:
    """Return how a run ended: its state, its exit status, and what was wrong."""
    if error is None:
        return "finished", 0, ""
    if isinstance(error, AlignkitError):
        stopped = error.status in (INTERRUPTED, TERMINATED)
        return "stopped" if stopped else "failed", error.status, str(error)
    return ("failed", 1, repr(error)) if isinstance(error, Exception) else ("stopped", INTERRUPTED, repr(error))


def _noted(event: StageFinished) -> dict[str, Any]:
    """Return what a run keeps of a stage itself, as the stage may be made again, or removed."""
    made = told_facts(Path(event.folder))["artifact"]
    return {
        "method": event.method,
        "reused": event.reused,
        "seconds": event.seconds,
        "results": [plain(result) for result in event.results],
        "content": made["content"],
        "bytes": sum(file["bytes"] for file in made["files"].values()),
    }


def _found(plan: Plan, runs: Path) -> dict[str, Any]:
    """Return what is known of a plan's rows by now: what is in its sources, and what each stage gets of them."""
    audits = known_audits(plan, runs)
    previews = {
        stage.name: {one.source: one.preview.as_dict() for one in known_previews(stage, runs)}
        for stage in plan.stages
        if stage.wanted
    }
    return {
        "audits": {name: audit.as_dict() for name, audit in audits.items()},
        "previews": previews,
        "mixes": mixes_in_words(plan, audits),
    }
