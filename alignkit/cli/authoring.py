"""Commands for those who write recipes and methods."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from alignkit.cli import completion
from alignkit.cli.options import PLUGINS
from alignkit.cli.printing import print_json


@click.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--template",
    metavar="NAME",
    shell_complete=completion.templates,
    default="rlhf",
    show_default=True,
    help="The packaged recipe to start from.",
)
def init(path: Path | None, template: str) -> None:
    """Write a recipe to start from, to PATH (default: NAME.toml), and its schema for editors. Never overwrites."""
    from alignkit.plan.schema import recipe_schema
    from alignkit.plugins import load_plugins
    from alignkit.recipe.starter import write_schema, write_starter

    written = write_starter(template, path)
    write_schema(recipe_schema(load_plugins(())), written.parent)
    click.echo(f"{written} is written; see what it does: alignkit plan {shlex.quote(str(written))}")


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
