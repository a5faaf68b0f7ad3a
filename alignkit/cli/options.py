"""The options that commands share, and what is made of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from alignkit.cli import completion
from alignkit.errors import RecipeError

if TYPE_CHECKING:
    from alignkit.plan.plan import Plan
    from alignkit.run.machine import Machine

F = TypeVar("F", bound=Callable[..., Any])

RUNS = click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="The folder of results.",
)
PLUGINS = click.option(
    "-p",
    "--plugin",
    "plugins",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE.py",
    help="Load a file as a plugin.",
)
SET = click.option("--set", "changes", metavar="KEY=VALUE", multiple=True, help="Change the recipe: align.method=dpo")
SEED = click.option("--seed", type=click.IntRange(min=0), help="Take another seed than the recipe's.")
TRACK = click.option(
    "--track", metavar="NAME", multiple=True, help="Send figures to this tracker, instead of those of the recipe."
)
UNTIL = click.option(
    "--until", metavar="STAGE", shell_complete=completion.stages, help="Run no more than this stage and what it needs."
)
AGAIN = click.option(
    "--again",
    metavar="STAGE",
    multiple=True,
    shell_complete=completion.stages,
    help="Run this stage although it is finished.",
)


JOBS = click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Run up to so many stages at the same time, where none waits for another.",
)
INLINE = click.option("--inline", is_flag=True, help="Run the stages in this process, for debugging.")
MACHINE = click.option("--on", "machine", metavar="NAME", help="Use this machine of ./machines.toml.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Show warnings, errors and the result alone.")
OFFLINE = click.option("--offline", is_flag=True, help="Open no connection; use what is on this machine.")


def options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Make one decorator of several, in the order in which help lists them."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def changes_of(given: Sequence[str]) -> Mapping[str, str]:
    changes = {}
    for change in given:
        key, sign, value = change.partition("=")
        if not sign or not key:
            raise RecipeError("not KEY=VALUE", f"--set {change}", "write --set KEY=VALUE")
        changes[key.strip()] = value
    return changes


def selection_of(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a command's words say of the plan, as `make_plan` takes it."""
    tracked = list(words.get("track", ()))
    changes = {**changes_of(words["changes"]), **({"trackers": tracked} if tracked else {})}
    return {"set": changes, **{key: value for key, value in words.items() if key not in ("changes", "track")}}


def how_of(words: dict[str, Any]) -> dict[str, Any]:
    """Take from a command's words how its stages are run."""
    machine, inline, again = machine_called(words.pop("machine")), words.pop("inline"), words.pop("again")
    how = {key: words.pop(key) for key in ("jobs", "offline")}
    return {"inline": inline, "again": again, "machine": machine, "check": True, **how}


def machine_called(name: str | None) -> "Machine":
    """Return the machine of this name; where none is named, this one, with one process."""
    from alignkit.run.machine import Machine, read_machine

    return read_machine(name, Path.cwd()) if name else Machine()


def planned(path: Path, **selection: Any) -> "Plan":
    from alignkit.plan.planner import make_plan

    return make_plan(path, **selection_of(selection))


def pinned_plan(path: Path, offline: bool, **selection: Any) -> "Plan":
    """Plan a recipe, and find out the commits of what it takes from the hub where they are not known yet."""
    plan = planned(path, **selection)
    if any(stage.wanted and stage.fingerprint is None for stage in plan.stages):
        from alignkit.plan.pin import pin

        click.echo("asking the hub for commits", err=True)
        pin(plan, selection["runs"], offline)
        plan = planned(path, **selection)
    return plan
