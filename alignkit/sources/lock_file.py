"""The lock file of a recipe: the commits that its hub addresses are pinned to."""

import json
from collections.abc import Mapping
from pathlib import Path

from alignkit.errors import RecipeError
from alignkit.recipe.packaged import is_packaged


def lock_path(recipe: Path, runs: Path) -> Path:
    """Say where a recipe's hub commits are kept: beside it, or under `runs` for a packaged recipe."""
    return (runs if is_packaged(recipe) else recipe.parent) / f"{recipe.stem}.lock"


def read_lock(path: Path) -> dict[str, str]:
    """Read the commits that hub addresses are pinned to; none where there is no lock file."""
    if not path.is_file():
        return {}
    try:
        lock = json.loads(path.read_text("utf-8"))
        return {str(address): str(commit) for address, commit in lock["hub"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            "the lock file cannot be read", str(path), "delete it; the next run writes it anew"
        ) from error


def write_lock(path: Path, commits: Mapping[str, str]) -> None:
    """Write the commits that hub addresses are pinned to."""
    text = json.dumps({"hub": dict(sorted(commits.items()))}, indent=2) + "\n"
    staged = path.with_suffix(".lock.new")
    staged.write_text(text, "utf-8")
    staged.replace(path)
