"""The command of a machine, a template whose placeholders are filled in for each start of a stage."""

import shlex
from collections.abc import Mapping, Sequence
from string import Formatter

from alignkit.errors import near_miss

RUN = "run"
PLACEHOLDERS = (RUN, "folder", "nodes", "processes", "name")


def check_template(template: Sequence[str]) -> None:
    """Raise ValueError where a template cannot be filled in, or runs no stage."""
    used = [name for word in template for name in _names(word)]
    for name in used:
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{one}}}" for one in PLACEHOLDERS)
            hint = near_miss(name, PLACEHOLDERS) or f"there are {known}; a brace is written twice"
            raise ValueError(f"command has no placeholder {{{name}}}; {hint}")
    if RUN not in used:
        raise ValueError("command runs no stage: write {run} where the command stands that runs it on a node")


def _names(word: str) -> list[str]:
    try:
        parts = list(Formatter().parse(word))
    except ValueError as error:
        raise ValueError(f"command: {word!r} has a single brace; a brace is written twice") from error
    return [f"{name}{'!' if conversion else ''}{rest}" for _, name, rest, conversion in parts if name is not None]


def filled(template: Sequence[str], run: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """Return the words of the command. A word that is `{run}` alone becomes the words of `run`, inside another one
    they stand as a shell reads them."""
    inside = {**values, RUN: shlex.join(run)}
    return [part for word in template for part in (run if word == f"{{{RUN}}}" else [word.format_map(inside)])]
