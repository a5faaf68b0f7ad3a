"""What this machine offers to alignkit, and what to mend: the facts and findings of `alignkit doctor`.

The process that asks never imports torch. A child process does, within a time limit, so that a broken installation or
a driver that hangs becomes a finding.
"""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement
from pydantic import BaseModel, ConfigDict, ValidationError

from alignkit.contract.plugins import Plugins, load_plugins

GIB = 2**30
LOW_MEMORY = 2 * GIB  # what the embedded default needs, with room to spare
LOW_DISK = 5 * GIB  # two checkpoints of a model with a few hundred million weights
PROBE = (sys.executable, "-P", "-m", "alignkit.doctor")
OPTIONAL = ("bitsandbytes", "gguf")
ENVIRONMENT = (
    "ALIGNKIT_PLUGINS",
    "CUDA_VISIBLE_DEVICES",
    "DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "TRANSFORMERS_OFFLINE",
)
NETWORK_FILES = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "ceph", "gpfs", "beegfs")


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


class Finding(Fact):
    """One line for a person; with a remedy it is a warning."""

    subject: str
    fact: str
    remedy: str = ""


def report(
    runs: Path,
    *,
    plugins: Plugins | None = None,
    probe: Sequence[str] = PROBE,
    limit: float = 60.0,
    cgroup: Path = Path("/sys/fs/cgroup"),
    environment: Mapping[str, str] = os.environ,
) -> Doctor:
    """Find out all there is to know; `limit` is the number of seconds that torch gets to answer."""
    return Doctor(
        alignkit=version("alignkit"),
        python=platform.python_version(),
        executable=_short(sys.executable),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=tuple(_packages()),
        cores=_cores(cgroup),
        memory=_memory(cgroup),
        torch=_ask_torch(probe, limit),
        disk=_disk(runs),
        environment={name: environment[name] for name in ENVIRONMENT if name in environment},
        hub_cache=_short(_hub_cache(environment)),
        hub_token=_hub_token(environment),
        plugins=tuple(_plugins(load_plugins() if plugins is None else plugins)),
    )


def findings(doctor: Doctor) -> tuple[Finding, ...]:
    """Put the facts into words, in the order in which one would look; what needs mending comes with a remedy."""
    return (
        Finding(subject="alignkit", fact=f"{doctor.alignkit}, Python {doctor.python}, {doctor.system}"),
        *_about_packages(doctor.packages),
        _about_cores(doctor),
        _about_memory(doctor.memory),
        *_about_torch(doctor.torch),
        *_about_disk(doctor.disk),
        *_about_hub(doctor),
        *_about_plugins(doctor.plugins),
    )


def render(doctor: Doctor) -> str:
    """Give one line for each finding, marked ok or warn, with the remedy below a warning and a count at the end."""
    lines = []
    found = findings(doctor)
    for finding in found:
        lines.append(f"{'warn' if finding.remedy else 'ok':<5} {finding.subject:<9} {finding.fact}")
        if finding.remedy:
            lines.append(f"{'':<15} -> {finding.remedy}")
    warnings = sum(bool(finding.remedy) for finding in found)
    lines.append(f"{warnings or 'no'} warning{'' if warnings == 1 else 's'}")
    return "\n".join(lines)


def as_dict(doctor: Doctor) -> dict[str, Any]:
    """Give facts and warnings as plain JSON values, fit for a bug report."""
    warnings = [finding.model_dump() for finding in findings(doctor) if finding.remedy]
    return {**doctor.model_dump(mode="json"), "warnings": warnings}


def _packages() -> Iterator[Package]:
    for line in requires("alignkit") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)
    yield from (package for name in OPTIONAL if (package := _package(Requirement(name))).version)


def _package(requirement: Requirement) -> Package:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        found = None
    fits = found is not None and requirement.specifier.contains(found, prereleases=True)
    return Package(name=requirement.name, version=found, wanted=str(requirement.specifier), fits=fits)


def _cores(cgroup: Path) -> int:
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else min(usable, math.ceil(int(quota) / int(period)))


def _memory(cgroup: Path) -> Memory:
    machine = psutil.virtual_memory()
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return Memory(total=machine.total, free=machine.available)
    return Memory(total=min(machine.total, limit), free=max(0, min(machine.available, limit - used)))


