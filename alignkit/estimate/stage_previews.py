"""What the stages of a plan will be trained on: rows of its sources, as each stage's own model sees them.

What was counted and rendered is kept: the one by the content that it is of, the other by the stage, for its report.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alignkit.check.audit import Audit
from alignkit.check.rendered import Preview
from alignkit.contract.kinds import Policy, Records, RewardModel
from alignkit.contract.settings import Settings
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.plan.source import Source
from alignkit.run import rundir
from alignkit.run.durable import read_json, write_json, write_text
from alignkit.run.fetch import fetch
from alignkit.run.worker import prepare

if TYPE_CHECKING:
    from alignkit.learn.counting import Counted

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
                    write_json(note, found.as_dict())
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
    from alignkit.learn.counting import Rows
    from alignkit.learn.preview import preview
    from alignkit.run.answer_length import settled

    source, audit = plan.sources[name], audits[name]
    model, records = opened(policy, runs, offline), opened(source, runs, offline)
    assert isinstance(model, Policy)
    assert isinstance(records, Records)
    counted = count_tokens(source, policy, audit, stage.settings, runs, offline)
    rows = Rows(audit.rows, audit.held_out)
    settings = settled(plan, stage, stage.settings, audits, runs, offline)
    return preview(model, records, settings, counted, rows, stage.method.loop)


def known_previews(stage: PlannedStage, runs: Path) -> Iterator[StagePreview]:
    """Give what was found before of what a stage gets."""
    for name in (name for several in stage.inputs.values() for name in several):
        if found := _known(_note(stage, name, runs)):
            yield StagePreview(stage.name, name, found)


def _note(stage: PlannedStage, source: str, runs: Path) -> Path | None:
    made = stage.fingerprint and hashlib.sha256(f"{VERSION} {stage.fingerprint} {source}".encode()).hexdigest()
    return rundir.cache_folder(runs) / f"preview-{made[:16]}.json" if made else None


def _known(note: Path | None) -> Preview | None:
    facts = read_json(note) if note else {}
    return Preview.from_dict(facts) if facts else None


def count_tokens(
    source: Source, policy: Source, audit: Audit, settings: Settings, runs: Path, offline: bool
) -> "Counted":
    """Count the tokens of a source's rows by the tokenizer of a policy, or of a reward model, once for each content."""
    from alignkit.learn.counting import Counted, Lengths, Rows, count, learn_of
    from alignkit.learn.models import open_tokenizer, policy_tokenizer

    learn = learn_of(settings)
    content = [VERSION, source.fingerprint, source.kind.__name__, source.said(), policy.fingerprint, learn]
    text = json.dumps(content, sort_keys=True)
    note = rundir.cache_folder(runs) / f"tokens-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if facts := read_json(note):
        sides = {side: tuple(Lengths(*row) for row in facts[side]) for side in ("train", "held_out")}
        return Counted(**{**facts, **sides})
    records, model = opened(source, runs, offline), opened(policy, runs, offline)
    assert isinstance(records, Records)
    assert isinstance(model, Policy | RewardModel)
    tokenizer = policy_tokenizer(model) if isinstance(model, Policy) else open_tokenizer(model.path)
    found = count(records, Rows(audit.rows, audit.held_out), tokenizer, learn)
    if source.fingerprint and policy.fingerprint:
        write_text(note, json.dumps(asdict(found)))
    return found


def policy_of(plan: Plan, stage: PlannedStage) -> Source | None:
    """Follow a stage's policy, the first of several, back to the source that it comes from.

    Its tokenizer is the same all the way.
    """
    return next(iter(policies_of(plan, stage)), None)


def policies_of(plan: Plan, stage: PlannedStage) -> list[Source]:
    """Follow all policies that a stage takes back to the sources that they come from, each named once."""
    found: dict[str, Source] = {}
    for name in (name for role in policy_roles(stage) for name in stage.inputs.get(role, ())):
        beginnings = [plan.sources[name]] if name in plan.sources else policies_of(plan, plan.stage(name))[:1]
        found |= {source.name: source for source in beginnings}
    return list(found.values())


def policy_roles(stage: PlannedStage) -> list[str]:
    """Name the roles in which a stage takes policies, the one that it is about first."""
    return [role for role, given in stage.method.consumes.items() if Policy in given.kinds]


def opened(source: Source, runs: Path, offline: bool) -> object:
    """Get a source onto this machine, unpacked where it must be."""
    fetched = fetch([source], runs, offline)[source.name]
    if fetched.preparation:
        prepare(fetched.preparation)
    return fetched.artifact
