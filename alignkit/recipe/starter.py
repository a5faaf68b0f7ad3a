"""A first recipe of one's own: a packaged one, renamed and with a word on how to use it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.contract.names import NAME
from alignkit.errors import DiskError, RecipeError, near_miss
from alignkit.recipe.packaged import packaged_recipes

SCHEMA = "alignkit.schema.json"
"""The file beside a recipe that tells editors what it may say."""


def write_starter(template: str, path: Path | None = None) -> Path:
    """Write a packaged recipe to `path`, or to TEMPLATE.toml; give where it lies. Never overwrites."""
    packaged = packaged_recipes()
    if template not in packaged:
        hint = near_miss(template, list(packaged)) or f"the templates are {', '.join(packaged)}"
        raise RecipeError(f"there is no template {template!r}", "--template", hint)
    path = path or Path(f"{template}.toml")
    write_new(path, starter(packaged[template].read_text("utf-8"), path))
    return path


def write_new(path: Path, text: str) -> None:
    """Write a recipe. Raise RecipeError where there is such a file, and DiskError where none can be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RecipeError(
            "the file exists already", str(path), "choose another name: alignkit init NAME.toml"
        ) from error
    except OSError as error:
        raise DiskError(
            f"the recipe cannot be written ({error.strerror})", str(path), "choose another place"
        ) from error


def write_schema(schema: Mapping[str, Any], folder: Path) -> Path:
    """Write the schema of recipes where editors find it: anew where it is one of ours, and over nothing else."""
    path = folder / SCHEMA
    if path.is_file() and schema["title"] not in path.read_text("utf-8", errors="replace"):
        raise RecipeError("there is a file of that name, which is no schema of recipes", str(path), "move it away")
    path.write_text(json.dumps(schema, indent=1) + "\n", "utf-8")
    return path


def starter(text: str, path: Path) -> str:
    """Name a recipe after its file, and put a word on how to use it before it."""
    if NAME.fullmatch(path.stem):
        text = re.sub(r'^name = ".*"', f'name = "{path.stem}"', text, count=1, flags=re.MULTILINE)
    return (
        f"#:schema ./{SCHEMA}\n"
        f"# See what it does:            alignkit plan {path}\n"
        f"# Run it, or go on with it:    alignkit recipe {path}\n"
        "# What a method can be told:   alignkit methods NAME, for example alignkit methods ppo\n"
        "#\n"
        f"{text}"
    )
