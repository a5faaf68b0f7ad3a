"""Stages started on a SLURM cluster, by submitit: one submission each, with one task on each node.

The task starts the node's processes (`node`): several nodes are no other case than several processes on one, and what
the scheduler signals is heeded as it is everywhere. The queue is asked for a job's state, not the accounting, which
some clusters do without.
"""

import shutil
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from alignkit.errors import RecipeError, StageError
from alignkit.run.launch import IMPORTING
from alignkit.run.launch_folder import LaunchFolder
from alignkit.run.machine import Machine, Slurm
from alignkit.text import last_line

if TYPE_CHECKING:
    from submitit import Job

COMMANDS = ("sbatch", "srun", "squeue", "scancel")
LOOK = 0.3
"""Seconds between two looks at what nodes have written."""
LONGEST = 15.0
"""Seconds between two questions to the queue, at most."""
PATIENCE = 20.0
"""Seconds in which the queue says how a job has ended whose stage has."""
INTERRUPTED = ("TIMEOUT", "DEADLINE", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED")
"""States of a job that the scheduler has ended, for reasons of its own."""
SETTLED = ("COMPLETED", "FAILED", "UNKNOWN")
"""States in which what nodes have written is still to be seen here, perhaps."""
OPEN = (
    "",
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "STAGE_OUT",
    "COMPLETING",
    "RESIZING",
)
"""States of a job that has not ended."""


class SlurmLauncher:
    """Submits one stage after another. Raises RecipeError where that cannot be done from this computer."""

    def __init__(self, machine: Machine, *, offline: bool) -> None:
        assert machine.slurm
        for problem, remedy in missing():
            raise RecipeError(problem, "machines.toml", remedy)
        self._machine, self._slurm, self._offline = machine, machine.slurm, offline
        self._launch: LaunchFolder | None = None
        self._job: Job[int] | None = None
        self._models = True
        self._state, self._reason, self._by = "", "", ""
        self._looked, self._asked, self._pause = 0.0, 0.0, 1.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs or waits."""
        self.kill()

    def start(self, partial: Path, *, models: bool = True) -> None:
        self._models = models
        self._state, self._reason, self._by, self._pause = "", "", "", 1.0
        self._launch = launch = LaunchFolder.make(partial, self._machine, offline=self._offline)
        submit = executor_of(launch, self._slurm)
        try:
            self._job = submit(subprocess.call, launch.words)
        except RuntimeError as error:  # submitit's are
            said = str(error).strip().splitlines() or ["no reason is given"]
            remedy = "correct the machine's slurm in machines.toml"
            raise StageError(f"sbatch refused it: {said[-1]}", launch.where, remedy) from error
        self._asked = time.monotonic()

    def status(self, wait: float) -> int | None:
        assert self._launch
        assert self._job
        time.sleep(wait)
        now = time.monotonic()
        if now < self._looked + LOOK:
            return None
        self._looked = now
        status = self._launch.status()
        if status == 0 or (status and self._launch.asked()):
            self._job = None  # its folder stays: submitit still writes there
            return status
        if status is None and now > self._asked + self._pause:
            self._ask_queue(self._job)
            self._pause = min(2 * self._pause, LONGEST)
        if status is None and self._state in OPEN:
            return None
        job, self._job = self._job, None
        return self._ended(self._launch, job)

    def _ask_queue(self, job: "Job[int]") -> None:
        """Ask the queue for the job's state; it forgets a job some minutes after its end."""
        line = ["squeue", "--noheader", "--states=all", "--format=%T %r", f"--jobs={job.job_id}"]
        told = subprocess.run(line, capture_output=True, text=True, check=False)
        self._asked = time.monotonic()
        if told.returncode == 0:
            self._state, _, self._reason = (told.stdout.strip() or "UNKNOWN").partition(" ")
        elif "Invalid job id" in told.stderr:
            self._state, self._reason = "UNKNOWN", ""

    def _ended(self, launch: LaunchFolder, job: "Job[int]") -> int:
        """Return the exit status of a stage once its job has ended. Raise StageError where the job tells more."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and (self._state in OPEN or (self._state in SETTLED and launch.running)):
            self._ask_queue(job)
            time.sleep(LOOK)
        status = launch.status()
        if status == 0 or launch.asked():
            return -signal.SIGKILL if status is None else status
        if self._state == "CANCELLED":
            remedy = "the same command submits it again"
            raise StageError(f"job {job.job_id} of SLURM was cancelled", launch.where, remedy)
        if self._state == "OUT_OF_MEMORY":
            return -signal.SIGKILL
        self._by = f"SLURM ({self._state})" if self._state in INTERRUPTED else launch.interrupted
        if status is None and not self._by:
            when = "before it had ended" if launch.begun else "before it began"
            said = f", its last line was: {line}" if (line := last_line(job.paths.stderr)) else ""
            problem = f"job {job.job_id} of SLURM ended ({self._state}) {when}{said}"
            raise StageError(problem, launch.where, f"see {job.paths.stderr}")
        return 1 if status is None else status

    @property
    def doing(self) -> str:
        if self.started:
            return IMPORTING if self._models else ""
        number = self._job.job_id if self._job else ""
        reason = f" ({self._reason})" if self._reason not in ("", "None") else ""
        return f"waiting for SLURM: job {number} is {self._state.lower() or 'submitted'}{reason}"

    @property
    def started(self) -> bool:
        return self._launch is not None and self._launch.begun

    @property
    def interrupted(self) -> str:
        return self._by

    def ask_to_end(self) -> None:
        if self._launch:
            self._launch.ask("stop")

    def kill(self) -> None:
        """Take the job from the queue, or end it."""
        if self._launch and self._job and self._launch.asked() != "kill":
            self._launch.ask("kill")
            self._job.cancel(check=False)


def missing() -> list[tuple[str, str]]:
    """Return what is missing here for submitting to SLURM, each with its remedy."""
    found = []
    if not find_spec("submitit"):
        found.append(("submitit is not installed", 'pip install "alignkit[slurm]"'))
    for command in COMMANDS:
        if not shutil.which(command):
            found.append((f"{command} of SLURM is not on the PATH", "give commands on a login node of the cluster"))
    return found


def executor_of(launch: LaunchFolder, slurm: Slurm) -> Any:
    """Return what submits a start of a stage: a function of what one task calls, and with what."""
    from submitit import AutoExecutor

    executor = AutoExecutor(launch.path / "slurm", cluster="slurm")
    cpus = slurm.cpus_per_node
    executor.update_parameters(
        name=launch.name,
        nodes=launch.nodes,
        tasks_per_node=1,
        cpus_per_task=cpus,
        gpus_per_node=slurm.gpus_per_node,
        slurm_partition=slurm.partition,
        slurm_setup=list(slurm.setup),
        # srun takes the processors of a task from no option of sbatch since SLURM 22.05.
        slurm_srun_args=["--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus}"] if cpus else [])],
        slurm_additional_parameters={
            "time": slurm.time,
            "signal": f"TERM@{slurm.notice}",
            "no-requeue": True,  # the runner starts it again, with another order
            **slurm.more,
        },
    )
    return executor.submit
