"""What a look at a plan works with: the plan, what is in its sources, and where things lie."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignkit.contract.kinds import Records
from alignkit.errors import AlignkitError
from alignkit.plan.plan import Plan
from alignkit.sources.audit import Audit
from alignkit.sources.fetch import audits
from alignkit.sources.source import Source


@dataclass(frozen=True)
class Desk:
    """A plan under examination; nothing of it is trained."""

    plan: Plan
    audits: Mapping[str, Audit]
    """By the source's name; those that could not be read are missing."""
    runs: Path
    offline: bool

    def open(self, source: Source) -> Any:
        """Return the artifact of a source, on this machine and unpacked."""
        from alignkit.training.prepare import opened

        return opened(source, self.runs, self.offline)


def desk_for(
    plan: Plan, runs: Path, offline: bool, stages: Collection[str] | None = None
) -> tuple[Desk, list[AlignkitError]]:
    """Return a desk with what is in the sources that these stages (or all that are wanted) read, and what is wrong."""
    if stages is not None:
        plan = replace(plan, stages=tuple(replace(stage, wanted=stage.name in stages) for stage in plan.stages))
    used = plan.used_sources()
    found, errors = audits([one for one in used if issubclass(one.kind, Records)], runs, offline)
    return Desk(plan, {one.source: one for one in found}, runs, offline), errors
