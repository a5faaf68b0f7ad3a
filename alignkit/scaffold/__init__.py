"""A new package with a method that works, for `alignkit new NAME`."""

from importlib.resources import files
from pathlib import Path
from string import Template

from alignkit.contract.names import NAME
from alignkit.errors import RecipeError
from alignkit.plugins import load_plugins

FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "$module.py": "method.py.txt",
    "tests/test_$function.py": "test.py.txt",
}


def new_package(name: str, place: Path) -> Path:
    """Write the package `alignkit-NAME` into a folder of that name at this place, and give the folder.

    Raise RecipeError where a method cannot have the name, or another one has it, or where the folder is there.
    """
    if not NAME.fullmatch(name):
        raise RecipeError(f"{name!r} is no name of a method", "alignkit new", "use a-z, 0-9 and hyphens")
    if origin := load_plugins().origins.get(f"method:{name}"):
        raise RecipeError(f"{name!r} is a method of {origin.package}", "alignkit new", "choose another name")
    folder = place / f"alignkit-{name}"
    if folder.exists():
        raise RecipeError("the folder is there already", str(folder), "choose another name, or remove it")
    function = name.replace("-", "_")
    title = "".join(part.capitalize() for part in name.split("-"))
    words = {"name": name, "function": function, "module": f"alignkit_{function}", "title": title}
    for target, template in FILES.items():
        file = folder / Template(target).substitute(words)
        file.parent.mkdir(parents=True, exist_ok=True)
        content = files("alignkit.scaffold").joinpath(template).read_text("utf-8")
        file.write_text(Template(content).substitute(words), "utf-8")
    return folder
