"""Whether stages can be started on a machine from here, for `alignkit doctor --on NAME`."""

import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version

from alignkit.doctor.facts import Disk
from alignkit.doctor.findings import Finding
from alignkit.http import is_there
from alignkit.run.machine import Machine, Slurm
from alignkit.serve.serving import Serving

SUBJECT = "machine"
SHARED = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "ceph", "gpfs", "beegfs", "afs", "virtiofs", "wekafs")
"""How the file systems' names begin that several computers may see."""


def findings_on(name: str, machine: Machine, disk: Disk) -> Iterator[Finding]:
    """Yield what is there for a machine, and what is missing with its remedy; `disk` is that of the runs."""
    yield Finding(SUBJECT, f"{name}: {machine.told}")
    if machine.slurm:
        yield from _about_slurm(machine.slurm)
    if machine.ray:
        yield _about_ray(machine.ray.address)
    if machine.command:
        yield _about_command(machine.command[0])
    for what, serving in machine.servers.items():
        yield from _about_servers(what, serving, here=machine.start == "here")
    if machine.start != "here" and not (machine.ray and machine.ray.address is None):
        yield _about_runs(disk)


def _about_slurm(slurm: Slurm) -> Iterator[Finding]:
    from alignkit.run.start_slurm import COMMANDS, missing

    if found := missing():
        yield from (Finding(SUBJECT, problem, remedy) for problem, remedy in found)
        return
    yield Finding(SUBJECT, f"submitit {version('submitit')}, {', '.join(COMMANDS)}")
    if slurm.partition and not _is_partition(slurm.partition):
        yield Finding(SUBJECT, f"SLURM knows no partition {slurm.partition!r}", "sinfo lists those that there are")


def _is_partition(name: str) -> bool:
    line = ["sinfo", "--noheader", "--format=%R", f"--partition={name}"]
    return bool(subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip())


def _about_ray(address: str | None) -> Finding:
    from alignkit.run.start_ray import knock, missing

    if found := missing():
        return Finding(SUBJECT, *found[0])
    try:
        knock(address or "")
    except OSError as error:
        remedy = "look at the cluster by `ray status`, or correct the address in machines.toml"
        return Finding(SUBJECT, f"nobody answers at {address} ({error.strerror or error})", remedy)
    return Finding(SUBJECT, f"ray {version('ray')}, {address or 'a cluster of this computer'}")


def _about_command(word: str) -> Finding:
    """Word whether a command's first word is one."""
    if word == "{run}" or shutil.which(word):
        return Finding(SUBJECT, f"{shutil.which(word) or 'its command'} starts stages")
    return Finding(SUBJECT, f"{word} is not on the PATH", "install it, or correct command in machines.toml")


def _about_servers(what: str, serving: Serving, *, here: bool) -> Iterator[Finding]:
    """Yield whether servers can be started on this computer, or answer where they listen."""
    if serving.vllm and here:
        path = shutil.which(serving.vllm)
        remedy = "" if path else f"scripts/vllm.sh DIR makes its environment; correct {what}.vllm in machines.toml"
        yield Finding(
            SUBJECT, f"{path} starts the server of {what}" if path else f"{serving.vllm} is not there", remedy
        )
    for url in serving.urls:
        answers = is_there(f"{url.rstrip('/')}/health")
        remedy = "" if answers else f"start vllm serve there, or correct {what}.urls in machines.toml"
        yield Finding(SUBJECT, f"{url} answers" if answers else f"nobody answers at {url}", remedy)


def _about_runs(disk: Disk) -> Finding:
    if disk.filesystem.startswith(SHARED):
        return Finding(SUBJECT, f"{disk.folder} is on {disk.filesystem}, which nodes may share")
    problem = f"{disk.folder} is on {disk.filesystem or 'a disk'} of this computer, which nodes may not see"
    return Finding(SUBJECT, problem, "choose a folder that all nodes see under the same name, with --runs DIR")
