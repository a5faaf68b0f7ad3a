"""What a run came to, as a notebook shows it: a piece of HTML with its stages, warnings and a few answers."""

from collections.abc import Mapping

from alignkit.show.console import about
from alignkit.show.metrics import achieved
from alignkit.show.report import pages
from alignkit.show.verdict import verdict_on
from alignkit.store.runs import KeptRun
from alignkit.text import number, plain

SAMPLES = 3
"""Answers that are shown."""
LETTERS = 400
"""Of a text, at most."""


def result_page(run: KeptRun) -> str:
    """Return a run as a piece of HTML, the verdict on it first."""
    templates = pages()
    templates.filters |= {function.__name__: function for function in (about, achieved, cut)}
    text: str = templates.get_template("result.html").render(
        run=run,
        verdict=verdict_on(run),
        stages=[stage for stage in run.stages if stage.wanted],
        warnings=[warning for stage in run.stages for warning in stage.warnings],
        samples=samples_of(run),
    )
    return text


def samples_of(run: KeptRun) -> list[Mapping[str, str | float]]:
    """Return a few answers from before and after, of the last stage that shows such."""
    of_stages = [[row for row in stage.samples if {"before", "after"} <= row.keys()] for stage in run.stages]
    return next((rows[:SAMPLES] for rows in reversed(of_stages) if rows), [])


def cut(value: str | float) -> str:
    """Return a cell's text, no longer than people read here."""
    text = plain(value) if isinstance(value, str) else number(float(value))
    return text if len(text) <= LETTERS else f"{text[:LETTERS]} ..."
