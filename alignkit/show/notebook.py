"""A run in a notebook: one line a stage that is written anew as it goes on, and each warning as it comes."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console as Terminal

from alignkit.contract.events import Event, Metrics, StageFailed, StageFinished, Stopping, Warned
from alignkit.show.console import about, outcome
from alignkit.show.progress import BLOCKS, Progress, fitting, ticking
from alignkit.text import plain

WIDTH = 110
"""Characters of a line."""
EVERY = 0.5
"""Seconds between two looks of a line, at least."""


def in_notebook() -> bool:
    """Return whether this process is a notebook's kernel."""
    return Terminal().is_jupyter


class NotebookView:
    """Shows a run under the cell that runs it: `run_plan(..., observers=[NotebookView(stages)])`."""

    def __init__(self, stages: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._clock = Progress(stages, clock), clock
        self._lines: dict[str, Any] = {}
        """Stage -> the handle of its line."""
        self._spoke: dict[str, float] = {}
        """Stage -> when its line was written last."""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._progress.hear(event)
        match event:
            case Warned():
                self._write(f"warning: {about(event)}")
            case StageFinished():
                self._rewrite(event.stage, outcome(event))
            case StageFailed():
                self._rewrite(event.stage, about(event))
            case Stopping():
                self._rewrite(event.stage, self._progress.stopping())
            case Metrics() if self._clock() - self._spoke.get(event.stage, -EVERY) < EVERY:
                pass
            case _:
                self._rewrite(event.stage, self._line(event.stage))

    def _line(self, stage: str) -> str:
        """Say in one line how a stage does."""
        running, preparing = self._progress.running.get(stage), self._progress.doing.get(stage)
        if preparing:
            return fitting([preparing.what, ticking(self._clock() - preparing.since)], WIDTH)
        if running is None:
            return fitting(next(iter(self._progress.waiting()), [""]), WIDTH)
        facts = [self._progress.head(running), *self._progress.times(running), *filter(None, [running.phase])]
        return fitting([*facts, *running.drawn(WIDTH // 2, BLOCKS)], WIDTH)

    def _rewrite(self, stage: str, line: str) -> None:
        """Write a stage's line, in place of what it was."""
        if stage in self._lines:
            self._lines[stage].update({"text/plain": plain(line)}, raw=True)
        else:
            self._lines[stage] = self._write(line)
        self._spoke[stage] = self._clock()

    def _write(self, line: str) -> Any:
        from IPython.display import display

        return display({"text/plain": plain(line)}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
