"""What belongs to a machine and not to a recipe: `machines.toml` in the current folder, chosen by `--on NAME`."""

import tomllib
from pathlib import Path

from pydantic import ConfigDict, PositiveInt, ValidationError

from alignkit.contract.settings import Settings
from alignkit.errors import RecipeError, near_miss

FILE = "machines.toml"


class Machine(Settings):
    """One machine. Recorded with each stage, and no part of its fingerprint."""

    model_config = ConfigDict(strict=True)

    processes: PositiveInt = 1
    """Processes that share a stage, usually one for each GPU; they are started by torchrun."""


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
