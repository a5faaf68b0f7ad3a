"""What belongs to a machine and not to a recipe: `machines.toml` in the current folder, chosen by `--on NAME`."""

import tomllib
from pathlib import Path

from pydantic import ConfigDict, PositiveInt, ValidationError

from alignkit.contract.settings import Settings
from alignkit.errors import RecipeError, near_miss
from alignkit.plan.plan import Plan

FILE = "machines.toml"


class Machine(Settings):
    """One machine. Recorded with each stage, and no part of its fingerprint."""

    model_config = ConfigDict(strict=True)

    processes: PositiveInt = 1
    """Processes that share a stage, usually one for each GPU; they are started by torchrun."""


def check_processes(plan: Plan, machine: Machine) -> None:
    """Refuse several processes for stages each of whose processes would do the whole of the work. Raise RecipeError.

    Methods that do not say what they need are not asked; those on our loops refuse when they run.
    """
    if machine.processes == 1:
        return
    alone = [stage for stage in plan.stages if stage.wanted and stage.needs and not stage.needs.shared]
    if alone:
        names = ", ".join(f"{stage.name!r} ({stage.method.name})" for stage in alone)
        raise RecipeError(
            f"each of {machine.processes} processes would do the whole of the work of {names}",
            remedy="choose a machine with one process; run the other stages by themselves with --until",
        )


def read_machine(name: str, folder: Path) -> Machine:
    """Read a machine of that name from the folder's `machines.toml`. Raises RecipeError."""
    path = folder / FILE
    try:
        machines = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"there is no {FILE}", str(folder), f"write it: [{name}] processes = 2") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not TOML ({error})", str(path), "correct the line") from error
    if name not in machines:
        known = list(machines)
        raise RecipeError(
            f"there is no machine {name!r}", str(path), near_miss(name, known) or f"there are {', '.join(known)}"
        )
    try:
        return Machine.model_validate(machines[name])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise RecipeError(f"{where}: {first['msg']}", str(path), "a machine has processes, a whole number") from error
