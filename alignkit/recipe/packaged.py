"""Recipes by name: files, and those that come with alignkit."""

from pathlib import Path

from alignkit.errors import RecipeError, near_miss


def find_recipe(name: str | Path) -> Path:
    """Return the path of a recipe: a file, else the packaged recipe of that name. Raises RecipeError."""
    path = Path(name)
    if _exists(path):
        return path.resolve()
    if path.is_dir():
        raise RecipeError("this is a folder, not a recipe", str(path), "give the .toml file")
    packaged = packaged_recipes()
    stem = path.name.removesuffix(".toml")
    if stem in packaged and path == Path(path.name):
        return packaged[stem]
    remedy = near_miss(stem, list(packaged)) or f"the packaged recipes are {', '.join(packaged)}"
    raise RecipeError("there is no such recipe", str(path), remedy)


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise RecipeError(f"this is no path of a recipe ({error.strerror})", f"{str(path)[:60]}...") from error


def packaged_recipes() -> dict[str, Path]:
    """Return the recipes that come with alignkit, by name."""
    package = Path(__file__).parent.parent
    folder = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    return {path.stem: path for path in [*sorted(folder.glob("*.toml")), *sorted(folder.glob("papers/*.toml"))]}


def is_packaged(path: Path) -> bool:
    return path in packaged_recipes().values()
