"""Commands for those who write recipes and methods."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alignkit.cli import completion
from alignkit.cli.options import PLUGINS, RUNS
from alignkit.cli.printing import print_json
from alignkit.errors import RecipeError

if TYPE_CHECKING:
    from alignkit.plugins import Plugins


@click.command()
@click.argument("path", metavar="[NAME.toml]", required=False)
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option(
    "--template",
    metavar="NAME",
    shell_complete=completion.templates,
    default="rlhf",
    show_default=True,
    help="The packaged recipe to start from, where no FILE is given.",
)
@click.option("--model", metavar="ADDRESS", help="What learns from the FILEs: hf:OWNER/NAME, a folder, builtin:tiny.")
@click.option("--online", is_flag=True, help="Learn a reward of pairs, and align by PPO, instead of by pairs directly.")
@RUNS
def init(path: str | None, files: Sequence[str], template: str, model: str | None, online: bool, runs: Path) -> None:
    """Write a recipe to start from, and its schema for editors: of FILEs of your own (KIND:FILE says what one holds),
    else a packaged one. Never overwrites."""
    from alignkit.plan.schema import recipe_schema
    from alignkit.plugins import load_plugins
    from alignkit.recipe.starter import write_schema, write_starter

    plugins = load_plugins(())
    if path and not path.endswith(".toml"):
        files, path = (path, *files), None
    if files:
        target = write_own(Path(path or "mine.toml"), files, model, plugins, runs, online=online)
    elif model or online:
        raise RecipeError("no file of rows is named", "alignkit init", "name your files after the recipe's name")
    else:
        target = write_starter(template, Path(path) if path else None)
    write_schema(recipe_schema(plugins), target.parent)
    click.echo(f"{target} is written; see what it does: alignkit plan {shlex.quote(str(target))}")


def write_own(
    target: Path, files: Sequence[str], model: str | None, plugins: "Plugins", runs: Path, *, online: bool
) -> Path:
    """Recognise files, telling what each holds, and write a recipe of them."""
    from alignkit.estimate.own_recipe import Wish, own_recipe
    from alignkit.recipe.starter import starter, write_new
    from alignkit.sources.own_files import own_file

    if model is None:
        raise RecipeError("no model is named", "--model", "write hf:OWNER/NAME, a folder, or builtin:tiny for a trial")
    if target.exists():
        raise RecipeError("the file exists already", str(target), "choose another name: alignkit init NAME.toml")
    found = [own_file(file, ask_kind if sys.stdin.isatty() else None) for file in files]
    for one in found:
        click.echo(f"{one.what}: {one.word}")
    write_new(target, starter(own_recipe(Wish(target, model, found, plugins, runs, online)), target))
    return target


def ask_kind(file: str, kinds: Sequence[str]) -> str:
    """Ask which of several kinds a file holds."""
    answer: str = click.prompt(f"What does {file} hold?", type=click.Choice(kinds), err=True)
    return answer


@click.command()
@PLUGINS
def schema(plugins: Sequence[Path]) -> None:
    """Print the JSON Schema of recipes with every installed method's settings, for editors."""
    from alignkit.plan.schema import recipe_schema
    from alignkit.plugins import load_plugins

    print_json(recipe_schema(load_plugins(plugins)))


@click.command()
@click.argument("name")
@click.option("--in", "place", type=click.Path(path_type=Path, file_okay=False), default=".", help="Where to write it.")
def new(name: str, place: Path) -> None:
    """Write a package with a method NAME that works and passes its tests, to make your own of. Never overwrites."""
    from alignkit.scaffold import new_package

    folder = new_package(name, place)
    click.echo(f"{folder} is written; go on with: cd {shlex.quote(str(folder))}; pip install -e .; pytest")
