"""The packages that a recipe requires."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from alignkit.errors import RecipeError
from alignkit.recipe.recipe import Recipe


def missing_packages(recipe: Recipe) -> Iterator[RecipeError]:
    """Yield each package that is missing or too old or new, with the line that installs it."""
    if not recipe.requires:
        return
    from packaging.requirements import InvalidRequirement, Requirement

    for text in recipe.requires:
        where = recipe.where("requires")
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            yield RecipeError(f"requires: {text!r} is no requirement", where, 'write ["alignkit-dpo>=0.1"]')
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            yield RecipeError(f"the recipe needs the package {text!r}", where, f"pip install {text!r}")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            yield RecipeError(
                f"the recipe needs {text!r}, and {wanted.name} {found} is installed", where, f"pip install {text!r}"
            )
