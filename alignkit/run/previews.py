"""What the stages of a plan will be trained on: rows of its sources, as each stage's own model sees them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alignkit.check.audit import Audit
from alignkit.contract.kinds import Policy, Records
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.plan.source import Source
from alignkit.run.fetch import fetch
from alignkit.run.worker import prepare

if TYPE_CHECKING:
    from alignkit.learn.preview import Preview


class StagePreview(NamedTuple):
    """What one stage gets of one source."""

    stage: str
    source: str
    preview: "Preview"
    steps: int | None
    """Optimiser steps over all rows that are not held out."""


def previews(plan: Plan, audits: Mapping[str, Audit], runs: Path, offline: bool) -> Iterator[StagePreview]:
    """Encode the first rows of each source as each wanted stage will; sources that were not audited are left out."""
    from transformers.utils import logging

    from alignkit.learn.preview import preview, steps

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    for stage in plan.stages:
        source = policy_of(plan, stage)
        if not stage.wanted or source is None:
            continue
        for name in (name for several in stage.inputs.values() for name in several if name in audits):
            policy, records = (opened(plan.sources[one], runs, offline) for one in (source.name, name))
            assert isinstance(policy, Policy)
            assert isinstance(records, Records)
            found = preview(policy, records, stage.settings)
            yield StagePreview(stage.name, name, found, steps(type(records), audits[name].rows, stage.settings))


def policy_of(plan: Plan, stage: PlannedStage) -> Source | None:
    """Follow a stage's policy back to the source that it comes from: its tokenizer is the same all the way."""
    by_name = {one.name: one for one in plan.stages}
    role = next((role for role, given in stage.method.consumes.items() if Policy in given.kinds), None)
    names = stage.inputs.get(role, ()) if role else ()
    if not names:
        return None
    if names[0] in plan.sources:
        return plan.sources[names[0]]
    return policy_of(plan, by_name[names[0]])


def opened(source: Source, runs: Path, offline: bool) -> object:
    """Get a source onto this machine, unpacked where it must be."""
    fetched = fetch([source], runs, offline)[source.name]
    if fetched.preparation:
        prepare(fetched.preparation)
    return fetched.artifact
