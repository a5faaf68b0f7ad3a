"""Find out the facts. The process that asks never imports torch: a child does, within a time limit."""

import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from pydantic import ValidationError

from alignkit.doctor.facts import Disk, Doctor, Memory, Package, Plugin, Torch
from alignkit.plugins import CLASH_REMEDY, Plugins, load_plugins

PROBE = (sys.executable, "-P", "-m", "alignkit.doctor.probe")
CGROUP = Path("/sys/fs/cgroup")
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


def report(
    runs: Path,
    *,
    plugins: Plugins | None = None,
    torch: Callable[[], Torch] | None = None,
    cgroup: Path = CGROUP,
    environment: Mapping[str, str] = os.environ,
) -> Doctor:
    """Find out all there is to know; `torch` finds what there is to know about torch, by default `ask_torch`."""
    return Doctor(
        alignkit=version("alignkit"),
        python=platform.python_version(),
        executable=_short(sys.executable),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=tuple(_packages()),
        cores=usable_cores(cgroup),
        memory=_memory(cgroup),
        torch=(torch or ask_torch)(),
        disk=_disk(runs),
        environment={name: environment[name] for name in ENVIRONMENT if name in environment},
        hub_cache=_short(_hub_cache(environment)),
        hub_token=_hub_token(environment),
        plugins=tuple(_plugins(load_plugins() if plugins is None else plugins)),
    )


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


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Return how many cores this process may use."""
    if sys.platform == "linux":
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
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


def ask_torch(probe: Sequence[str] = PROBE, limit: float = 60.0) -> Torch:
    """Ask a process of its own, which gets `limit` seconds to answer."""
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
    """Return where huggingface_hub keeps what it fetched: https://huggingface.co/docs/huggingface_hub, HF_HUB_CACHE."""
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
        if offer.count(":") == 1:  # else it is an address of what is listed by its name
            for one in plugins.clashes.get(offer, (origin,)):
                offers.setdefault(str(one), []).append(offer.partition(":")[2])
    for package, names in offers.items():
        yield Plugin(package=package, offers=tuple(sorted(names)))
    for broken in plugins.broken:
        remedy = f"update or reinstall {broken.origin.package}; what does not need it works all the same"
        yield Plugin(package=str(broken.origin), problem=f"cannot be loaded: {broken.reason}", remedy=remedy)
    for origin in plugins.heavy:
        remedy = "tell its authors to import torch inside the functions that need it"
        yield Plugin(package=str(origin), problem="imports torch when loaded, so every command waits", remedy=remedy)
    for offer, origins in plugins.shadowed.items():
        problem = f"offers a {offer.replace(':', ' ', 1)!r} of its own, and alignkit's is taken"
        for origin in origins:
            remedy = f'a recipe gets a method of it by method = "{origin.word}:NAME"; its authors should rename it'
            yield Plugin(package=str(origin), problem=problem, remedy=remedy)
    for offer, origins in plugins.clashes.items():
        kind, _, name = offer.partition(":")
        yield Plugin(
            package=" and ".join(map(str, origins)), problem=f"offer the same {kind} {name!r}", remedy=CLASH_REMEDY
        )
