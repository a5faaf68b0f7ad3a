"""What the stages of a plan will be trained on: rows of its sources, as each stage's own model sees them.

What was counted and rendered is kept: the one by the content that it is of, the other by the stage, for its report.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from alignkit.contract.kinds import Policy, Records
from alignkit.estimate.preview import Preview
from alignkit.plan.plan import Plan, PlannedStage, policy_of
from alignkit.sources.audit import Audit
from alignkit.sources.source import Source
from alignkit.store import layout
from alignkit.store.notes import note_path, read_note, write_note
from alignkit.training.prepare import opened

VERSION = 5
"""Raised when what is counted or shown changes."""


class StagePreview(NamedTuple):
    """What one stage gets of one source."""

    stage: str
    source: str
    preview: Preview


def previews(plan: Plan, audits: Mapping[str, Audit], runs: Path, offline: bool) -> Iterator[StagePreview]:
    """Encode the rows of each source as each wanted stage will; sources that were not audited are left out."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    for stage in plan.stages:
        policy = policy_of(plan, stage)
        if not stage.wanted or policy is None:
            continue
        for name in (name for several in stage.inputs.values() for name in several if name in audits):
            note = _note(stage, name, runs)
            if (found := _known(note)) is None:
                found = _preview(plan, name, policy, audits, stage, runs, offline)
                if note:
                    write_note(note, found.as_dict())
            yield StagePreview(stage.name, name, found)


def _preview(
    plan: Plan,
    name: str,
    policy: Source,
    audits: Mapping[str, Audit],
    stage: PlannedStage,
    runs: Path,
    offline: bool,
) -> Preview:
    from alignkit.estimate.answer_length import settled
    from alignkit.estimate.counting import RowCounts, count_tokens
    from alignkit.estimate.encoded_rows import preview

    source, audit = plan.sources[name], audits[name]
    model, records = opened(policy, runs, offline), opened(source, runs, offline)
    assert isinstance(model, Policy)
    assert isinstance(records, Records)
    counted = count_tokens(source, policy, audit, stage.settings, runs, offline)
    rows = RowCounts(audit.rows, audit.held_out)
    settings = settled(plan, stage, stage.settings, audits, runs, offline)
    return preview(model, records, settings, counted, rows, stage.method.loop)


def known_previews(stage: PlannedStage, runs: Path) -> Iterator[StagePreview]:
    """Give what was found before of what a stage gets."""
    for name in (name for several in stage.inputs.values() for name in several):
        if found := _known(_note(stage, name, runs)):
            yield StagePreview(stage.name, name, found)


def _note(stage: PlannedStage, source: str, runs: Path) -> Path | None:
    if not stage.fingerprint:
        return None
    return note_path(layout.cache_folder(runs), "preview", VERSION, stage.fingerprint, source)


def _known(note: Path | None) -> Preview | None:
    facts = read_note(note) if note else {}
    return Preview.from_dict(facts) if facts else None
