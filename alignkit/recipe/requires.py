"""The packages that a recipe requires, and those that its trackers do."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from alignkit.contract.tracker import TrackerFunction
from alignkit.errors import AlignkitError, PluginError, RecipeError
from alignkit.plugins import Plugins
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


def chosen_trackers(recipe: Recipe, plugins: Plugins) -> tuple[list[TrackerFunction], list[AlignkitError]]:
    """Return the trackers that a recipe names, and what is wrong with them: not offered, or its library is missing."""
    found: list[TrackerFunction] = []
    errors: list[AlignkitError] = []
    for name in dict.fromkeys(recipe.trackers):
        try:
            found.append(plugins.tracker(name))
            _check_library(name, plugins)
        except AlignkitError as error:
            errors.append(type(error)(error.problem, recipe.where("trackers"), error.remedy))
    return found, errors


def _check_library(name: str, plugins: Plugins) -> None:
    """Raise PluginError where a package that a tracker's own package requires is not installed."""
    from packaging.requirements import Requirement

    origin = plugins.origins[f"tracker:{name}"]
    for line in requires(origin.package) or () if origin.file is None else ():
        wanted = Requirement(line)
        try:
            version(wanted.name)
        except PackageNotFoundError:
            problem = f"the tracker {name!r} needs {wanted.name}, which is not installed"
            raise PluginError(problem, remedy=f"pip install {str(wanted)!r}") from None
