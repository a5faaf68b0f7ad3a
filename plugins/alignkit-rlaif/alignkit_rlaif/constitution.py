"""Principles that answers are judged by."""

import tomllib
from importlib.resources import files

from alignkit import Text


def principles_of(constitution: Text | None) -> tuple[str, ...]:
    """Return the principles of a recipe's constitution, one in each row, or those that come with this package."""
    if constitution is not None:
        return tuple(row["text"] for rows in (constitution.train(), constitution.held_out()) for row in rows)
    packaged = tomllib.loads(files("alignkit_rlaif").joinpath("constitution.toml").read_text("utf-8"))
    return tuple(packaged["principles"])
