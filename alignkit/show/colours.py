"""Colours of plain lines: states and warnings. Without colours, or with NO_COLOR, lines are the same."""

import re
from collections.abc import Iterable, Iterator
from typing import TextIO

from rich.console import Console
from rich.text import Text

from alignkit.text import plain

STYLES = {
    r"\bfinished( [0-9a-f]{8})?\b|\breused\b": "green",
    r"\bwill run( again)?\b": "cyan",
    r"\bresumes( at step \d+)?\b|^warning:": "yellow",
    r"\bnot needed\b": "dim",
    r"^(stage|source) .*|^(stage|needs)$": "bold",
}
"""Patterns of what is coloured, and how."""


def console_on(file: TextIO) -> Console:
    """Return what prints on a file, with colours where it has them, and wraps nothing."""
    return Console(file=file, highlight=False, soft_wrap=True, markup=False, emoji=False)


def painted(lines: Iterable[str]) -> Iterator[Text]:
    """Yield lines with colours, and without anything else that a terminal acts on."""
    for line in lines:
        text = Text(plain(line))
        for pattern, style in STYLES.items():
            text.highlight_regex(re.compile(pattern), style)
        yield text
