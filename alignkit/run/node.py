"""One node's part of a stage, whoever has started this process there: SLURM, Ray, a command.

    python -m alignkit.run.node runs/cache/launch/align-f8d922c0-1b2c3d4e

It starts the node's processes, by torchrun where there are several, and asks them to end when the runner asks for it,
through a file, or when a scheduler sends a signal, which may reach this process, or all of the node, or both, once or
more often. So signals are blocked here, and in torchrun, which the first SIGUSR1 or the third SIGTERM would end; a
process of the stage takes those that came as soon as it can heed them (`worker.main`).
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

import psutil

from alignkit.environment import set_environment
from alignkit.errors import TERMINATED, AlignkitError
from alignkit.run.launch_folder import LaunchFolder
from alignkit.run.parent import die_with_parent
from alignkit.run.stopping import NOTED, SHUTDOWN

POLL = 0.5
"""Seconds between two looks at what the runner asks."""


def main(arguments: list[str]) -> int:
    """Run what a launch folder says on this node; return the exit status, negative where a signal ended it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, NOTED)
    try:
        launch = LaunchFolder.open(Path(arguments[0]))
    except AlignkitError as error:
        print(error, file=sys.stderr)
        return error.status
    set_environment(launch.offline)
    launch.begin_node()
    status = _run_one(launch) if launch.nodes * launch.processes == 1 else _run_several(launch)
    launch.end_node(status)
    return status


def _run_one(launch: LaunchFolder) -> int:
    line = [sys.executable, "-m", "alignkit.run.worker", str(launch.partial)]
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    _heed(launch)
    return process.wait()


def _run_several(launch: LaunchFolder) -> int:
    from torch.distributed import run

    host = _address()
    place, is_ours = launch.meet(f"{host}:{_free_port()}")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN))
    sharing = ["--nnodes", str(launch.nodes), "--nproc-per-node", str(launch.processes), "--local-addr", host]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", place, "--rdzv-conf", f"is_host={int(is_ours)}"]
    what = ["--rdzv-id", launch.name, "-m", "alignkit.run.worker", str(launch.partial)]
    _heed(launch)
    try:
        run.main([*sharing, *meeting, *what])
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _address() -> str:
    """Return how other computers reach this one."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        outward.connect(("192.0.2.1", 9))  # an address of no computer (RFC 5737): nothing is sent
        return str(outward.getsockname()[0])
    return socket.gethostname()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _heed(launch: LaunchFolder) -> None:
    threading.Thread(target=_pass_on, args=(launch,), daemon=True).start()


def _pass_on(launch: LaunchFolder) -> None:
    """Ask the stage's processes to end, once, when the runner or anybody else asks for it; kill them if so asked."""
    heeded = False
    while True:
        caught = signal.sigtimedwait(NOTED, POLL)
        asked = launch.asked()
        if asked == "kill":
            _end(launch, -signal.SIGKILL)
        if heeded or not (caught or asked):
            continue
        if caught and not asked:
            launch.interrupt(signal.Signals(caught.si_signo).name)
        if not _ask_processes():
            _end(launch, TERMINATED)  # nothing has begun
        heeded = True


def _ask_processes() -> bool:
    """Ask the stage's processes on this node to end; return whether there are any."""
    processes = psutil.Process().children()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    return bool(processes)


def _end(launch: LaunchFolder, status: int) -> None:
    """End this process; those of the stage die with it."""
    with suppress(OSError):
        launch.end_node(status)
    os._exit(_as_shells_do(status))


def _as_shells_do(status: int) -> int:
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(_as_shells_do(main(sys.argv[1:])))
