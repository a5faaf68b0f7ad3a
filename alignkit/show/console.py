"""The console: what a person sees while a recipe runs. One observer, live on a terminal, plain lines elsewhere."""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from alignkit.contract.events import (
    Doing,
    Estimated,
    Event,
    Metrics,
    Sample,
    StageFinished,
    StageStarted,
    Stopping,
    Warned,
)
from alignkit.plan.plan import Plan
from alignkit.show.colours import console_on, painted
from alignkit.show.keys import pressed
from alignkit.show.metrics import achieved
from alignkit.show.planned import show_plan
from alignkit.show.progress import ASCII_BLOCKS, BLOCKS, Running, whole_left
from alignkit.store.results import latest
from alignkit.text import duration, line_width, number, plain, short, table

EVERY = 15.0
"""Seconds between the lines of a running stage where nothing can be redrawn."""

LINES = 12
"""Of a sample, at most."""

KEY = "s"
"""Shows the last sample, and hides it."""

TREND = re.compile(f"[{BLOCKS}]+")


class Console:
    """Shows a run on standard error: `with Console(...) as console: run_plan(..., observers=[console])`.

    After the run `closing()` gives the lines of the result. A quiet one tells warnings alone.
    """

    def __init__(
        self,
        stages: Sequence[str],
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = EVERY,
        quiet: bool = False,
    ) -> None:
        self._stages = list(stages)
        self._file = file or sys.stderr
        self._clock, self._every, self._quiet = clock, every, quiet
        self._terminal = console_on(self._file)
        self._unicode = self._terminal.encoding.startswith("utf")
        self._running: Running | None = None
        self._estimates: dict[str, Estimated] = {}
        self._sample: Sample | None = None
        self._sample_shown = False
        self._all_reused = False
        self._spoke = self._since = clock()
        self._doing = ""
        self.finished: dict[str, StageFinished] = {}
        self.warnings: list[Warned] = []
        self._resources = ExitStack()
        self._keys: Callable[[], str] = str
        live = self._file.isatty() and not self._terminal.is_dumb_terminal and not quiet
        self._live = Live(get_renderable=self.frame, console=self._terminal, transient=True) if live else None

    def __enter__(self) -> Self:
        if self._live:
            self._keys = self._resources.enter_context(pressed())
            self._resources.enter_context(self._live)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._doing = ""
        if self._running and error:
            self.say(self._now(self._running, "stopped"))
        self._running = None
        self._resources.close()

    def say(self, line: str, style: str = "") -> None:
        """Print a line above whatever moves, unless it is quiet."""
        if not self._quiet:
            self._print(Text(plain(line), style=style))

    def _print(self, line: Text) -> None:
        self._terminal.print(line, soft_wrap=not self._live)
        self._spoke = self._clock()

    def begin(self, plan: Plan, states: Mapping[str, str], remarks: Mapping[str, str]) -> None:
        """Show the plan, or in a line that nothing of it is left to do."""
        wanted = [stage.name for stage in plan.stages if stage.wanted]
        if all(states[name].startswith("finished") for name in wanted):
            self.say(f"nothing to run: {_counted(len(wanted))} finished, and reused")
            for name, remark in remarks.items():
                self.say(f"{name}: {remark}")
            self._all_reused = True
        elif not self._quiet:
            for line in painted(show_plan(plan, states, remarks, line_width(self._file))):
                self._print(line)
            self.say("")

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case StageStarted():
                self._running, self._doing = self._started(event.stage, event.method), ""
                self.say(f"{event.stage}: {event.method} {'resumes' if event.resumed else 'begins'}")
            case Metrics():
                self._heard(event)
            case Sample():
                self._sample = event
            case Doing():
                self._take_up(event)
            case Estimated():
                self._estimates[event.stage] = event
            case Stopping():
                self.say(self._stopping(), "bold yellow")
            case Warned():
                self.warnings.append(event)
                self._print(Text(plain(f"warning: {about(event)}"), "yellow"))
            case StageFinished():
                self._finish(event)

    def _started(self, stage: str, method: str) -> Running:
        return Running(stage, method, self._clock(), self._estimates.get(stage))

    def _finish(self, event: StageFinished) -> None:
        self._running, self._since = None, self._clock()
        self.finished[event.stage] = event
        if not self._all_reused:
            self.say(outcome(event), "dim" if event.reused else "green")

    def _take_up(self, event: Doing) -> None:
        first = not self._doing
        if event.what != self._doing:
            self._doing, self._since = event.what, self._clock()
        if not self._live and (first or self._clock() - self._spoke >= self._every):
            self.say(event.what)

    def _stopping(self) -> str:
        if self._running and self._running.last:
            return "stopping after this step; press Ctrl-C again to stop at once and lose the step"
        return "stopping; press Ctrl-C again to stop at once"

    def _heard(self, event: Metrics) -> None:
        if self._running is None or self._running.stage != event.stage:
            self._running = self._started(event.stage, "")
        self._running.heard(event, self._clock())
        if not self._live and self._clock() - self._spoke >= self._every:
            self.say(self._now(self._running))

    def _now(self, running: Running, word: str = "") -> str:
        facts = [running.progress, *running.figures, *([] if word else self._times())]
        return f"{running.stage}: {', '.join(fact for fact in [word, *facts] if fact)}"

    def _times(self) -> list[str]:
        """Say how long the running stage still takes, and the whole run."""
        running, now = self._running, self._clock()
        ended = {*self.finished, *([running.stage] if running else [])}
        later = [stage for stage in self._stages if stage not in ended]
        left = running.seconds_left(now) if running else 0.0
        whole = whole_left(left, later, self._estimates) if later else None
        return [
            *([f"{ticking(left)} left"] if running and left is not None else []),
            *([f"whole run: {ticking(whole)} left"] if whole is not None else []),
        ]

    def frame(self) -> RenderableType:
        """Draw the running stage: where it stands in the recipe, how far it is, its figures and times."""
        if KEY in self._keys():
            self._sample_shown = not self._sample_shown
        width = self._terminal.width
        lines = self._stage_lines(self._running, width) if self._running else self._waiting_lines(width)
        if self._sample:
            lines += self._sample_lines(self._sample, width)
        return Group(*lines)

    def _waiting_lines(self, width: int) -> list[Text]:
        what = self._doing or ("starting the next stage" if self._stages and self.finished else "")
        facts = [what, ticking(self._clock() - self._since), *self._times()] if what else [""]
        return [Text(_fitting(facts, width), style="dim")]

    def _stage_lines(self, running: Running, width: int) -> list[Text]:
        head = f"{self._place(running.stage)}{running.stage} {running.method} {running.progress}".rstrip()
        spent = ticking(self._clock() - running.since)
        lines = [Text(_fitting([head, *(self._times() or [spent])], width), style="bold")]
        if running.phase:
            facts = [running.phase, ticking(self._clock() - running.heard_at)]
            lines.append(Text(_fitting(facts, width), style="dim"))
        elif running.last and running.last.of:
            lines.append(Text(self._bar(running.last.step / running.last.of, min(60, width)), style="blue"))
        if figures := running.drawn(width, BLOCKS if self._unicode else ASCII_BLOCKS):
            lines.append(Text(_fitting(figures, width)))
            lines[-1].highlight_regex(TREND, "cyan")
        return lines

    def _sample_lines(self, sample: Sample, width: int) -> list[Text]:
        """Show a sample, or that there is one."""
        if not self._sample_shown:
            return [Text(_fitting([f"{KEY}: show the last sample"], width), style="dim")]
        cells = [(name, value if isinstance(value, str) else number(value)) for name, value in sample.row.items()]
        rows = [(name, plain(" ".join(value.split()))) for name, value in cells]
        return [Text(f"{sample.stage}: last sample", style="dim"), *map(Text, table(rows, width)[:LINES])]

    def _bar(self, share: float, width: int) -> str:
        """Draw how much is done, with characters that the terminal has."""
        full, rest = ("━", "─") if self._unicode else ("#", "-")
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


def _counted(stages: int) -> str:
    return "the stage is" if stages == 1 else f"all {stages} stages are"


def ticking(seconds: float) -> str:
    """Write a duration that is redrawn all the time: no parts of seconds."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


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
