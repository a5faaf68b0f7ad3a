"""What `machines.toml` says of servers: which command starts one, or where one listens already."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from alignkit.contract.settings import Settings


class Serving(Settings):
    """Servers of vLLM (https://docs.vllm.ai): one that is started for each stage that asks it, or some that run."""

    vllm: str | None = None
    """The `vllm` command of an environment of its own; a stage that needs a server starts it, and ends it."""
    urls: tuple[str, ...] = ()
    """Addresses of servers that somebody else has started, such as `http://10.0.0.7:8000`; rows are dealt to them."""
    gpus: tuple[NonNegativeInt, ...] = ()
    """GPUs of the server that is started; those of the stage's processes are others. Empty: all that are visible."""
    more: tuple[str, ...] = ()
    """What `vllm serve` is told besides, such as `--tensor-parallel-size`, `2`."""
    environment: Mapping[str, str] = {}
    """Environment variables of the server that is started."""
    at_once: PositiveInt = 64
    """Requests that are under way at a time."""
    start: PositiveFloat = 900.0
    """Seconds that a server may take to start."""
    timeout: PositiveFloat = 600.0
    """Seconds that a request may take."""
    patience: PositiveFloat = 120.0
    """Seconds after which a server that does not answer ends the stage; it is asked again in between."""

    @model_validator(mode="after")
    def _one_way_to_be_there(self) -> Self:
        if (self.vllm is None) == (not self.urls):
            raise ValueError("a server is started by `vllm`, or listens at `urls`; give one of the two")
        for name in ("gpus", "more", "environment"):
            if self.urls and getattr(self, name):
                raise ValueError(f"{name} belongs to a server that is started, and those at urls run; leave it out")
        return self


class Rollouts(Serving):
    """Servers that answer in place of the policy that learns, whose weights they are given before each update."""

    folder: Path | None = None
    """Where weights are handed over as files, which trainer and servers see; `/dev/shm` where both are on one machine
    with memory to spare. Unset: a temporary folder of the system."""
