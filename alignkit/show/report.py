"""The report of a run: one HTML file that opens anywhere, without a network, and says only what the files say."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from alignkit.contract.events import Sample
from alignkit.estimate.preview import Preview
from alignkit.show.audit_lines import concerns, facts, read_as, shortened, token_lengths, tokens
from alignkit.show.by_round import figures_by_round, pictures_by_round, table_by_round
from alignkit.show.charts import Axis, Node, bar_chart, graph
from alignkit.show.frontier import frontier_of_stage
from alignkit.show.pictures import FIRST, Picture, curves_of, pictures_of
from alignkit.show.range_picture import drawn_range
from alignkit.show.sample_cards import Card, cards_of
from alignkit.show.verdict import verdict_on
from alignkit.sources.audit import LENGTHS, Audit
from alignkit.store.durable import write_text
from alignkit.store.rundir import SHORT
from alignkit.store.runs import KeptRun, KeptStage
from alignkit.text import duration, number, plain, size

if TYPE_CHECKING:
    from jinja2 import Environment

POINTS = 240
"""A curve has no more."""

MOST_POINTS = 30_000
"""Of all curves together, about 12 bytes each, so that the file stays below a megabyte and a half."""

MOST_SAMPLES = 8
"""Of each kind, of a stage."""

REFRESH = 5
"""Seconds after which the page of a run that goes on is read again."""


@dataclass(frozen=True)
class StagePage:
    """One stage as the report shows it."""

    kept: KeptStage
    folder: str
    """Relative to the report; empty where there is none."""
    curves: Sequence[Picture]
    pictures: Sequence[Picture]
    previews: Sequence[tuple[str, Preview, Picture]]
    """What it gets of each source, by the source's name, and the lengths of that."""
    cards: Sequence[tuple[str, Sequence[Card]]]
    left_out: int
    """Samples that are not shown."""


def write_report(run: KeptRun, lead: "Markup | str" = "") -> None:
    """Write the report of what lies in the folders of a run and of its stages now; `lead` is what it begins with, in
    place of the verdict."""
    told = sum(len({name for event in stage.metrics for name in event.values}) for stage in run.stages)
    points = min(POINTS, max(20, MOST_POINTS // max(1, told)))
    write_text(run.report, _render(run, [_page_of(run, stage, points) for stage in run.stages], lead))


def _page_of(run: KeptRun, stage: KeptStage, points: int) -> StagePage:
    samples = [event for event in stage.events if isinstance(event, Sample)]
    cards = cards_of(samples, MOST_SAMPLES)
    return StagePage(
        kept=stage,
        folder=os.path.relpath(stage.folder, run.folder) if stage.folder else "",
        curves=curves_of(stage.metrics, points, stage.bounds),
        pictures=[*frontier_of_stage(stage), *pictures_of(stage.metrics, stage.rows)],
        previews=[
            (source, preview, _lengths(token_lengths(preview), "tokens of a row"))
            for source, one in run.previews.get(stage.name, {}).items()
            for preview in [Preview.from_dict(one)]
        ],
        cards=cards,
        left_out=len(samples) - sum(len(several) for _, several in cards),
    )


def _lengths(counted: Sequence[tuple[int, int]], unit: str) -> Picture:
    """Draw how many rows are at most how long."""
    bars = [(str(bound), float(rows)) for bound, rows in counted]
    return Picture("Lengths", bar_chart("Lengths", bars, Axis(f"{unit}, up to"), Axis("rows", whole=True)))


def _drawn(audit: Audit) -> list[Picture]:
    """Draw what an audit found: lengths, and how the rows stand to each other."""
    found = {
        "learnt": audit.rows,
        "held out": audit.held_out,
        "twice": audit.duplicates,
        "near": audit.near,
        "overlap": audit.overlap,
        "bad": audit.bad,
    }
    told = "twice: equal to another row; near: but for case and white space; overlap: held-out, with a learnt prompt"
    rows = bar_chart(
        "Rows", [(name, float(count)) for name, count in found.items()], Axis(""), Axis("rows", whole=True)
    )
    return [
        _lengths(list(zip((*LENGTHS, audit.longest), audit.lengths, strict=True)), "characters of a row"),
        Picture("Rows", rows, told),
    ]


def _audit(found: Mapping[str, Any]) -> Audit:
    """Read an audit as it was kept; what other versions noted besides is left out."""
    return Audit(**{field.name: found[field.name] for field in fields(Audit) if field.name in found})


def chain_of(run: KeptRun) -> Markup:
    """Draw the stages that were wanted, each below those that it takes, with state and time."""
    names = [stage.name for stage in run.stages if stage.wanted]
    nodes = [
        Node(
            stage.name,
            (stage.method, _state_and_time(stage)),
            _colour(stage),
            tuple(name for several in stage.inputs.values() for name in several if name in names),
        )
        for stage in run.stages
        if stage.wanted
    ]
    return graph(nodes)


def _state_and_time(stage: KeptStage) -> str:
    return f"{stage.state}, {duration(stage.facts['seconds'])}" if stage.facts else stage.state


def _colour(stage: KeptStage) -> str:
    return {"finished": "finished", "reused": "reused", "not begun": "open", "not finished": "open"}.get(
        stage.state.partition(",")[0], "wrong"
    )


def pages(*rooms: str) -> "Environment":
    """Return the templates of pages, those of other rooms besides, with the words that they use."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    folder = FileSystemLoader([here, *(here.with_name(room) for room in rooms)])
    found = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    told = (number, duration, size, read_as, plain, shortened, tokens, concerns, arrows, drawn_range)
    found.filters |= {function.__name__: function for function in told}
    return found


def arrows(text: str) -> str:
    """Write arrows as one character, which no line breaks in two."""
    return text.replace("->", "\N{RIGHTWARDS ARROW}")


def style() -> Markup:
    """Return the style sheet of pages."""
    return Markup(Path(__file__).with_name("report.css").read_text("utf-8"))  # noqa: S704  # a file of this package


def _render(run: KeptRun, stages: Sequence[StagePage], lead: "Markup | str") -> str:
    audits = [_audit(found) for found in run.audits.values()]
    script = Path(__file__).with_name("report.js").read_text("utf-8")
    by_round = figures_by_round(run)
    text: str = (
        pages()
        .get_template("report.html")
        .render(
            run=run,
            verdict=verdict_on(run),
            audits=[(audit, list(facts(audit)), list(audit.remarks()), _drawn(audit)) for audit in audits],
            stages=stages,
            shown_first=next((one.kept.name for one in reversed(stages) if one.cards), ""),
            chain=chain_of(run),
            by_round=table_by_round(by_round),
            rounds=pictures_by_round(by_round),
            warnings=[warning for stage in run.stages for warning in stage.warnings],
            lead=lead,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            refresh=REFRESH,
            short=SHORT,
            first=FIRST,
            style=style(),
            script=Markup(script),  # noqa: S704  # a file of this package
        )
    )
    return text
