"""The stage of a run, for tests: what a method tells it is kept in lists."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import finalize

from alignkit.contract.events import Event, Metrics, Result, Sample, Warned
from alignkit.contract.method import Method
from alignkit.contract.settings import Settings, over_default
from alignkit.plugins import load_plugins
from alignkit.run.machine import Machine
from alignkit.run.order import Order
from alignkit.run.stopping import Stop
from alignkit.run.working_stage import WorkingStage

EventT = TypeVar("EventT", bound=Event)


class RecordingStage(WorkingStage):
    """A stage for tests: the one that methods get in a run, with a folder of its own, and what it is told in lists.

    `again` makes the next attempt, which goes on from the newest checkpoint, as a run would.
    """

    def __init__(
        self,
        root: Path,
        name: str = "stage",
        seed: int = 17,
        *,
        rank: int = 0,
        world: int = 1,
        stop_at: int | None = None,
        plugin_files: Sequence[Path] = (),
    ) -> None:
        self.root, self._files = root, plugin_files
        self.stop_at = stop_at
        """Ask to stop once this step was logged."""
        self.events: list[Event] = []
        self._told_by_commit = 0
        root.mkdir(parents=True, exist_ok=True)
        order = Order(
            attempt="",
            stage=name,
            method="",
            settings={},
            inputs={},
            seed=seed,
            fingerprint="0",
            offline=True,
            machine=Machine(processes=world),
        )
        super().__init__(order, root, Stop(), rank, self.events.append, cache(partial(load_plugins, plugin_files)))
        if self._journal:
            self.close = finalize(self, self._journal.close)  # type: ignore[method-assign]

    @property
    def cache(self) -> Path:
        folder = self.root / "cache"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def stopping(self) -> bool:
        return self.stop_at is not None and bool(self.logs) and self.logs[-1][0] >= self.stop_at

    def commit(self, step: int, write: Callable[[Path], None]) -> None:
        super().commit(step, write)
        self._told_by_commit = len(self.events)

    def again(self, stop_at: int | None = None) -> "RecordingStage":
        """Return the next attempt, as it begins: what was told after the last commit is forgotten."""
        next_one = RecordingStage(
            self.root, self.name, self.seed, rank=self.rank, world=self.world, stop_at=stop_at, plugin_files=self._files
        )
        next_one.events[:0] = self.events[: self._told_by_commit]
        return next_one

    def _of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def logs(self) -> list[tuple[int, int | None, dict[str, float]]]:
        return [(event.step, event.of, dict(event.values)) for event in self._of(Metrics)]

    @property
    def results(self) -> dict[str, tuple[float | None, float | None, float | None]]:
        """Name -> before, after, floor."""
        return {event.name: (event.before, event.after, event.floor) for event in self._of(Result)}

    @property
    def measured(self) -> dict[str, int | None]:
        """On how many rows each result was measured."""
        return {event.name: event.rows for event in self._of(Result)}

    @property
    def samples(self) -> list[dict[str, str | float]]:
        return [dict(event.row) for event in self._of(Sample)]

    @property
    def warnings(self) -> list[tuple[str, str]]:
        return [(event.problem, event.remedy) for event in self._of(Warned)]


def run_method(method: Method, settings: Mapping[str, Any], stage: RecordingStage, **inputs: Any) -> Any:
    """Run a method as a worker would, with settings as a recipe has them; return its artifact."""
    from alignkit.run.worker import seed_everything

    seed_everything(stage.seed)
    return method(settings_of_recipe(method.settings, settings), stage, **inputs)


def settings_of_recipe(kind: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Return settings that say this as a recipe would, a group laid over its default. Raise pydantic's error."""
    fields = kind.model_fields
    groups = {key: over_default(fields[key], value) for key, value in given.items() if isinstance(value, Mapping)}
    return kind.model_validate({**given, **groups})
