"""A plan: the stages of a recipe, wired, checked and fingerprinted, before anything heavy is imported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alignkit.contract.kinds import Artifact
from alignkit.contract.method import Method
from alignkit.contract.plugins import Plugins
from alignkit.contract.settings import Settings
from alignkit.plan.recipe import Recipe
from alignkit.plan.source import Source


@dataclass(frozen=True)
class PlannedStage:
    """One stage, ready to be ordered."""

    name: str
    method: Method
    settings: Settings
    """Validated, with defaults."""
    inputs: Mapping[str, tuple[str, ...]]
    """Role -> the sources or earlier stages that it is wired to."""
    seed: int
    fingerprint: str | None
    """None where a hub source's commit is not known yet."""
    wanted: bool
    """Something that the recipe wants needs it."""
    standing_by: tuple[str, ...] = ()
    """Settings, roles and gates that only another method of this stage has."""
    gates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Figure -> {"min": x, "max": y}."""

    @property
    def made(self) -> type[Artifact]:
        return self.method.produces


@dataclass(frozen=True)
class Plan:
    """All stages in the order in which they run, wanted or not, and the sources that they use."""

    recipe: Recipe
    stages: tuple[PlannedStage, ...]
    sources: Mapping[str, Source]
    plugins: Plugins
    plugin_files: tuple[Path, ...] = ()

    def stage(self, name: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.name == name)
