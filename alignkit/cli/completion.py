"""What a shell may complete: recipes, stages of a recipe, methods. Quick, and silent where something is wrong."""

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from click import Context, Parameter
from click.shell_completion import CompletionItem

from alignkit.errors import AlignkitError
from alignkit.recipe.packaged import find_recipe, packaged_recipes

SHELLS_OWN = "file"
"""The type of an item that lets the shell complete files by itself."""


def recipes(context: Context, parameter: Parameter, begun: str) -> list[CompletionItem]:
    """Complete a recipe: packaged ones by name, files that end in .toml; folders where nothing else fits."""
    names = [name for name in packaged_recipes() if name.startswith(begun)]
    folder, _, start = begun.rpartition("/")
    place = Path(f"{folder}/" if "/" in begun else ".").expanduser()
    files = sorted(file.name for file in place.glob("*.toml") if file.name.startswith(start))
    ahead = begun[: len(begun) - len(start)]
    found = [CompletionItem(name) for name in (*names, *(f"{ahead}{file}" for file in files))]
    return found or [CompletionItem(begun, type=SHELLS_OWN)]


def templates(context: Context, parameter: Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a packaged recipe."""
    return [CompletionItem(name) for name in packaged_recipes() if name.startswith(begun)]


def stages(context: Context, parameter: Parameter, begun: str) -> list[CompletionItem]:
    """Complete a stage of the recipe that stands on the command line already."""
    left = (word for word in context.args if not word.startswith("-"))  # click stops parsing at an option without value
    name = context.params.get("recipe") or context.params.get("what") or next(left, None)
    table: Any = {}
    with suppress(AlignkitError, OSError, ValueError):
        table = tomllib.loads(find_recipe(str(name)).read_text("utf-8")).get("stage", {}) if name else {}
    return [CompletionItem(one) for one in (table if isinstance(table, Mapping) else {}) if one.startswith(begun)]


def methods(context: Context, parameter: Parameter, begun: str) -> list[CompletionItem]:
    """Complete a method, with what it does."""
    from alignkit.plugins import load_plugins

    offered = load_plugins((), examined=False).methods.values()
    return [CompletionItem(one.name, help=one.summary) for one in offered if one.name.startswith(begun)]


def runs(context: Context, parameter: Parameter, begun: str) -> list[CompletionItem]:
    """Complete a kept run: a recipe's name for its last one, or an id, the last one first."""
    from alignkit.store.rundir import recipe_folders
    from alignkit.store.runs import kept_runs

    place = Path(context.params.get("runs") or "runs")
    found: list[CompletionItem] = []
    with suppress(OSError):
        recipes = [CompletionItem(folder.name, help="the last run") for folder in recipe_folders(place)]
        found = [*recipes, *(CompletionItem(run.id, help=run.state) for run in reversed(kept_runs(place)))]
    return [item for item in found if str(item.value).startswith(begun)]


def reproducible(context: Context, parameter: Parameter, begun: str) -> list[CompletionItem]:
    """Complete a kept run, or a recipe; folders and files where nothing else fits."""
    found = [*recipes(context, parameter, begun), *runs(context, parameter, begun)]
    named = [item for item in found if item.type != SHELLS_OWN]
    return named or found
