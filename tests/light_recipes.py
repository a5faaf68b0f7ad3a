"""Recipes of methods that need no torch, for what is tried without a model."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from alignkit.cli import main

Alignkit = Callable[..., Result]
"""Calls the command line."""

PLUGIN = Path(__file__).parent / "light" / "methods.py"
"""The methods."""


def light_recipe(*, top: str = "", first: str = "", second: str = "", spare: bool = False) -> str:
    """Return a recipe of two stages, with these lines at the top and in each; a spare stage is wanted by nobody."""
    stages = [("first", "count", first), ("second", "shout", second), *([("spare", "count", "")] if spare else [])]
    parts = [f'\nname = "light"\nseed = 1\n{_line(top)}']
    parts += [f'[stage.{name}]\nmethod = "{method}"\n{_line(more)}' for name, method, more in stages]
    return "".join(parts)


def _line(text: str) -> str:
    return f"{text}\n" if text else ""


def desk_with(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a recipe in it."""
    monkeypatch.chdir(folder)
    (folder / "light.toml").write_text(recipe)
    return folder


def command_line(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Alignkit:
    """Call the command line in a folder of the test's own, with a recipe and its plugin beside it."""
    desk_with(recipe, folder, monkeypatch)
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    monkeypatch.delenv("COLUMNS", raising=False)
    (folder / "methods.py").write_text(PLUGIN.read_text())
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words], prog_name="alignkit")


def dotted(changes: dict[str, object]) -> dict[str, object]:
    """Return what `--set` changes: `first__count__steps` is `first.count.steps`."""
    return {key.replace("__", "."): value for key, value in changes.items()}
