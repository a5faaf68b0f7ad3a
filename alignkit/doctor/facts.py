"""What there is to know about a machine and an installation."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Fact(BaseModel):
    """Something found out; no key is unknown and nothing changes afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Package(Fact):
    """An installed library; no version means that it is missing."""

    name: str
    version: str | None
    wanted: str
    fits: bool


class Memory(Fact):
    """Main memory in bytes, or what the container may use of it."""

    total: int
    free: int


class Device(Fact):
    """A GPU as torch sees it. Memory is in bytes; `problem` is what went wrong when it was asked to add."""

    kind: Literal["cuda", "mps"]
    name: str
    total: int
    free: int
    bf16: bool
    problem: str = ""


class Torch(Fact):
    """What torch says of itself and of the GPUs, or why it says nothing."""

    version: str = ""
    built_for: str = ""
    instructions: str = ""
    threads: int = 0
    seconds: float = 0.0
    devices: tuple[Device, ...] = ()
    nvidia_driver: bool = False
    problem: str = ""


class Disk(Fact):
    """Where runs are written; bytes. `folder` is the nearest folder that exists already."""

    folder: str
    total: int
    free: int
    writable: bool
    filesystem: str


class Plugin(Fact):
    """A package that offers something, or fails to."""

    package: str
    offers: tuple[str, ...] = ()
    problem: str = ""
    remedy: str = ""


class Doctor(Fact):
    """All facts about this machine and installation. Holds no secret: of the token only whether there is one."""

    alignkit: str
    python: str
    executable: str
    system: str
    packages: tuple[Package, ...]
    cores: int
    memory: Memory
    torch: Torch
    disk: Disk
    environment: Mapping[str, str]
    hub_cache: str
    hub_token: bool
    plugins: tuple[Plugin, ...]
