"""Which launcher starts the stages of a machine."""

from pathlib import Path

from alignkit.run.launch import Launcher
from alignkit.run.machine import Machine
from alignkit.store import rundir


def launcher_of(machine: Machine, runs: Path, *, fork: bool, offline: bool) -> Launcher:
    """Return what starts stages on a machine. `fork`: on this one, from a process that has imported the libraries."""
    if machine.start == "slurm":
        from alignkit.run.start_slurm import SlurmLauncher

        return SlurmLauncher(machine, offline=offline)
    if machine.start == "command":
        from alignkit.run.start_command import CommandLauncher

        return CommandLauncher(machine, offline=offline)
    from alignkit.run.start_here import LocalLauncher

    return LocalLauncher(rundir.zygote_log(runs), fork=fork, processes=machine.world, offline=offline)
