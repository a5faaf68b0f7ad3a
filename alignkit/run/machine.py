"""What belongs to a machine and not to a recipe: `machines.toml` in the current folder, chosen by `--on NAME`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from alignkit.contract.settings import Settings
from alignkit.errors import RecipeError, near_miss
from alignkit.run.command_words import check_template
from alignkit.serve.serving import Rollouts, Serving

if TYPE_CHECKING:
    from alignkit.estimate.preflight import Sharing

FILE = "machines.toml"
REQUEUES = 3
SAID = {
    "nodes": "the machine's nodes says it",
    "ntasks": "each node has one task",
    "ntasks-per-node": "each node has one task",
    "cpus-per-task": "write cpus_per_node",
    "gpus-per-node": "write gpus_per_node",
    "partition": "write partition",
    "time": "write time",
    "signal": "notice says it",
    "requeue": "the machine's requeue says it",
    "no-requeue": "the machine's requeue says it",
    "array": "a stage is one job",
}
"""Options of sbatch that are said otherwise."""
STARTED = {
    "here": "",
    "command": ", started by the machine's command",
    "slurm": ", started by SLURM",
    "ray": ", started by Ray",
}
SHAPE = (
    'a machine has processes and nodes, whole numbers; start: "here", "slurm", "ray" or "command"; '
    'sharded and activation_checkpointing: true, false or "auto"; '
    'compile: true or false; optimiser_states: "fp32" or "8bit"; and rollouts and rewards, tables with vllm or urls'
)


class Slurm(Settings):
    """What SLURM is asked for, for each stage."""

    model_config = ConfigDict(strict=True)

    time: str = Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")
    """How long a stage may run, as sbatch takes it: minutes, `hours:minutes:seconds` or `days-hours`."""
    partition: str | None = None
    """Where it is submitted to; unset: the cluster's default."""
    gpus_per_node: PositiveInt | None = None
    """GPUs that are asked for on each node; unset: none."""
    cpus_per_node: PositiveInt | None = None
    """Processors that are asked for on each node, for all its processes; unset: what the cluster gives, often one."""
    setup: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Lines of a shell before the stage, such as `source .venv/bin/activate`."""
    notice: PositiveInt = 180
    """Seconds before its time is over in which a stage keeps what it has learnt; it is then submitted again."""
    more: Mapping[str, str | int | bool] = {}
    """Other options of sbatch by their long names: `{ account = "lab", mem = "0", exclusive = true }`."""

    @field_validator("more")
    @classmethod
    def _not_said_elsewhere(cls, more: Mapping[str, str | int | bool]) -> Mapping[str, str | int | bool]:
        for option in more:
            if place := SAID.get(option.replace("_", "-")):
                raise ValueError(f"more cannot have {option!r}; {place}")
        return more


class Ray(Settings):
    """What Ray is asked for, for each stage."""

    model_config = ConfigDict(strict=True)

    resources: Mapping[str, Annotated[PositiveFloat, Field(strict=False)]] = Field(min_length=1)
    """What a stage has to itself on each node, for all its processes there: `{ GPU = 8, CPU = 64 }`, or a resource by
    the name that the cluster's nodes give it."""
    address: str | None = None
    """The cluster: `auto`, where this computer is one of its nodes, or an address such as `ray://head:10001`. Unset:
    one is made of this computer alone, while the run goes on."""


class Machine(Settings):
    """One machine. Recorded with each stage, and no part of its fingerprint."""

    model_config = ConfigDict(strict=True)

    processes: PositiveInt = 1
    """Processes that share a stage, on each node; usually one for each GPU. They are started by torchrun."""
    nodes: PositiveInt = 1
    """Computers that share a stage."""
    start: Literal["here", "slurm", "ray", "command"] = "here"
    """How stages are started: `here`, on the computer where commands are given; by `slurm`, `ray` or a `command`."""
    slurm: Slurm | None = None
    """What SLURM is asked for, with start = "slurm"."""
    ray: Ray | None = None
    """What Ray is asked for, with start = "ray"."""
    command: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """The words of a command that runs a stage and waits until it has ended, with start = "command". `{run}` becomes
    the command that is to run on each node; there are `{folder}`, where the stage works, `{nodes}`, `{processes}` and a
    `{name}` that no other start has."""
    requeue: NonNegativeInt | None = None
    """How often a stage is started again that a scheduler has ended (its time was over, others took its nodes), in a
    row without having kept anything new; not with start = "here". Unset: 3 times."""
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
    rollouts: Rollouts | None = None
    """Servers of vLLM that answer where a method learns from answers of its policy. Unset: the policy itself does."""
    rewards: Serving | None = None
    """Servers of vLLM that score by reward models. Unset: each is opened by the stage that asks it."""

    @model_validator(mode="after")
    def _agree(self) -> "Machine":
        if self.start == "here" and self.nodes > 1:
            raise ValueError(f'{self.nodes} nodes cannot be reached with start = "here"; leave nodes out')
        if self.start == "here" and self.requeue is not None:
            raise ValueError('nothing is started again with start = "here"; leave requeue out')
        if (self.start == "slurm") != (self.slurm is not None):
            raise ValueError('start = "slurm" and slurm = { time = "1:00:00" } need each other')
        if (self.start == "ray") != (self.ray is not None):
            raise ValueError('start = "ray" and ray = { resources = { CPU = 8 } } need each other')
        if self.ray and self.ray.resources.get("GPU", self.processes) < self.processes:
            raise ValueError(f"ray.resources has {self.ray.resources['GPU']:g} GPU for {self.processes} processes")
        if self.start == "command":
            check_template(self.command)
        elif self.command:
            raise ValueError('command needs start = "command"')
        if self.rewards and self.rewards.vllm and self.nodes > 1:
            raise ValueError("the server of rewards.vllm is on one node, and others do not reach it; name rewards.urls")
        return self

    @property
    def servers(self) -> Mapping[str, Serving]:
        """Servers that stages ask, by what they do."""
        found = {"rollouts": self.rollouts, "rewards": self.rewards}
        return {name: serving for name, serving in found.items() if serving}

    @property
    def world(self) -> int:
        """How many processes share a stage."""
        return self.nodes * self.processes

    @property
    def requeues(self) -> int:
        """How often in a row a stage is started again."""
        return REQUEUES if self.requeue is None else self.requeue

    @property
    def told(self) -> str:
        """Say in words what stages will run on, and how they are started where that is not here."""
        each = "one process" if self.processes == 1 else f"{self.processes} processes"
        on = f"{self.nodes} nodes with {each} each" if self.nodes > 1 else each
        return f"{on}{self._cut}{STARTED[self.start]}{self._served}"

    @property
    def _served(self) -> str:
        asked = [what for what, servers in (("answers", self.rollouts), ("scores", self.rewards)) if servers]
        return f", {' and '.join(asked)} from vLLM" if asked else ""

    @property
    def _cut(self) -> str:
        if self.world == 1:
            return ""
        where = "where they do not fit one" if self.sharded == "auto" else "always"
        return f", among which weights are cut up {where}" if self.sharded else ", each of which holds all weights"

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
            where="" if self.start == "here" else self.model_dump_json(include={"start", "slurm", "command"}),
            served=self.rewards is not None,
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