def _ask_torch(probe: Sequence[str], limit: float) -> Torch:
    try:
        child = subprocess.run(probe, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Torch(problem=f"torch gave no answer within {limit:g} s")
    except OSError as error:
        return Torch(problem=f"the process that asks torch did not start: {error}")
    if child.returncode < 0:
        return Torch(problem=f"importing torch was ended by signal {-child.returncode}")
    try:
        return Torch.model_validate_json(child.stdout)
    except ValidationError:
        lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        return Torch(problem=f"torch cannot be imported: {lines[-1]}")


def _disk(runs: Path) -> Disk:
    wanted = runs.absolute()
    folder = next(place for place in (wanted, *wanted.parents) if place.is_dir())
    usage = shutil.disk_usage(folder)
    return Disk(
        folder=_short(str(folder)),
        total=usage.total,
        free=usage.free,
        writable=os.access(folder, os.W_OK | os.X_OK),
        filesystem=_filesystem(folder.resolve()),
    )


def _filesystem(folder: Path) -> str:
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[place] for place in (folder, *folder.parents) if place in mounts), "")


def _hub_cache(environment: Mapping[str, str]) -> str:
    """Say where huggingface_hub keeps what it fetched: https://huggingface.co/docs/huggingface_hub, HF_HUB_CACHE."""
    return environment.get("HF_HUB_CACHE") or str(_hub_home(environment) / "hub")


def _hub_token(environment: Mapping[str, str]) -> bool:
    file = environment.get("HF_TOKEN_PATH") or _hub_home(environment) / "token"
    return bool(environment.get("HF_TOKEN")) or Path(file).expanduser().is_file()


def _hub_home(environment: Mapping[str, str]) -> Path:
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("HF_HOME") or Path(cache) / "huggingface").expanduser()


def _short(path: str) -> str:
    """Write the home folder as ~: it often holds a person's name."""
    home = str(Path.home())
    return f"~{path[len(home) :]}" if path == home or path.startswith(home + os.sep) else path


def _plugins(plugins: Plugins) -> Iterator[Plugin]:
    offers: dict[str, list[str]] = {str(origin): [] for origin in plugins.loaded}
    for offer, origin in plugins.origins.items():
        offers.setdefault(str(origin), []).append(offer.partition(":")[2])
    for package, names in offers.items():
        yield Plugin(package=package, offers=tuple(sorted(names)))
    for broken in plugins.broken:
        remedy = f"update or reinstall {broken.origin.package}; what does not need it works all the same"
        yield Plugin(package=str(broken.origin), problem=f"cannot be loaded: {broken.reason}", remedy=remedy)
    for origin in plugins.heavy:
        remedy = "tell its authors to import torch inside the functions that need it"
        yield Plugin(package=str(origin), problem="imports torch when loaded, so every command waits", remedy=remedy)
    for offer, origins in plugins.clashes.items():
        kind, _, name = offer.partition(":")
        remedy = "uninstall one of them, or name the ones to load in ALIGNKIT_PLUGINS"
        yield Plugin(package=" and ".join(map(str, origins)), problem=f"offer the same {kind} {name!r}", remedy=remedy)


def _about_packages(packages: Sequence[Package]) -> Iterator[Finding]:
    fitting = ", ".join(f"{p.name} {p.version}" for p in packages if p.fits)
    yield Finding(subject="packages", fact=fitting)
    for package in packages:
        if not package.fits:
            found = f"is {package.version}" if package.version else "is missing"
            yield Finding(
                subject="packages",
                fact=f"{package.name} {found}, wanted {package.wanted}",
                remedy=f"pip install '{package.name}{package.wanted}'",
            )


def _about_cores(doctor: Doctor) -> Finding:
    threads = doctor.torch.threads
    fact = _count(doctor.cores, "core") + (f", torch uses {_count(threads, 'thread')}" if threads else "")
    remedy = f"export OMP_NUM_THREADS={doctor.cores}" if threads > doctor.cores else ""
    return Finding(subject="cores", fact=fact, remedy=remedy)


def _about_memory(memory: Memory) -> Finding:
    remedy = "end other programs, or take a smaller model or batch" if memory.free < LOW_MEMORY else ""
    return Finding(subject="memory", fact=f"{_gib(memory.free)} free of {_gib(memory.total)}", remedy=remedy)


def _about_torch(torch: Torch) -> Iterator[Finding]:
    if torch.problem:
        yield Finding(subject="torch", fact=torch.problem, remedy="python -c 'import torch' shows it whole")
        return
    built = f"{torch.version}, built for {torch.built_for}, {torch.instructions}"
    yield Finding(subject="torch", fact=f"{built}, imported in {torch.seconds:.1f} s")
    for device in torch.devices:
        yield _about_device(device)
    if torch.nvidia_driver and not torch.devices:
        yield _about_unused_driver(torch)
    elif not torch.devices:
        yield Finding(subject="gpu", fact="none; stages run on the CPU")


