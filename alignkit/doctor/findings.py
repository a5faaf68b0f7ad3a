"""Put the facts into words: one line each for a person, with a remedy where something needs mending."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from alignkit.doctor.facts import Device, Disk, Doctor, Memory, Package, Plugin, Torch

GIB = 2**30
LOW_MEMORY = 2 * GIB  # what the embedded default needs, with room to spare
LOW_DISK = 5 * GIB  # two checkpoints of a model with a few hundred million weights


class Finding(NamedTuple):
    """One line for a person; with a remedy it is a warning."""

    subject: str
    fact: str
    remedy: str = ""


def findings(doctor: Doctor) -> tuple[Finding, ...]:
    """Put the facts into words, in the order in which one would look; what needs mending comes with a remedy."""
    return (
        Finding("alignkit", f"{doctor.alignkit}, Python {doctor.python}, {doctor.system}"),
        *_about_packages(doctor.packages),
        _about_cores(doctor),
        _about_memory(doctor.memory),
        *_about_torch(doctor.torch),
        *_about_disk(doctor.disk),
        *_about_hub(doctor),
        *_about_plugins(doctor.plugins),
    )


def render(doctor: Doctor, more: Sequence[Finding] = ()) -> str:
    """Return one line for each finding, marked ok or warn, with the remedy below a warning and a count at the end."""
    lines = []
    found = [*findings(doctor), *more]
    for finding in found:
        lines.append(f"{'warn' if finding.remedy else 'ok':<5} {finding.subject:<9} {finding.fact}")
        if finding.remedy:
            lines.append(f"{'':<15} -> {finding.remedy}")
    warnings = sum(bool(finding.remedy) for finding in found)
    lines.append(f"{warnings or 'no'} warning{'' if warnings == 1 else 's'}")
    return "\n".join(lines)


def as_dict(doctor: Doctor, more: Sequence[Finding] = ()) -> dict[str, Any]:
    """Return facts and warnings as plain JSON values, fit for a bug report."""
    warnings = [finding._asdict() for finding in [*findings(doctor), *more] if finding.remedy]
    return {**doctor.model_dump(mode="json"), "warnings": warnings}


def _about_packages(packages: Sequence[Package]) -> Iterator[Finding]:
    fitting = ", ".join(f"{p.name} {p.version}" for p in packages if p.fits)
    yield Finding("packages", fitting)
    for package in packages:
        if not package.fits:
            found = f"is {package.version}" if package.version else "is missing"
            yield Finding(
                "packages",
                f"{package.name} {found}, wanted {package.wanted}",
                remedy=f"pip install '{package.name}{package.wanted}'",
            )


def _about_cores(doctor: Doctor) -> Finding:
    threads = doctor.torch.threads
    fact = _count(doctor.cores, "core") + (f", torch uses {_count(threads, 'thread')}" if threads else "")
    remedy = f"export OMP_NUM_THREADS={doctor.cores}" if threads > doctor.cores else ""
    return Finding("cores", fact, remedy)


def _about_memory(memory: Memory) -> Finding:
    remedy = "end other programs, or take a smaller model or batch" if memory.free < LOW_MEMORY else ""
    return Finding("memory", f"{_gib(memory.free)} free of {_gib(memory.total)}", remedy)


def _about_torch(torch: Torch) -> Iterator[Finding]:
    if torch.problem:
        yield Finding("torch", torch.problem, remedy="python -c 'import torch' shows it whole")
        return
    built = f"{torch.version}, built for {torch.built_for}, {torch.instructions}"
    yield Finding("torch", f"{built}, imported in {torch.seconds:.1f} s")
    for device in torch.devices:
        yield _about_device(device)
    if torch.nvidia_driver and not torch.devices:
        yield _about_unused_driver(torch)
    elif not torch.devices:
        yield Finding("gpu", "none; stages run on the CPU")


def _about_device(device: Device) -> Finding:
    free = f"{_gib(device.free)} free of {_gib(device.total)}"
    fact = f"{device.name} ({device.kind}), {free}, {'' if device.bf16 else 'no '}bf16"
    if not device.problem:
        return Finding("gpu", fact)
    remedy = "end other programs that use it, or match torch and driver: https://pytorch.org/get-started/locally"
    return Finding("gpu", f"{fact}; does not compute: {device.problem}", remedy)


def _about_unused_driver(torch: Torch) -> Finding:
    """Word the two reasons for which an NVIDIA GPU lies idle."""
    if torch.built_for == "cpu":
        remedy = "install a build for CUDA: https://pytorch.org/get-started/locally"
        return Finding("gpu", "an NVIDIA driver is here, but torch is built for the CPU", remedy)
    fact = f"an NVIDIA driver is here, but torch, built for {torch.built_for}, sees no GPU"
    return Finding("gpu", fact, remedy="look at CUDA_VISIBLE_DEVICES; is the driver new enough (nvidia-smi)?")


def _about_disk(disk: Disk) -> Iterator[Finding]:
    where = disk.folder
    remedy = "free some space, or choose another folder with --runs DIR" if disk.free < LOW_DISK else ""
    yield Finding("disk", f"{_gib(disk.free)} free of {_gib(disk.total)} at {where}", remedy)
    if not disk.writable:
        yield Finding("disk", f"{where} cannot be written", remedy="choose another folder with --runs DIR")


def _about_hub(doctor: Doctor) -> Iterator[Finding]:
    says = doctor.environment.get
    network = "never asked (offline)" if _is_true(says("HF_HUB_OFFLINE") or says("TRANSFORMERS_OFFLINE")) else "online"
    token = "with a token" if doctor.hub_token else "without a token"
    yield Finding("hub", f"{network}, {token}, cache {doctor.hub_cache}")
    # A stage's process sets the first two to 1 where the user has not set them.
    refused = says("HF_HUB_DISABLE_TELEMETRY", "1"), says("DISABLE_TELEMETRY", "1"), says("DO_NOT_TRACK")
    telemetry = "off" if any(map(_is_true, refused)) else "on: the environment says so"
    yield Finding("telemetry", telemetry)


def _about_plugins(plugins: Sequence[Plugin]) -> Iterator[Finding]:
    for plugin in plugins:
        fact = plugin.problem or f"offers {', '.join(plugin.offers) or 'nothing by name; it observes'}"
        yield Finding("plugin", f"{plugin.package}: {fact}", plugin.remedy)


def _is_true(value: str | None) -> bool:
    """Read an environment variable as huggingface_hub does."""
    return (value or "").upper() in {"1", "ON", "YES", "TRUE"}


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
