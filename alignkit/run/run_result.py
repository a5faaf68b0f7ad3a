"""What a run made, as scripts and notebooks get it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.contract.events import Result, Warned
from alignkit.contract.kinds import Artifact
from alignkit.run.kept import open_run
from alignkit.show.result_page import result_page
from alignkit.store.runs import KeptRun, stage_called

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class StageResult:
    """One stage of a run that is through."""

    name: str
    method: str
    folder: Path
    results: tuple[Result, ...]
    reused: bool
    seconds: float
    artifact: Artifact


@dataclass(frozen=True, repr=False)
class RunResult:
    """What a run made, or found made."""

    recipe: str
    folder: Path
    """Where the run is kept: its recipe, its plan, its report."""
    stages: tuple[StageResult, ...]

    def __repr__(self) -> str:
        return f"<run of {self.recipe}: {', '.join(stage.name for stage in self.stages)}; {self.folder}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return result_page(KeptRun(self.folder))

    def stage(self, name: str) -> StageResult:
        """Return one stage's result; the name of one that repeats means its last round.

        Raises StageError where no stage of that name was wanted.
        """
        return stage_called(self.kept.last_round(name), self.stages)

    def artifact(self, name: str) -> Artifact:
        """Return what a stage made, as `load_policy` takes it."""
        return self.stage(name).artifact

    @property
    def kept(self) -> KeptRun:
        """The run as its files tell it, the same as `alignkit.open_run` gives."""
        return open_run(self.folder)

    @property
    def figures(self) -> "DataFrame":
        """What each stage achieved: a row for each result."""
        return self.kept.figures

    def metrics(self, name: str) -> "DataFrame":
        """Return the figures of a stage's steps."""
        return self.kept.metrics(name)

    def samples(self, name: str) -> "DataFrame":
        """Return the rows that a stage showed."""
        return self.kept.samples(name)

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """What a person should act on, stage by stage."""
        return self.kept.warnings

    @property
    def report(self) -> Path:
        """Where its report lies."""
        return self.kept.report
