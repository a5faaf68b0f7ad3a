"""What belongs to a machine and not to a recipe: `machines.toml` in the current folder, chosen by `--on NAME`."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, PositiveInt, ValidationError, model_validator

from alignkit.contract.settings import Settings
from alignkit.errors import RecipeError, near_miss

if TYPE_CHECKING:
    from alignkit.estimate.preflight import Sharing

FILE = "machines.toml"
SHAPE = (
    'a machine has processes and nodes, whole numbers; start: "here"; '
    'sharded and activation_checkpointing: true, false or "auto"; '
    'compile: true or false; and optimiser_states: "fp32" or "8bit"'
)


class Machine(Settings):
    """One machine. Recorded with each stage, and no part of its fingerprint."""

    model_config = ConfigDict(strict=True)

    processes: PositiveInt = 1
    """Processes that share a stage, on each node; usually one for each GPU. They are started by torchrun."""
    nodes: PositiveInt = 1
    """Computers that share a stage."""
    start: Literal["here"] = "here"
    """How stages are started: `here`, on the computer where commands are given."""
    sharded: bool | Literal["auto"] = "auto"
    """Whether weights are cut up among the processes, or each holds all of them. `auto`: they are where a stage is
    estimated to need more memory than one process has."""

    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Whether layers are computed again for the gradient, so that a pass keeps little. `auto`: on a GPU, where few
    tokens would fit otherwise."""
    compile: bool = False
    """Whether layers that learn are compiled (torch.compile): half a minute at the start of a stage, faster steps."""
    optimiser_states: Literal["fp32", "8bit"] = "fp32"
    """How the optimiser keeps its two moments of each weight. `8bit`: in a quarter of the memory, by bitsandbytes; not
    where weights are cut up."""

    @model_validator(mode="after")
    def _agree(self) -> "Machine":
        if self.nodes > 1:
            raise ValueError(f'{self.nodes} nodes cannot be reached with start = "here"; leave nodes out')
        return self

    @property
    def world(self) -> int:
        """How many processes share a stage."""
        return self.nodes * self.processes

    @property
    def told(self) -> str:
        """Say in words what stages will run on."""
        if self.world == 1:
            return "one process"
        where = "where they do not fit one" if self.sharded == "auto" else "always"
        cut = f", among which weights are cut up {where}" if self.sharded else ", each of which holds all weights"
        each = "one process" if self.processes == 1 else f"{self.processes} processes"
        return f"{self.nodes} nodes with {each} each{cut}" if self.nodes > 1 else f"{each}{cut}"

    def sharing(self) -> "Sharing":
        """Return how stages are shared here, as their estimates take it."""
        from alignkit.estimate.preflight import Sharing

        return Sharing(
            self.world,
            self.sharded is not False,
            self.sharded is True,
            again=self.activation_checkpointing,
            compiles=self.compile,
            states=self.optimiser_states,
            nodes=self.nodes,
        )

    def decided(self, large: bool) -> "Machine":
        """Return it with `sharded` decided, for a stage that needs more memory than one process has, or less."""
        sharded = large if self.sharded == "auto" else self.sharded
        return self.model_copy(update={"sharded": sharded and self.world > 1})


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
        if first["type"] == "value_error":
            raise RecipeError(f"{where}: {first['ctx']['error']}", str(path)) from error
        raise RecipeError(f"{where}: {first['msg']}", str(path), SHAPE) from error
