"""What the stages of a plan will be trained on: rows of its sources, as each stage's own model sees them.

What was counted and rendered is kept: the one by the content that it is of, the other by the stage, for its report.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from alignkit.estimate.desk import Desk
from alignkit.estimate.preview import Preview
from alignkit.plan.plan import PlannedStage, policy_of
from alignkit.sources.source import Source
from alignkit.store import rundir
from alignkit.store.notes import note_path, read_note, write_note

VERSION = 5
"""Raised when what is counted or shown changes."""


class StagePreview(NamedTuple):
    """What one stage gets of one source."""

    stage: str
    source: str
    preview: Preview


def previews(desk: Desk) -> Iterator[StagePreview]:
    """Encode the rows of each source as each wanted stage will; sources that were not audited are left out."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    for stage in desk.plan.stages:
        policy = policy_of(desk.plan, stage)
        if not stage.wanted or policy is None:
            continue
        for name in (name for name in stage.taken if name in desk.audits):
            note = _note(stage, name, desk.runs)
            if (found := _known(note)) is None:
                found = _preview(desk, stage, desk.plan.sources[name], policy)
                if note:
                    write_note(note, found.as_dict())
            yield StagePreview(stage.name, name, found)


def _preview(desk: Desk, stage: PlannedStage, source: Source, policy: Source) -> Preview:
    from alignkit.estimate.answer_length import settled
    from alignkit.estimate.counting import RowCounts, count_tokens, learn_of
    from alignkit.estimate.encoded_rows import preview

    needs, audit = settled(desk, stage, stage.needs), desk.audits[source.name]
    counted = count_tokens(desk, source, policy, learn_of(needs))
    rows = RowCounts(audit.rows, audit.held_out)
    found = preview(desk.open(policy), desk.open(source), needs, counted, rows)
    return found if _alone(stage, source) else replace(found, steps=None)


def _alone(stage: PlannedStage, source: Source) -> bool:
    """Return whether a source is all that a stage takes in its role, so that its rows tell the steps."""
    return all(len(names) == 1 for names in stage.inputs.values() if source.name in names) and not stage.mix


def known_previews(stage: PlannedStage, runs: Path) -> Iterator[StagePreview]:
    """Yield what was found before of what a stage gets."""
    for name in stage.taken:
        if found := _known(_note(stage, name, runs)):
            yield StagePreview(stage.name, name, found)


def _note(stage: PlannedStage, source: str, runs: Path) -> Path | None:
    if not stage.fingerprint:
        return None
    return note_path(rundir.cache_folder(runs), "preview", VERSION, stage.fingerprint, source)


def _known(note: Path | None) -> Preview | None:
    facts = read_note(note) if note else {}
    return Preview.from_dict(facts) if facts else None