def _about_device(device: Device) -> Finding:
    free = f"{_gib(device.free)} free of {_gib(device.total)}"
    fact = f"{device.name} ({device.kind}), {free}, {'' if device.bf16 else 'no '}bf16"
    if not device.problem:
        return Finding(subject="gpu", fact=fact)
    remedy = "end other programs that use it, or match torch and driver: https://pytorch.org/get-started/locally"
    return Finding(subject="gpu", fact=f"{fact}; does not compute: {device.problem}", remedy=remedy)


def _about_unused_driver(torch: Torch) -> Finding:
    """Word the two reasons for which an NVIDIA GPU lies idle."""
    if torch.built_for == "cpu":
        remedy = "install a build for CUDA: https://pytorch.org/get-started/locally"
        return Finding(subject="gpu", fact="an NVIDIA driver is here, but torch is built for the CPU", remedy=remedy)
    fact = f"an NVIDIA driver is here, but torch, built for {torch.built_for}, sees no GPU"
    return Finding(
        subject="gpu", fact=fact, remedy="look at CUDA_VISIBLE_DEVICES; is the driver new enough (nvidia-smi)?"
    )


def _about_disk(disk: Disk) -> Iterator[Finding]:
    where = disk.folder
    remedy = "free some space, or choose another folder with --runs DIR" if disk.free < LOW_DISK else ""
    yield Finding(subject="disk", fact=f"{_gib(disk.free)} free of {_gib(disk.total)} at {where}", remedy=remedy)
    if not disk.writable:
        yield Finding(subject="disk", fact=f"{where} cannot be written", remedy="choose another folder with --runs DIR")
    if disk.filesystem.startswith(NETWORK_FILES):
        yield Finding(
            subject="disk",
            fact=f"{where} is on {disk.filesystem}, where locks may not hold",
            remedy="start no two runs there at once, or choose a local folder with --runs DIR",
        )


def _about_hub(doctor: Doctor) -> Iterator[Finding]:
    says = doctor.environment.get
    network = "never asked (offline)" if _is_true(says("HF_HUB_OFFLINE") or says("TRANSFORMERS_OFFLINE")) else "online"
    token = "with a token" if doctor.hub_token else "without a token"
    yield Finding(subject="hub", fact=f"{network}, {token}, cache {doctor.hub_cache}")
    # A stage's process sets the first two to 1 where the user has not set them.
    refused = says("HF_HUB_DISABLE_TELEMETRY", "1"), says("DISABLE_TELEMETRY", "1"), says("DO_NOT_TRACK")
    telemetry = "off" if any(map(_is_true, refused)) else "on: the environment says so"
    yield Finding(subject="telemetry", fact=telemetry)


def _about_plugins(plugins: Sequence[Plugin]) -> Iterator[Finding]:
    for plugin in plugins:
        fact = plugin.problem or f"offers {', '.join(plugin.offers) or 'nothing by name; it observes'}"
        yield Finding(subject="plugin", fact=f"{plugin.package}: {fact}", remedy=plugin.remedy)


def _is_true(value: str | None) -> bool:
    """Read an environment variable as huggingface_hub does."""
    return (value or "").upper() in {"1", "ON", "YES", "TRUE"}


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def probe_torch() -> Torch:
    """Import torch and look at its devices; runs in the child process."""
    start = time.perf_counter()
    import torch

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "cpu"
    if torch.version.hip:
        built_for = f"ROCm {torch.version.hip}"
    return Torch(
        version=torch.__version__,
        built_for=built_for,
        instructions=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        seconds=round(time.perf_counter() - start, 2),
        devices=tuple(_devices()),
        nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
    )


def _devices() -> Iterator[Device]:
    import torch

    for index in range(torch.cuda.device_count()):
        place = f"cuda:{index}"
        try:
            free, total = torch.cuda.mem_get_info(index)
            problem = _try_adding(place)
        except RuntimeError as error:
            free, total, problem = 0, torch.cuda.get_device_properties(index).total_memory, _first_line(error)
        name, bf16 = torch.cuda.get_device_name(index), torch.cuda.is_bf16_supported()
        yield Device(kind="cuda", name=name, total=total, free=free, bf16=bf16, problem=problem)
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
        yield Device(kind="mps", name="Apple", total=total, free=free, bf16=True, problem=_try_adding("mps"))


def _try_adding(place: str) -> str:
    """Give what goes wrong when the device has to add two numbers, or nothing."""
    import torch

    try:
        total = torch.ones(2, device=place).sum().item()
    except RuntimeError as error:
        return _first_line(error)
    return "" if total == 2 else f"1 + 1 = {total}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


if __name__ == "__main__":
    print(json.dumps(probe_torch().model_dump()))
