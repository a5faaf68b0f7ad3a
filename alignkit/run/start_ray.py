"""Stages started on a Ray cluster, or on one that Ray makes of this computer: one task for each node.

A task has to itself what the machine asks for on a node, and starts the node's processes (`node`). Ray places tasks,
and tells where one is lost; nothing else goes through it: `runs/` must lie where all nodes see it.
"""

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from alignkit.errors import RecipeError, StageError
from alignkit.run.launch import IMPORTING
from alignkit.run.launch_folder import LaunchFolder
from alignkit.run.machine import Machine
from alignkit.run.stopping import NOTED

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.placement_group import PlacementGroup

PATIENCE = 600.0
"""Seconds in which a cluster that is too small for a stage may grow."""
GRACE = 10.0
"""Seconds in which nodes end that were told to, and in which what they have written is seen here."""
LOCAL = "local"
"""What Ray calls a cluster of this computer alone, which it makes."""


class _Outcome(NamedTuple):
    """How a node's task ended."""

    status: int
    said: str
    lost: str
    """How Ray calls it that nothing more is heard of the task."""


class RayLauncher:
    """Starts one stage after another. Raises RecipeError where Ray is missing."""

    def __init__(self, machine: Machine, *, offline: bool, patience: float = PATIENCE) -> None:
        assert machine.ray
        for problem, remedy in missing():
            raise RecipeError(problem, "machines.toml", remedy)
        self._machine, self._offline, self._patience = machine, offline, patience
        self._resources, self._address = machine.ray.resources, machine.ray.address or LOCAL
        self._launch: LaunchFolder | None = None
        self._group: PlacementGroup | None = None
        self._ready: ObjectRef[Any] | None = None
        self._tasks: list[ObjectRef[Any]] = []
        self._models, self._connected = True, False
        self._look_again, self._lost = 0.0, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs, and leave the cluster, where this one has joined it."""
        self.kill()
        if self._connected:
            import ray

            with _handlers_kept():
                ray.shutdown()

    def start(self, partial: Path, *, models: bool = True) -> None:
        self._models, self._lost, self._tasks = models, "", []
        self._launch = launch = LaunchFolder.make(partial, self._machine, offline=self._offline)
        self._connect(launch)
        from ray.util.placement_group import placement_group

        self._group = placement_group([dict(self._resources)] * launch.nodes, strategy="SPREAD")
        self._ready = self._group.ready()
        self._look_again = time.monotonic() + (0 if self._address == LOCAL else self._patience)

    def _connect(self, launch: LaunchFolder) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        if ray.is_initialized():  # by another launcher, or by a program around the run
            return
        alone: dict[str, Any] = {"include_dashboard": False} if self._address == LOCAL else {}
        try:
            knock(self._address)  # Ray itself would try for five minutes and more
            with _handlers_kept():
                ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR, **alone)
        except (OSError, RuntimeError, ValueError) as error:
            problem = f"Ray cannot be reached at {self._address} ({str(error).strip().splitlines()[0]})"
            raise StageError(problem, launch.where, "look at it by `ray status`, or correct the address") from error
        self._connected = True

    def status(self, wait: float) -> int | None:
        import ray

        assert self._launch
        if not self._tasks:
            placed, _ = ray.wait([self._ready], timeout=wait)
            if placed:
                self._tasks = self._begun(self._launch)
            else:
                self._check_possible(self._launch)
            return None
        ended, running = ray.wait(self._tasks, num_returns=len(self._tasks), timeout=wait)
        outcomes = [_outcome(task) for task in ended]
        if running and not any(one.status for one in outcomes):
            return None
        self._end_others()
        return self._ended(self._launch, outcomes)

    def _begun(self, launch: LaunchFolder) -> "list[ObjectRef[Any]]":
        """Start a task on each node: it calls a function that every Python has."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        assert self._group
        asked = dict(self._resources)
        use = {"num_cpus": asked.pop("CPU", 0), "num_gpus": asked.pop("GPU", 0), "resources": asked, "max_retries": 0}
        run = ray.remote(subprocess.run)
        words = [*self._threads(launch), *launch.words]
        places = [PlacementGroupSchedulingStrategy(self._group, index) for index in range(launch.nodes)]
        tasks = [run.options(scheduling_strategy=place, **use) for place in places]
        return [task.remote(words, capture_output=True, text=True) for task in tasks]

    def _threads(self, launch: LaunchFolder) -> list[str]:
        """Return what parts a node's cores among its processes, as Ray would let each use all of them."""
        cores = int(self._resources.get("CPU", 0))
        if launch.processes == 1 or not cores or "OMP_NUM_THREADS" in os.environ:
            return []
        return ["env", f"OMP_NUM_THREADS={max(1, cores // launch.processes)}"]

    def _check_possible(self, launch: LaunchFolder) -> None:
        """Raise StageError where the cluster is too small for what is asked, and has been for long."""
        import ray

        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + self._patience
        nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
        if not fits(self._resources, launch.nodes, nodes):
            asked = f"{launch.nodes} x {_told(self._resources)}"
            has = "; ".join(_told({name: node.get(name, 0) for name in self._resources}) for node in nodes)
            remedy = "ask for less in ray.resources, or wait until the cluster has grown"
            raise StageError(f"the Ray cluster is too small for {asked}; its nodes have {has}", launch.where, remedy)

    def _end_others(self) -> None:
        """End what runs once one task has failed: its processes have heard of it, and end by themselves."""
        import ray

        _, running = ray.wait(self._tasks, num_returns=len(self._tasks), timeout=GRACE)
        if running:
            self.kill()

    def _ended(self, launch: LaunchFolder, outcomes: Sequence[_Outcome]) -> int:
        """Return the exit status of a stage whose tasks have ended. Raise StageError where none could begin it."""
        self._remove_group()
        self._lost = next((f"Ray ({one.lost})" for one in outcomes if one.lost), "")
        until = time.monotonic() + GRACE
        while (status := launch.status()) is None and launch.running and not self._lost and time.monotonic() < until:
            time.sleep(0.1)
        failed = next((one for one in outcomes if one.status), None)
        if failed is None:
            launch.remove()
            return 0
        if status is None and not self._lost and not launch.begun:
            remedy = "a node needs the same Python at the same path, and has to see the same files"
            raise StageError(f"a node of Ray could not begin it: {failed.said}", launch.where, remedy)
        return status or failed.status

    @property
    def doing(self) -> str:
        if self.started:
            return IMPORTING if self._models else ""
        nodes = self._launch.nodes if self._launch else 1
        return f"waiting for Ray to give {nodes} x {_told(self._resources)}"

    @property
    def started(self) -> bool:
        return self._launch is not None and self._launch.begun

    @property
    def interrupted(self) -> str:
        return self._lost or (self._launch.interrupted if self._launch else "")

    def ask_to_end(self) -> None:
        if self._launch:
            self._launch.ask("stop")

    def kill(self) -> None:
        """Have the nodes end the stage's processes, and end what is left of their tasks."""
        if self._group is None:
            return
        import ray

        assert self._launch
        self._launch.ask("kill")
        if self._tasks and ray.is_initialized():
            ray.wait(self._tasks, num_returns=len(self._tasks), timeout=GRACE if self._launch.running else 0)
        self._remove_group()

    def _remove_group(self) -> None:
        """Give back what the stage had of the cluster; tasks that are left there are ended."""
        import ray
        from ray.util.placement_group import remove_placement_group

        if self._group and ray.is_initialized():
            remove_placement_group(self._group)
        self._group = None


def missing() -> list[tuple[str, str]]:
    """Return what is missing here for Ray, with its remedy."""
    return [] if find_spec("ray") else [("Ray is not installed", 'pip install "alignkit[ray]"')]


def knock(address: str) -> None:
    """Raise OSError where an address names a port of a computer at which nobody answers."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=GRACE).close()


def fits(asked: Mapping[str, float], times: int, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Return whether nodes that were idle would hold so many times what is asked."""
    return sum(int(min(node.get(name, 0) // count for name, count in asked.items())) for node in nodes) >= times


def _told(resources: Mapping[str, float]) -> str:
    return " + ".join(f"{count:g} {name}" for name, count in resources.items())


def _outcome(task: "ObjectRef[Any]") -> _Outcome:
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    try:
        ended: subprocess.CompletedProcess[str] = ray.get(task)
    except RayTaskError as error:
        return _Outcome(1, str(error.cause), "")
    except OutOfMemoryError:
        return _Outcome(-signal.SIGKILL, "", "")
    except RayError as error:
        return _Outcome(1, "", type(error).__name__)
    return _Outcome(ended.returncode, (ended.stderr.strip().splitlines() or ["it gave no reason"])[-1], "")


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put back handlers of signals that Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NOTED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
