"""Which launchers start the stages of a machine."""

from pathlib import Path

from alignkit.run.launch import Launcher
from alignkit.run.machine import Machine
from alignkit.run.side_by_side import threads_of
from alignkit.store import rundir


def launchers_of(machine: Machine, runs: Path, *, jobs: int, fork: bool, offline: bool) -> list[Launcher]:
    """Return what starts stages on a machine: as many launchers as stages run at the same time, as each holds one.

    `fork`: on this machine, from a process that has imported the libraries.
    """
    if machine.start == "here":
        check_servers(machine)
    else:
        return [launcher_of(machine, offline=offline) for _ in range(jobs)]
    from alignkit.run.start_here import LocalLauncher, Zygote

    threads = threads_of(jobs) if jobs > 1 and machine.world == 1 else None
    log = rundir.zygote_log(runs)
    zygote = Zygote(log, fork=fork, processes=machine.world, offline=offline, threads=threads)
    return [LocalLauncher(zygote) for _ in range(jobs)]


def check_servers(machine: Machine) -> None:
    """Raise RecipeError where a stage would start a server on this computer by a command that is not there."""
    if machine.servers:
        from alignkit.serve.server import check_command

        for name, serving in machine.servers.items():
            check_command(serving, f"machines.toml, {name}")


def launcher_of(machine: Machine, *, offline: bool) -> Launcher:
    """Return what starts a stage elsewhere."""
    if machine.start == "slurm":
        from alignkit.run.start_slurm import SlurmLauncher

        return SlurmLauncher(machine, offline=offline)
    if machine.start == "ray":
        from alignkit.run.start_ray import RayLauncher

        return RayLauncher(machine, offline=offline)
    from alignkit.run.start_command import CommandLauncher

    return CommandLauncher(machine, offline=offline)
