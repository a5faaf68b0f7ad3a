"""SLURM as far as the launcher asks for it: sbatch, srun, squeue, scancel and sinfo on this computer, for tests.

`on_path` puts them on the PATH; each runs this file. A job is a shell in a session of its own, its script, state
and process number lie in the folder that FAKE_SLURM names.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest


def on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the commands on the PATH, and return the folder of their jobs."""
    commands, jobs = folder / "commands", folder / "jobs"
    commands.mkdir()
    jobs.mkdir()
    for name in COMMANDS:
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_SLURM", str(jobs))
    return jobs


def end_job(jobs: Path, number: int, state: str, *signals: int) -> None:
    """Have the scheduler end a job: all its processes get these signals."""
    (jobs / f"{number}.state").write_text(state)
    shell = psutil.Process(int((jobs / f"{number}.pid").read_text()))
    for process in [*shell.children(recursive=True), shell] if signal.SIGKILL in signals else shell.children(True):
        for one in signals:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(one)


def sbatch(script: str) -> None:
    jobs = Path(os.environ["FAKE_SLURM"])
    text, number = Path(script).read_text(), len(list(jobs.glob("*.sh"))) + 1
    (jobs / f"{number}.sh").write_text(text)
    if "--partition=nowhere" in text:
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    (jobs / f"{number}.state").write_text("PENDING" if "--partition=full" in text else "RUNNING")
    if "--partition=full" not in text:
        nodes = re.findall(r"--nodes=(\d+)", text)[0]
        line = f"bash {jobs}/{number}.sh; echo ended >> {jobs}/{number}.pid"
        job = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": nodes, "SLURM_NTASKS": nodes}
        shell = subprocess.Popen(
            ["bash", "-c", line],
            env=os.environ | job,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (jobs / f"{number}.pid").write_text(f"{shell.pid}\n")
    print(f"Submitted batch job {number}")


def srun(*words: str) -> None:
    named = {words[at]: words[at + 1] for at in range(len(words)) if words[at] in ("--output", "--error")}
    command, number = words[words.index("--kill-on-bad-exit=1") + 1 :], os.environ["SLURM_JOB_ID"]
    command = command[1:] if command[0].startswith("--cpus") else command
    tasks = []
    for task in range(int(os.environ["SLURM_NTASKS"])):
        place = {"SLURM_PROCID": str(task), "SLURM_NODEID": str(task), "SLURM_LOCALID": "0"}
        files = [named[option].replace("%j", number).replace("%t", str(task)) for option in ("--output", "--error")]
        with Path(files[0]).open("a") as out, Path(files[1]).open("a") as error:
            tasks.append(subprocess.Popen(command, env=os.environ | place, stdout=out, stderr=error))
    for one in tasks:
        one.wait()


def squeue(*words: str) -> None:
    jobs, number = Path(os.environ["FAKE_SLURM"]), words[-1].removeprefix("--jobs=")
    state = (jobs / f"{number}.state").read_text()
    ended = (jobs / f"{number}.pid").is_file() and "ended" in (jobs / f"{number}.pid").read_text()
    print(
        "COMPLETED None" if state == "RUNNING" and ended else f"{state} {'Resources' if state == 'PENDING' else 'None'}"
    )


def scancel(number: str) -> None:
    jobs = Path(os.environ["FAKE_SLURM"])
    if (jobs / f"{number}.pid").is_file():
        with suppress(psutil.NoSuchProcess):
            end_job(jobs, int(number), "CANCELLED", signal.SIGTERM, signal.SIGKILL)
    (jobs / f"{number}.state").write_text("CANCELLED")


def sinfo(*words: str) -> None:
    if words[-1] == "--partition=full":
        print("full")


COMMANDS: dict[str, Callable[..., None]] = {
    "sbatch": sbatch,
    "srun": srun,
    "squeue": squeue,
    "scancel": scancel,
    "sinfo": sinfo,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
