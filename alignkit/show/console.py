"""The console: what a person sees while a recipe runs. One observer, live on a terminal, plain lines elsewhere."""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self, TextIO

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from alignkit.contract.events import (
    Doing,
    Event,
    Metrics,
    Sample,
    StageFailed,
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
from alignkit.show.progress import ASCII_BLOCKS, BLOCKS, NARROWEST, Progress, Running, fitting, ticking
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
        self._file = file or sys.stderr
        self._clock, self._every, self._quiet = clock, every, quiet
        self._progress = Progress(stages, clock)
        self._terminal = console_on(self._file)
        self._unicode = self._terminal.encoding.startswith("utf")
        self._sample_shown = False
        self._all_reused = False
        self._spoke = clock()
        self._lock = Lock()
        """A terminal is redrawn by a thread of its own."""
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
        for running in self._progress.in_order if error else ():
            self.say(self._now(running, "stopped"))
        self._resources.close()

    def say(self, line: str, style: str = "") -> None:
        """Print a line above whatever moves, unless it is quiet."""
        if not self._quiet:
            self._print(Text(plain(line), style=style))

    def _print(self, line: Text) -> None:
        self._terminal.print(line, soft_wrap=not self._live)
        self._spoke = self._clock()

    def begin(self, plan: Plan, states: Mapping[str, str], remarks: Mapping[str, str], jobs: int = 1) -> None:
        """Show the plan, or in a line that nothing of it is left to do; up to `jobs` stages run at the same time."""
        wanted = [stage.name for stage in plan.stages if stage.wanted]
        self._progress.jobs = jobs
        self._progress.waits = {stage.name: plan.waits_for(stage) for stage in plan.stages if stage.wanted}
        self._progress.reusable = [name for name in wanted if states[name].startswith("finished")]
        if self._progress.reusable == wanted:
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
        before, waited = self._progress.running.get(event.stage), self._progress.waits_already(event)
        with self._lock:
            self._progress.hear(event)
        match event:
            case StageStarted():
                self.say(f"{event.stage}: {event.method} {'resumes' if event.resumed else 'begins'}")
            case Metrics() if self._is_time():
                for running in self._progress.in_order:
                    self.say(self._now(running))
            case Doing() if not self._live and (not waited or self._is_time()):
                self.say(f"{event.stage}: {event.what}" if self._progress.running else event.what)
            case Stopping():
                self.say(self._progress.stopping(), "bold yellow")
            case Warned():
                self._print(Text(plain(f"warning: {about(event)}"), "yellow"))
            case StageFailed():
                self._say_failure(event, before)
            case StageFinished() if not self._all_reused:
                self.say(outcome(event), "dim" if event.reused else "green")

    def _say_failure(self, event: StageFailed, running: Running | None) -> None:
        """Say how far a stage was, and why it failed where others go on; else that is said when the run ends."""
        if running:
            self.say(self._now(running, "stopped"))
        if self._progress.running:
            self.say(about(event), "red")

    def _is_time(self) -> bool:
        """Return whether a line is due where nothing can be redrawn."""
        return not self._live and self._clock() - self._spoke >= self._every

    def _now(self, running: Running, word: str = "") -> str:
        facts = [running.progress, *running.figures, *([] if word else self._progress.times(running))]
        return f"{running.stage}: {', '.join(fact for fact in [word, *facts] if fact)}"

    def frame(self) -> RenderableType:
        """Draw the running stage: where it stands in the recipe, how far it is, its figures and times; of several a
        line each."""
        if KEY in self._keys():
            self._sample_shown = not self._sample_shown
        width = self._terminal.width
        with self._lock:
            running, sample = self._progress.in_order, self._progress.sample
            lines = self._stage_lines(running[0], width) if len(running) == 1 else self._lines_of_all(running, width)
            lines += [Text(fitting(facts, width), style="dim") for facts in self._progress.waiting()]
            return Group(*(lines or [Text("")]), *(self._sample_lines(sample, width) if sample else []))

    def _lines_of_all(self, several: Sequence[Running], width: int) -> list[Text]:
        """Show each of several stages in a line, and how long the run still takes."""
        shown = [
            [self._progress.head(one), *self._progress.of_stage(one), *filter(None, [one.phase]), *one.figures]
            for one in several
        ]
        lines = [Text(fitting(facts, width), style="bold") for facts in shown]
        of_run = self._progress.of_run() if several else []
        return [*lines, *(Text(fitting([fact], width), style="dim") for fact in of_run)]

    def _stage_lines(self, running: Running, width: int) -> list[Text]:
        now, of_run = self._clock(), self._progress.of_run()
        facts = [self._progress.head(running), *(self._progress.of_stage(running) or [ticking(now - running.since)])]
        lines = [Text(fitting(facts, width), style="bold")]
        if running.phase:
            facts = [running.phase, ticking(now - running.heard_at), *of_run]
            lines.append(Text(fitting(facts, width), style="dim"))
        elif running.last and running.last.of:
            told = "".join(f"  {fact}" for fact in of_run)
            room = min(60, width - len(told))
            bar = self._bar(running.last.step / running.last.of, room if room >= NARROWEST else width)
            lines.append(Text.assemble((bar, "blue"), (told if room >= NARROWEST else "", "dim")))
        if figures := running.drawn(width, BLOCKS if self._unicode else ASCII_BLOCKS):
            lines.append(Text(fitting(figures, width)))
            lines[-1].highlight_regex(TREND, "cyan")
        return lines

    def _sample_lines(self, sample: Sample, width: int) -> list[Text]:
        """Show a sample, or that there is one."""
        if not self._sample_shown:
            return [Text(fitting([f"{KEY}: show the last sample"], width), style="dim")]
        cells = [(name, value if isinstance(value, str) else number(value)) for name, value in sample.row.items()]
        rows = [(name, plain(" ".join(value.split()))) for name, value in cells]
        return [Text(f"{sample.stage}: last sample", style="dim"), *map(Text, table(rows, width)[:LINES])]

    def _bar(self, share: float, width: int) -> str:
        """Draw how much is done, with characters that the terminal has."""
        full, rest = ("━", "─") if self._unicode else ("#", "-")
        done = round(min(1.0, share) * width)
        return full * done + rest * (width - done)

    def closing(self, width: int | None, base: Path) -> list[str]:
        """Return the lines of the result: a table of the stages, and all warnings again."""
        finished = self._progress.finished
        rows = [result_row(finished[name], base) for name in self._progress.stages if name in finished]
        lines = table(rows, width, ("stage", "made", "time", "lies in", "before -> after"))
        warnings = [("warning:", about(event)) for event in self._progress.warnings]
        return [*lines, *table(warnings, width)]


def _counted(stages: int) -> str:
    return "the stage is" if stages == 1 else f"all {stages} stages are"


def about(event: Warned | StageFailed) -> str:
    """Word a warning or a failure with its remedy."""
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
