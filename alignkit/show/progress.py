"""How far a run is: the stages that run now, their figures so far, and the time that is left."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from statistics import fmean

from alignkit.contract.events import (
    Doing,
    Estimated,
    Event,
    Metrics,
    Sample,
    StageFailed,
    StageFinished,
    StageStarted,
    Warned,
)
from alignkit.show.metrics import telling
from alignkit.text import duration, number, plain

MOST = 24
"""Points of a trend, at most; an even number."""
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
"""What a trend is drawn with, from its lowest value to its highest."""
SHOWN, DRAWN = 5, 3
"""Figures that are shown at once, at most, and those of them whose trends are drawn."""
ENDLESS = 1e300
NARROWEST = 8
"""Characters of a trend; where there is room for fewer, fewer figures are drawn."""


@dataclass
class Trend:
    """A figure over the steps of a stage, in few points: each is the mean of as many steps as the others."""

    points: list[float] = field(default_factory=list)
    _open: list[float] = field(default_factory=list)
    _steps: int = 1
    """Of a point."""

    def add(self, value: float) -> None:
        self._open.append(value if abs(value) < ENDLESS else math.nan)  # sums of infinities raise
        if len(self._open) == self._steps:
            self.points.append(fmean(self._open))
            self._open = []
        if len(self.points) == MOST:
            self.points, self._steps = _halved(self.points), 2 * self._steps

    def drawn(self, room: int, blocks: str = BLOCKS) -> str:
        """Draw it in so many characters at most, its lowest point as the lowest block."""
        points, room = self.points, max(room, 1)
        if len(points) > room:
            ends = [number * len(points) // room for number in range(room + 1)]
            points = [fmean(points[begin:end]) for begin, end in pairwise(ends)]
        finite = [point for point in points if math.isfinite(point)]
        if len(finite) < 2 or room < 2:
            return ""
        low, span = min(finite), max(finite) - min(finite)
        return "".join(_block((point - low) / span if span else 0.0, blocks) for point in points)


def _block(height: float, blocks: str) -> str:
    return blocks[round(height * (len(blocks) - 1))] if math.isfinite(height) else " "


def _halved(points: Sequence[float]) -> list[float]:
    """Join points in pairs; the last one of an odd number stays."""
    joined = [fmean(pair) for number, pair in enumerate(pairwise(points)) if number % 2 == 0]
    return [*joined, *points[len(joined) * 2 :]]


@dataclass
class Running:
    """A stage that runs now, as far as its events tell; times are the console's."""

    stage: str
    method: str
    since: float
    estimate: Estimated | None = None
    first: Metrics | None = None
    last: Metrics | None = None
    heard_at: float = field(init=False)
    """When it told anything last."""
    trends: dict[str, Trend] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.heard_at = self.since

    def heard(self, metrics: Metrics, now: float) -> None:
        self.first, self.last, self.heard_at = self.first or metrics, metrics, now
        for name, value in telling(metrics.values)[:DRAWN]:
            self.trends.setdefault(name, Trend()).add(value)

    @property
    def progress(self) -> str:
        """`120/400`, or what is known of it."""
        if self.last is None:
            return ""
        return f"{self.last.step}/{self.last.of}" if self.last.of else f"step {self.last.step}"

    @property
    def phase(self) -> str:
        """What the stage does before its first step, and after its last."""
        if self.last is None:
            return "preparing models and rows" if self.estimate and self.estimate.stepping else "working"
        return "measuring and saving" if self.last.step == self.last.of else ""

    def seconds_left(self, now: float) -> float | None:
        """Return what its steps so far, or else its estimate, say of the time that is left; None where neither does.

        It counts down while a step is taken, and waits for one that takes longer than those before it.
        """
        if (pace := self._pace()) is None or self.last is None or not self.last.of:
            return max(0.0, self.estimate.seconds - (now - self.since)) if self.estimate else None
        steps = pace * (self.last.of - self.last.step)
        within = now - self.heard_at
        if steps:
            return steps - min(within, pace) + self._around()
        return max(0.0, self._around() - within) if self.estimate else None

    def seconds_in_all(self, now: float) -> float | None:
        """Return how long it takes from its beginning to its end, by its steps; None where there were too few."""
        left = self.seconds_left(now)
        if left is None or self.last is None or self._pace() is None:
            return None
        return self.last.seconds + (now - self.heard_at) + left

    def _pace(self) -> float | None:
        """Judge by the steps since the first one that was seen, as a resumed stage does not start at one."""
        if self.first is None or self.last is None:
            return None
        steps, seconds = self.last.step - self.first.step, self.last.seconds - self.first.seconds
        return seconds / steps if steps > 0 else None

    def _around(self) -> float:
        """Return what is left of the time that is estimated for all but steps."""
        if not self.estimate or not self.first:
            return 0.0
        return max(0.0, self.estimate.seconds - self.estimate.stepping - self.first.seconds)

    @property
    def figures(self) -> list[str]:
        """The figures of the last step, the telling ones first."""
        found = telling(self.last.values) if self.last else []
        return [f"{name} {number(value)}" for name, value in found[:SHOWN]]

    def drawn(self, width: int, blocks: str) -> list[str]:
        """Return the figures, those that tell most with their trends, of which a line of that width has room for."""
        figures = self.figures
        rooms = {n: (width - sum(len(figure) + 3 for figure in figures[:n])) // n for n in range(DRAWN, 0, -1)}
        count = next((n for n, room in rooms.items() if room >= NARROWEST), 0)
        names = [name for name, _ in telling(self.last.values)][:count] if self.last else []
        trends = [self.trends.get(name, Trend()).drawn(rooms[count], blocks) for name in names]
        return [f"{figure} {trend}".rstrip() for figure, trend in zip_longest(figures, trends, fillvalue="")]


@dataclass
class Progress:
    """A run as far as its events tell, for whoever shows it."""

    stages: Sequence[str]
    """Those that are wanted, in order."""
    clock: Callable[[], float]
    running: dict[str, Running] = field(default_factory=dict)
    doing: dict[str, "Preparing"] = field(default_factory=dict)
    """Stage -> what is done before it begins."""
    since: float = field(init=False)
    """When the last stage ended."""
    sample: Sample | None = None
    reusable: Collection[str] = ()
    """Stages that need not run."""
    jobs: int = 1
    """How many stages run at the same time, at most."""
    waits: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Stage -> those that must be finished before it begins; needed where several run at the same time."""
    finished: dict[str, StageFinished] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    warnings: list[Warned] = field(default_factory=list)
    _estimates: dict[str, Estimated] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.since = self.clock()

    def hear(self, event: Event) -> None:
        """Take notice of an event."""
        stage = event.stage
        match event:
            case StageStarted():
                self._begin(stage, event.method)
            case Metrics():
                if stage not in self.running:
                    self._begin(stage, "")
                self.running[stage].heard(event, self.clock())
            case Sample():
                self.sample = event
            case Doing() if stage not in self.doing or self.doing[stage].what != event.what:
                self.doing[stage] = Preparing(event.what, self.clock())
            case Estimated():
                self._estimates[stage] = event
            case Warned():
                self.warnings.append(event)
            case StageFinished():
                self._end(stage)
                self.finished[stage] = event
            case StageFailed():
                self._end(stage)
                self.failed.add(stage)

    def _begin(self, stage: str, method: str) -> None:
        self.doing.pop(stage, None)
        self.running[stage] = Running(stage, method, self.clock(), self._estimates.get(stage))
        self.jobs = max(self.jobs, len(self.running))

    def _end(self, stage: str) -> None:
        self.running.pop(stage, None)
        self.doing.pop(stage, None)
        self.since = self.clock()

    @property
    def in_order(self) -> list[Running]:
        """The stages that run, in the plan's order."""
        return sorted(self.running.values(), key=lambda one: [*self.stages, one.stage].index(one.stage))

    def head(self, running: Running) -> str:
        """Say which stage runs and how far it is: `[4 of 5] align ppo 12/24`."""
        place = (
            f"[{self.stages.index(running.stage) + 1} of {len(self.stages)}]" if running.stage in self.stages else ""
        )
        return " ".join(filter(None, [place, running.stage, running.method, running.progress]))

    def waits_already(self, event: Event) -> bool:
        """Return whether the event's stage is known to wait, or another one for the same."""
        told = {one.what for one in self.doing.values()}
        return event.stage in self.doing or (isinstance(event, Doing) and event.what in told)

    def waiting(self) -> list[list[str]]:
        """Say what is done for stages that do not run yet, a line each; nothing where all are finished."""
        now, several = self.clock(), len(self.doing) + len(self.running) > 1
        lines = [
            [f"{stage}: {one.what}" if several else one.what, ticking(now - one.since)]
            for stage, one in self.doing.items()
        ]
        if not self.running and not lines and len(self.finished) < len(self.stages):
            lines = [["starting the next stage", ticking(now - self.since)]]
        if not self.running and lines:
            lines[-1] += self.of_run()
        return lines

    def times(self, running: Running) -> list[str]:
        """Say how long a running stage still takes, and the whole run, as far as that is known."""
        return [*self.of_stage(running), *self.of_run()]

    def of_stage(self, running: Running) -> list[str]:
        """Say how long a running stage still takes, if that is known."""
        left = running.seconds_left(self.clock())
        return [] if left is None else [f"{ticking(left)} left"]

    def of_run(self) -> list[str]:
        """Say how long the whole run still takes, if more than one running stage is left of it and that is known.

        Estimates are corrected by how long the stages before took that were estimated, too.
        """
        begun = {*self.finished, *self.failed, *self.reusable, *self.running}
        slower = self._slower()
        later = {stage: self._estimates.get(stage) for stage in self.stages if stage not in begun}
        left = {stage: one.seconds_left(self.clock()) for stage, one in self.running.items()}
        left |= {stage: one.seconds * slower if one else None for stage, one in later.items()}
        known = {stage: seconds for stage, seconds in left.items() if seconds is not None}
        can_be_told = len(known) == len(left) and (self.jobs == 1 or bool(self.waits))
        return [f"whole run: {ticking(self._in_all(known))} left"] if can_be_told and (later or len(left) > 1) else []

    def _in_all(self, waiting: dict[str, float]) -> float:
        """Return how long stages take together, each begun as soon as those that it waits for are finished."""
        now, ends = 0.0, dict[str, float]()
        while waiting or ends:
            for stage in list(waiting):
                if len(ends) < self.jobs and not {*waiting, *ends}.intersection(self.waits.get(stage, ())):
                    ends[stage] = now + waiting.pop(stage)
            now = min(ends.values())
            ends = {stage: end for stage, end in ends.items() if end > now}
        return now

    def _slower(self) -> float:
        """Return how many times as long as estimated stages take."""
        taken = {stage.stage: stage.seconds for stage in self.finished.values() if not stage.reused}
        for stage, running in self.running.items():
            if total := running.seconds_in_all(self.clock()):
                taken[stage] = total
        estimated = sum(self._estimates[stage].seconds for stage in taken if stage in self._estimates)
        measured = sum(seconds for stage, seconds in taken.items() if stage in self._estimates)
        return measured / estimated if estimated else 1.0

    def stopping(self) -> str:
        """Say what a signal does."""
        if any(running.last for running in self.running.values()):
            return "stopping after this step; press Ctrl-C again to stop at once and lose the step"
        return "stopping; press Ctrl-C again to stop at once"


@dataclass(frozen=True)
class Preparing:
    """What is done before a stage begins."""

    what: str
    since: float


def ticking(seconds: float) -> str:
    """Write a duration that is redrawn all the time: no parts of seconds."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def fitting(facts: Sequence[str], width: int) -> str:
    """Put facts on one line, as many as fit, and nothing that a terminal acts on."""
    first, *others = map(plain, facts)
    line = first[:width]
    for fact in others:
        if len(line) + 2 + len(fact) <= width:
            line = f"{line}  {fact}"
    return line
