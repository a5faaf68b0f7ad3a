"""A plan: the stages of a recipe, wired, checked and fingerprinted, before anything heavy is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignkit.contract.constraint import Constraint
from alignkit.contract.kinds import Artifact, Policy, Records
from alignkit.contract.method import Method
from alignkit.contract.mix import Mix
from alignkit.contract.needs import Needs
from alignkit.contract.settings import Settings
from alignkit.contract.tracker import TrackerFunction
from alignkit.plugins import Plugins
from alignkit.recipe.recipe import Recipe
from alignkit.sources.source import Source


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
    """Result -> {"min": x, "max": y}."""
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    """Reward -> the bound that its mean must keep while the stage learns."""
    mix: Mix | None = None
    """How the sources of its rows are read."""

    def mix_of(self, role: str) -> Mix | None:
        """Return how the sources of an input are read."""
        rows = all(issubclass(kind, Records) for kind in self.method.consumes[role].kinds)
        return self.mix if rows else None

    @property
    def taken(self) -> list[str]:
        """The sources and stages that it takes, role by role."""
        return [name for several in self.inputs.values() for name in several]

    @property
    def needs(self) -> Needs | None:
        """What its method will do with its models and rows; None where the method does not say."""
        return self.method.needs(self.settings)

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
    trackers: tuple[TrackerFunction, ...] = ()

    def used_sources(self) -> list[Source]:
        """Return the sources that wanted stages take, in the recipe's order."""
        used = {name for stage in self.stages if stage.wanted for name in stage.taken}
        return [source for name, source in self.sources.items() if name in used]

    def waits_for(self, stage: PlannedStage) -> set[str]:
        """Return which stages must be finished before one begins: those that it takes, and those before it with gates.

        Only what is wanted counts.
        """
        before = self.stages[: self.stages.index(stage)]
        return {other.name for other in before if other.wanted and (other.name in stage.taken or other.gates)}

    @property
    def is_chain(self) -> bool:
        """No two stages that are wanted could run at the same time: each waits for all before it."""
        before: dict[str, set[str]] = {}
        for stage in self.stages:
            if stage.wanted:
                waits = self.waits_for(stage)
                before[stage.name] = waits.union(*(before[name] for name in waits))
        return all(len(names) == place for place, names in enumerate(before.values()))

    def stage(self, name: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.name == name)


def policy_of(plan: Plan, stage: PlannedStage) -> Source | None:
    """Follow a stage's policy, the first of several, back to the source that it comes from.

    Its tokenizer is the same all the way.
    """
    return next(iter(policies_of(plan, stage)), None)


def policies_of(plan: Plan, stage: PlannedStage, roles: Sequence[str] | None = None) -> list[Source]:
    """Follow all policies that a stage takes, or those of these roles, back to the sources that they come from.

    Each source is named once.
    """
    found: dict[str, Source] = {}
    for name in (name for role in roles or policy_roles(stage) for name in stage.inputs.get(role, ())):
        beginnings = [plan.sources[name]] if name in plan.sources else policies_of(plan, plan.stage(name))[:1]
        found |= {source.name: source for source in beginnings if issubclass(source.kind, Policy)}
    return list(found.values())


def policy_roles(stage: PlannedStage) -> list[str]:
    """Name the roles in which a stage takes policies, the one that it is about first."""
    return [role for role, given in stage.method.consumes.items() if Policy in given.kinds]
