"""What observers see: frozen facts, the same for the console, the report and any dashboard."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypedDict, TypeVar, get_args

from alignkit.noise import Interval
from alignkit.text import writable

SampleKind = Literal["best", "worst", ""]
"""`best` and `worst` by what came of them; empty: drawn without looking."""
Better = Literal["higher", "lower", ""]
"""Which way a result is better; empty: neither is."""
Bounds = tuple[float | None, float | None]
"""The least and the most that something may be; None where there is no such bound."""


@dataclass(frozen=True)
class StageStarted:
    """A stage begins; `resumed` says that it goes on from a checkpoint."""

    stage: str
    method: str
    folder: str
    """Where it will lie when it is finished."""
    resumed: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Role -> the names of the sources and stages that it takes."""
    seed: int = 0
    fingerprint: str = ""


@dataclass(frozen=True)
class Metrics:
    """Figures of one step; `of` is None where the number of steps is not known."""

    stage: str
    step: int
    of: int | None
    values: Mapping[str, float]
    seconds: float = 0.0
    """Since the stage began."""
    replayed: bool = False
    """It was told by an attempt before this one, which was interrupted."""


@dataclass(frozen=True)
class Result:
    """A result of a stage: before, after, and the floor that anybody reaches."""

    stage: str
    name: str
    before: float | None
    after: float | None
    floor: float | None = None
    rows: int | None = None
    """Held-out rows (pairs, prompts, answers) that it was measured on; None where it is no mean over rows."""
    interval: Interval | None = None
    """95 %, around `after`, over the rows; None where it is not known."""
    change: Interval | None = None
    """95 %, around `after` less `before`, row by row."""
    better: Better = ""
    replayed: bool = False
    """It was told by an attempt before this one, which was interrupted."""
    bounds: Bounds | None = None
    """The least and the most that `after` may be, where a constraint says so."""

    @property
    def holds(self) -> bool | None:
        """Return whether it keeps its bounds: its interval is not wholly outside of them; None where it has none."""
        if self.bounds is None or self.after is None:
            return None
        (low, high), (least, most) = self.interval or (self.after, self.after), self.bounds
        return (least is None or high >= least) and (most is None or low <= most)


class Certainty(TypedDict, total=False):
    """How sure a result is, which way it is better, and its bounds: the fields of `Result` of these names."""

    interval: Interval | None
    change: Interval | None
    better: Better
    bounds: Bounds | None


@dataclass(frozen=True)
class Rows:
    """What was measured of each held-out row, for pictures: columns of equal length, a number for each row."""

    stage: str
    columns: Mapping[str, Sequence[float]]
    replayed: bool = False
    """It was told by an attempt before this one, which was interrupted."""


@dataclass(frozen=True)
class Sample:
    """One answer or example to show to people."""

    stage: str
    row: Mapping[str, str | float]
    """Texts, and numbers of them: `reward after` beside `after`, `chosen_score` beside `chosen`."""
    kind: SampleKind = ""
    replayed: bool = False
    """It was told by an attempt before this one, which was interrupted."""


@dataclass(frozen=True)
class Warned:
    """Something that a person should act on."""

    stage: str
    problem: str
    remedy: str
    replayed: bool = False
    """It was told by an attempt before this one, which was interrupted."""


@dataclass(frozen=True)
class Doing:
    """What is being done now for a stage that takes no steps yet: `importing torch`, `reading the rows of 'pairs'`."""

    stage: str
    what: str


@dataclass(frozen=True)
class Estimated:
    """How long a stage will take, as far as that can be known before the first one runs."""

    stage: str
    seconds: float
    stepping: float
    """Seconds of them that its steps take."""


@dataclass(frozen=True)
class Stopping:
    """A signal asks the run to stop: the stage ends after its step, and a second signal ends it at once."""

    stage: str


@dataclass(frozen=True)
class StageFailed:
    """A stage ended without a result: it failed, or it was stopped by a signal."""

    stage: str
    problem: str
    remedy: str
    status: int
    """The exit status of the run, as docs/stability.md lists them."""


@dataclass(frozen=True)
class StageFinished:
    """A stage is finished, or was found finished (`reused`)."""

    stage: str
    method: str
    made: str
    """The kind of its artifact."""
    folder: str
    seconds: float
    reused: bool = False
    results: tuple[Result, ...] = field(default=())


Told = Metrics | Result | Rows | Sample | Warned
"""What a stage tells itself."""
Event = StageStarted | Told | StageFinished | StageFailed | Doing | Estimated | Stopping

_BY_NAME = {kind.__name__: kind for kind in get_args(Event)}


EventT = TypeVar("EventT", bound=Event)


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as a JSON object whose `event` is its class name."""
    facts = plain(event)
    if isinstance(event, StageFinished):
        facts["results"] = [plain(result) for result in event.results]
    return {"event": type(event).__name__, **facts}


def plain(event: Event) -> dict[str, Any]:
    """Return an event's fields; that it is no replay goes without saying."""
    return {key: value for key, value in asdict(event).items() if key != "replayed" or value}


def as_written(event: EventT) -> EventT:
    """Return an event whose texts UTF-8 can write, whatever a plugin has told."""
    return replace(event, **{one.name: writable(getattr(event, one.name)) for one in fields(event)})


def from_json(row: Mapping[str, Any]) -> Event:
    """Read an event back from what `to_json` made."""
    facts = {key: value for key, value in row.items() if key != "event"}
    if "results" in facts:
        facts["results"] = tuple(map(result_of, facts["results"]))
    event: Event = result_of(facts) if row["event"] == Result.__name__ else _BY_NAME[row["event"]](**facts)
    return event


def result_of(facts: Mapping[str, Any]) -> Result:
    """Read a result back from its fields as JSON holds them."""
    ends = {key: tuple(facts[key]) for key in ("interval", "change", "bounds") if facts.get(key)}
    return Result(**{**facts, **ends})
