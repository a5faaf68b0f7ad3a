"""The console: what a person sees while a recipe runs. One observer, live on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console as Terminal, Group, RenderableType
from rich.live import Live
from rich.text import Text

from alignkit.contract.events import Event, Metrics, StageFinished, StageStarted, Warned
from alignkit.plan.plan import Plan
from alignkit.show.metrics import achieved, telling
from alignkit.show.planned import show_plan
from alignkit.store.results import latest
from alignkit.text import duration, line_width, number, plain, short, table

EVERY = 15.0
"""Seconds between the lines of a running stage where nothing can be redrawn."""

SHOWN = 5
"""Metrics shown at once, at most."""

WAITING = "starting (importing torch, about 5 s)"


@dataclass
class Running:
    """The stage that runs now, as far as its events tell."""

    stage: str
    method: str
    since: float
    first: Metrics | None = None
    last: Metrics | None = None

    def heard(self, metrics: Metrics) -> None:
        self.first, self.last = self.first or metrics, metrics

    @property
    def progress(self) -> str:
        """`120/400`, or what is known of it."""
        if self.last is None:
            return ""
        return f"{self.last.step}/{self.last.of}" if self.last.of else f"step {self.last.step}"

    @property
    def seconds_left(self) -> float | None:
        """Judged by the pace since the first step that was seen, as a resumed stage does not start at one."""
        if self.first is None or self.last is None or not self.last.of:
            return None
        steps, seconds = self.last.step - self.first.step, self.last.seconds - self.first.seconds
        return seconds / steps * (self.last.of - self.last.step) if steps > 0 else None

    @property
    def metrics(self) -> list[str]:
        """The metrics of the last step, the telling ones first."""
        found = telling(self.last.values) if self.last else []
        return [f"{name} {number(value)}" for name, value in found[:SHOWN]]


class Console:
    """Shows a run on standard error: `with Console(...) as console: run_plan(..., observers=[console])`.

    After the run `closing()` gives the lines of the result.
    """

    def __init__(
        self,
        stages: Sequence[str],
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = EVERY,
    ) -> None:
        self._stages = list(stages)
        self._file = file or sys.stderr
        self._clock, self._every = clock, every
        self._terminal = Terminal(file=self._file, highlight=False, soft_wrap=True)
        self._running: Running | None = None
        self._spoke = clock()
        self._waiting = ""
        self.finished: dict[str, StageFinished] = {}
        self.warnings: list[Warned] = []
        live = self._file.isatty() and not self._terminal.is_dumb_terminal
        self._live = Live(get_renderable=self.frame, console=self._terminal, transient=True) if live else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting = ""
        if self._running and error:
            self.say(self._now(self._running, "stopped"))
        self._running = None
        if self._live:
            self._live.stop()

    def say(self, line: str, style: str = "") -> None:
        """Print a line above whatever moves."""
        self._terminal.print(Text(plain(line), style=style))
        self._spoke = self._clock()

    def begin(self, plan: Plan, states: Mapping[str, str], remarks: Mapping[str, str]) -> None:
        """Show the plan, and that it takes a moment to start if models are to be opened."""
        for line in show_plan(plan, states, remarks, line_width(self._file)):
            self.say(line)
        self.say("")
        left = [stage for stage in plan.stages if stage.wanted and not states[stage.name].startswith("finished")]
        if any(stage.method.handles_models for stage in left):
            self._waiting = WAITING
            if not self._live:
                self.say(WAITING)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StageStarted):
            self._running, self._waiting = Running(event.stage, event.method, self._clock()), ""
            self.say(f"{event.stage}: {event.method} {'resumes' if event.resumed else 'begins'}")
        elif isinstance(event, Metrics):
            self._heard(event)
        elif isinstance(event, Warned):
            self.warnings.append(event)
            self.say(f"warning: {about(event)}", "yellow")
        elif isinstance(event, StageFinished):
            self._running = None
            self.finished[event.stage] = event
            self.say(outcome(event), "dim" if event.reused else "green")

    def _heard(self, event: Metrics) -> None:
        if self._running is None or self._running.stage != event.stage:
            self._running = Running(event.stage, "", self._clock())
        self._running.heard(event)
        if not self._live and self._clock() - self._spoke >= self._every:
            self.say(self._now(self._running))

    def _now(self, running: Running, word: str = "") -> str:
        left = running.seconds_left
        eta = f"{duration(left)} left" if left is not None and not word else ""
        facts = [running.progress, *running.metrics, eta]
        return f"{running.stage}: {', '.join(fact for fact in [word, *facts] if fact)}"

    def frame(self) -> RenderableType:
        """Draw the running stage: where it stands in the recipe, how far it is, and its metrics."""
        width = self._terminal.width
        if self._running is None:
            return Text(self._waiting[:width], style="dim")
        running, last = self._running, self._running.last
        head = f"{self._place(running.stage)}{running.stage} {running.method} {running.progress}".rstrip()
        left = running.seconds_left
        time_told = f"{duration(left)} left" if left is not None else duration(self._clock() - running.since)
        lines: list[RenderableType] = [Text(_fitting([head, time_told], width), style="bold")]
        if last and last.of:
            lines.append(Text(self._bar(last.step / last.of, min(60, width)), style="blue"))
        if running.metrics:
            lines.append(Text(_fitting(running.metrics, width)))
        return Group(*lines)

    def _bar(self, share: float, width: int) -> str:
        """Draw how much is done, with characters that the terminal has."""
        full, rest = ("━", "─") if self._terminal.encoding.startswith("utf") else ("#", "-")
        done = round(min(1.0, share) * width)
        return full * done + rest * (width - done)

    def _place(self, stage: str) -> str:
        if stage not in self._stages:
            return ""
        return f"[{self._stages.index(stage) + 1} of {len(self._stages)}] "

    def closing(self, width: int | None, base: Path) -> list[str]:
        """Return the lines of the result: a table of the stages, and all warnings again."""
        rows = [result_row(event, base) for event in self.finished.values()]
        lines = table(rows, width, ("stage", "made", "time", "lies in", "before -> after"))
        warnings = [("warning:", about(event)) for event in self.warnings]
        return [*lines, *table(warnings, width)]


def _fitting(facts: Sequence[str], width: int) -> str:
    """Put facts on one line, as many as fit."""
    line = facts[0][:width]
    for fact in facts[1:]:
        if len(line) + 2 + len(fact) <= width:
            line = f"{line}  {fact}"
    return line


def about(event: Warned) -> str:
    """Word a warning with its remedy."""
    return f"{event.stage}: {event.problem}; {event.remedy}"


def outcome(event: StageFinished) -> str:
    """Return in one line how a stage ended."""
    done = "reused, made" if event.reused else f"done, {event.made}"
    results = "".join(f"; {achieved(result)}" for result in latest(event.results))
    return f"{event.stage}: {done} in {duration(event.seconds)}{results}"


def result_row(event: StageFinished, base: Path) -> tuple[str, str, str, str, str]:
    """Return a stage's row of the closing table; its folder relative to `base` where it lies below."""
    time_told = "reused" if event.reused else duration(event.seconds)
    return (
        event.stage,
        event.made,
        time_told,
        short(Path(event.folder), base),
        "\n".join(map(achieved, latest(event.results))),
    )
