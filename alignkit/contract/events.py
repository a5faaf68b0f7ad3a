"""What observers see: frozen facts, the same for the console, the report and any dashboard."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageStarted:
    """A stage begins; `resumed` says that it goes on from a checkpoint."""

    stage: str
    method: str
    folder: str
    resumed: bool = False


@dataclass(frozen=True)
class Metrics:
    """Figures of one step; `of` is None where the number of steps is not known."""

    stage: str
    step: int
    of: int | None
    values: Mapping[str, float]
    seconds: float = 0.0
    """Since the stage began."""


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


@dataclass(frozen=True)
class Sample:
    """One answer or example to show to people."""

    stage: str
    row: Mapping[str, str | float]


@dataclass(frozen=True)
class Warned:
    """Something that a person should act on."""

    stage: str
    problem: str
    remedy: str


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


Event = StageStarted | Metrics | Result | Sample | Warned | StageFinished

_BY_NAME = {kind.__name__: kind for kind in (StageStarted, Metrics, Result, Sample, Warned, StageFinished)}


def to_json(event: Event) -> dict[str, Any]:
    """Give the event as a JSON object whose `event` is its class name."""
    return {"event": type(event).__name__, **asdict(event)}


def from_json(row: Mapping[str, Any]) -> Event:
    """Read an event back from what `to_json` made."""
    facts = {key: value for key, value in row.items() if key != "event"}
    if "results" in facts:
        facts["results"] = tuple(Result(**result) for result in facts["results"])
    event: Event = _BY_NAME[row["event"]](**facts)
    return event
