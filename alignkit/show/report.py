"""The report of a run: one HTML file that opens anywhere, without a network, and says only what the files say."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.estimate.preview import Preview
from alignkit.show.audit_lines import concerns, facts, read_as, shortened, token_lengths, tokens
from alignkit.show.curves import HEIGHT, POINTS, WIDTH, Curve, curves
from alignkit.show.planned import SHORT
from alignkit.sources.audit import Audit
from alignkit.store.durable import write_text
from alignkit.store.runs import KeptRun, KeptStage
from alignkit.text import duration, number, plain, size

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_POINTS = 30_000
"""Of all curves together, about 12 bytes each, so that the file stays below a megabyte."""

MOST_SAMPLES = 24
"""Rows of samples of a stage."""

MOST_TEXT = 1_500
"""Characters of one text of a sample."""


@dataclass(frozen=True)
class StagePage:
    """One stage as the report shows it."""

    kept: KeptStage
    folder: str
    """Relative to the report; empty where there is none."""
    curves: Sequence[Curve]
    previews: Sequence[tuple[str, Preview]]
    """What it gets of each source, by the source's name."""
    columns: Sequence[str]
    """Of the samples."""
    samples: Sequence[Sequence[str]]
    left_out: int
    """Samples that are not shown."""


def write_report(run: KeptRun, lead: "Markup | str" = "") -> None:
    """Write the report of what lies in the folders of a run and of its stages now; `lead` is what it begins with."""
    told = sum(len({name for event in stage.metrics for name in event.values}) for stage in run.stages)
    points = min(POINTS, max(20, MOST_POINTS // max(1, told)))
    stages = [_page_of(run, stage, points) for stage in run.stages]
    write_text(run.report, _render(run, stages, lead))


def _page_of(run: KeptRun, stage: KeptStage, points: int) -> StagePage:
    columns = list(dict.fromkeys(key for row in stage.samples for key in row))
    return StagePage(
        kept=stage,
        folder=os.path.relpath(stage.folder, run.folder) if stage.folder else "",
        curves=curves(stage.metrics, points),
        previews=[(source, Preview.from_dict(one)) for source, one in run.previews.get(stage.name, {}).items()],
        columns=columns,
        samples=[[_shown(row.get(key, "")) for key in columns] for row in stage.samples[:MOST_SAMPLES]],
        left_out=max(0, len(stage.samples) - MOST_SAMPLES),
    )


def _shown(value: str | float) -> str:
    text = value if isinstance(value, str) else number(float(value))
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ..."


def _audit(found: Mapping[str, Any]) -> Audit:
    """Read an audit as it was kept; what other versions noted besides is left out."""
    return Audit(**{field.name: found[field.name] for field in fields(Audit) if field.name in found})


def _render(run: KeptRun, stages: Sequence[StagePage], lead: "Markup | str") -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    told = (number, duration, size, read_as, plain, shortened, tokens, token_lengths, concerns)
    page.filters |= {function.__name__: function for function in told}
    audits = [_audit(found) for found in run.audits.values()]
    text: str = page.get_template("report.html").render(
        run=run,
        audits=[(audit, list(facts(audit)), list(audit.remarks())) for audit in audits],
        stages=stages,
        warnings=[warning for stage in run.stages for warning in stage.warnings],
        lead=lead,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        short=SHORT,
        width=WIDTH,
        height=HEIGHT,
    )
    return text
