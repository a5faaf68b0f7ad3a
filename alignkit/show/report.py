"""The report of a run: one HTML file that opens anywhere, without a network, and says only what the files say."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from alignkit.contract.events import Event, Metrics, Result, Sample, StageFinished, Warned
from alignkit.contract.kinds import Records
from alignkit.errors import AlignkitError
from alignkit.estimate.preview import Preview
from alignkit.estimate.stage_previews import known_previews
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.show.audit_lines import concerns, facts, read_as, shortened, token_lengths, tokens
from alignkit.show.curves import HEIGHT, POINTS, WIDTH, Curve, curves
from alignkit.show.metrics import latest
from alignkit.show.offered import Setting, in_toml, settings_of
from alignkit.show.planned import SHORT, flat, show_sources, state_of
from alignkit.sources.audit import Audit
from alignkit.sources.audited import known
from alignkit.store import rundir
from alignkit.store.durable import write_text
from alignkit.store.journal import read_journal
from alignkit.store.results import told_facts
from alignkit.text import duration, number, plain, size

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_POINTS = 30_000
"""Of all curves together, about 12 bytes each, so that the file stays below a megabyte."""

MOST_SAMPLES = 24
"""Rows of samples of a stage."""

MOST_TEXT = 1_500
"""Characters of one text of a sample."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageFacts:
    """What is known of one stage, as the report shows it."""

    plan: PlannedStage
    origin: str
    state: str
    folder: str
    """Relative to the report; empty where there is none."""
    facts: Mapping[str, Any]
    """Of `stage.json`; empty while the stage is not finished."""
    settings: Sequence[tuple[Setting, str]]
    results: Sequence[Result]
    curves: Sequence[Curve]
    columns: Sequence[str]
    """Of the samples."""
    previews: Sequence[tuple[str, Preview]]
    """What it gets of each source, by the source's name."""
    samples: Sequence[Sequence[str]]
    left_out: int
    """Samples that are not shown."""
    warnings: Sequence[Warned]


class Report:
    """Writes the report after each stage, and at the end, also where that is a failure.

    `with Report(plan, runs) as report: run_plan(..., observers=[report])`
    """

    def __init__(self, plan: Plan, runs: Path) -> None:
        self._plan, self._runs = plan, runs.resolve()
        self._reused: set[str] = set()
        self.path = rundir.report_path(self._runs, plan.recipe.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure = "" if error is None else str(error) if isinstance(error, AlignkitError) else repr(error)
        try:
            self._write(failure)
        except OSError as problem:
            log.warning("%s cannot be written (%s)", self.path, problem.strerror)

    def __call__(self, event: Event) -> None:
        """Take notice of one event."""
        if isinstance(event, StageFinished):
            if event.reused:
                self._reused.add(event.stage)
            self._write("")

    def _write(self, failure: str) -> None:
        write_report(self.path, self._plan, self._runs, reused=self._reused, failure=failure)


def write_report(
    path: Path, plan: Plan, runs: Path, *, reused: set[str] | None = None, failure: str = "", lead: "Markup | str" = ""
) -> None:
    """Write the report of what lies in the stages' folders now.

    `failure` says why the run ended early; `lead` is what the page begins with.
    """
    journals = {stage.name: _journal(runs, stage) for stage in plan.stages if stage.wanted}
    told = [
        name for events in journals.values() for name in {n for e in events if isinstance(e, Metrics) for n in e.values}
    ]
    points = min(POINTS, max(20, MOST_POINTS // max(1, len(told))))
    stages = [
        _gather(path, plan, runs, stage, journals.get(stage.name, []), reused or set(), points) for stage in plan.stages
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = [one for one in plan.used_sources() if issubclass(one.kind, Records)]
    audits = [audit for one in sources if (audit := known(one, rundir.cache_folder(runs)))]
    write_text(path, _render(plan, stages, audits, failure, lead))


def _journal(runs: Path, stage: PlannedStage) -> list[Event]:
    folder = _folder(runs, stage)
    return read_journal(stage.name, folder) if folder else []


def _folder(runs: Path, stage: PlannedStage) -> Path | None:
    """Find the stage's folder, finished or not."""
    if stage.fingerprint is None:
        return None
    working = rundir.partial_folder(runs, stage.name, stage.fingerprint)
    finished = rundir.stage_folder(runs, stage.name, stage.fingerprint)
    return next((folder for folder in (finished, working) if folder.is_dir()), None)


def _gather(
    path: Path, plan: Plan, runs: Path, stage: PlannedStage, events: Sequence[Event], reused: set[str], points: int
) -> StageFacts:
    folder = _folder(runs, stage) if stage.wanted else None
    facts = told_facts(folder) if folder else {}
    samples = [event.row for event in events if isinstance(event, Sample)]
    columns = list(dict.fromkeys(key for row in samples for key in row))
    return StageFacts(
        plan=stage,
        origin=str(plan.plugins.origins[f"method:{stage.method.address}"]),
        state=_state(stage, folder, facts, reused),
        folder=os.path.relpath(folder, path.parent) if folder else "",
        facts=facts,
        settings=_settings(stage),
        results=latest(event for event in events if isinstance(event, Result)),
        curves=curves([event for event in events if isinstance(event, Metrics)], points),
        columns=columns,
        previews=[(one.source, one.preview) for one in known_previews(stage, runs)] if stage.wanted else [],
        samples=[[_shown(row.get(key, "")) for key in columns] for row in samples[:MOST_SAMPLES]],
        left_out=max(0, len(samples) - MOST_SAMPLES),
        warnings=[event for event in events if isinstance(event, Warned)],
    )


def _state(stage: PlannedStage, folder: Path | None, facts: Mapping[str, Any], reused: set[str]) -> str:
    if not stage.wanted:
        return state_of(stage)
    if facts:
        return "reused" if stage.name in reused else "finished"
    if folder and folder.suffix != ".partial":
        return "damaged"
    return "not finished" if folder else "not begun"


def _settings(stage: PlannedStage) -> list[tuple[Setting, str]]:
    """Pair each setting with its value."""
    values = flat(stage.settings.model_dump(mode="json"), stage.method.name)
    return [(setting, in_toml(values[setting.key])) for setting in settings_of(stage.method) if setting.key in values]


def _shown(value: str | float) -> str:
    text = value if isinstance(value, str) else number(float(value))
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ..."


def _render(
    plan: Plan, stages: Sequence[StageFacts], audits: Sequence[Audit], failure: str, lead: "Markup | str"
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    told = (number, duration, size, read_as, plain, shortened, tokens, token_lengths, concerns)
    page.filters |= {function.__name__: function for function in told}
    text: str = page.get_template("report.html").render(
        plan=plan,
        recipe=plan.recipe,
        sources=show_sources(plan),
        audits=[(audit, list(facts(audit)), list(audit.remarks())) for audit in audits],
        stages=stages,
        warnings=[warning for stage in stages for warning in stage.warnings],
        failure=failure,
        lead=lead,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        short=SHORT,
        width=WIDTH,
        height=HEIGHT,
    )
    return text
