"""What commands print: results to standard output, the rest to standard error."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from alignkit.errors import AlignkitError
from alignkit.text import line_width, plain, short, table

if TYPE_CHECKING:
    from alignkit.contract.events import Event
    from alignkit.show.console import Console

log = logging.getLogger(__name__)


def print_results(console: "Console", run: Path, *, err: bool) -> None:
    """Print what each stage made, the verdict, and where the run's report lies."""
    from alignkit.show.verdict import verdict_on
    from alignkit.store.rundir import report_path
    from alignkit.store.runs import KeptRun

    report = report_path(run)
    print_painted(console.closing(width(), Path.cwd()), err=err)
    try:
        for line in table([("verdict:", verdict_on(KeptRun(run)).lead)], width()):
            click.echo(plain(line), err=err)
    except Exception as error:  # what is only shown costs no run
        log.warning("the verdict cannot be told (%r)", error)
    if report.is_file():
        click.echo(f"report: {short(report, Path.cwd())}", err=err)


def print_problems(error: AlignkitError) -> None:
    for problem in error.problems:
        click.echo(plain(f"error: {problem}"), err=True)


def printer(file: TextIO) -> Callable[["Event"], None]:
    """Return what prints events as JSON Lines; numbers that JSON does not have become null."""
    from alignkit.contract.events import to_json
    from alignkit.store.journal import finite

    return lambda event: click.echo(json.dumps(finite(to_json(event)), ensure_ascii=False), file=file)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_lines(lines: Iterable[str], err: bool = False, painted: bool = False) -> None:
    """Print lines, of which only painted ones may hold what a terminal acts on."""
    for line in lines:
        click.echo(line if painted else plain(line), err=err)


def print_painted(lines: Iterable[str], err: bool = False) -> None:
    """Print lines with states and warnings in colour, where the terminal has colours."""
    from alignkit.show.colours import console_on, painted

    terminal = console_on(sys.stderr if err else sys.stdout)
    for line in painted(lines):
        terminal.print(line)


def width() -> int | None:
    return line_width(sys.stdout)


def bold(text: str) -> str:
    return plain(text) if os.environ.get("TERM") == "dumb" else click.style(plain(text), bold=True)
