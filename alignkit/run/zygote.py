"""Start stages quickly: a process that has imported the heavy libraries, and forks for each stage.

    python -m alignkit.run.zygote [--fork] [--processes N]

It reads `models FOLDER`, or `rows FOLDER` for a stage that handles no models, from each line of its standard input, and
writes `started PID FOLDER` and `ended PID STATUS`. The libraries are imported when the first stage needs them.
At the end of its input (the runner is gone, however it died) it ends its children. It ignores signals that a scheduler
sends to all processes: the runner tells the stage. It starts no thread and touches no
GPU: both would break its forks. Without `--fork` each stage is started afresh, with more than one process by torchrun.
"""

import argparse
import gc
import os
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import NoReturn

from alignkit.run import worker
from alignkit.run.parent import die_with_parent, outlive_parent
from alignkit.run.stopping import NOTED, SHUTDOWN

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
LAZY = (("transformers", "AutoModelForCausalLM"), ("transformers", "Trainer"), ("trl", "SFTTrainer"))
"""Names that these libraries import when first asked for."""

GRACE = 1.5
"""Seconds between asking the children of a dead runner to end, and ending them."""


def main(arguments: list[str]) -> int:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    for number in NOTED:
        signal.signal(number, signal.SIG_IGN)
    wake = _wake_on_child()
    _serve(wake, options.fork, options.processes)
    return 0


@cache
def _import_heavy() -> None:
    """Import what stages need, once. What is missing or broken here is left to the stage that needs it to tell."""
    die_with_parent()  # while it imports, it would not notice the end of its input
    try:
        for name in HEAVY:
            import_module(name)
        for name, attribute in LAZY:
            getattr(import_module(name), attribute)
    except (ImportError, RuntimeError) as error:
        print(f"not imported in advance: {error}", file=sys.stderr)
    gc.freeze()  # children then leave these objects' memory shared
    outlive_parent()


def _wake_on_child() -> int:
    """Return a file descriptor that can be read from whenever a child has ended."""
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)

    def note(number: int, frame: FrameType | None) -> None:
        pass

    signal.signal(signal.SIGCHLD, note)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def _serve(wake: int, fork: bool, processes: int) -> None:
    children: set[int] = set()
    pending = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _report_ended(children)
        if 0 in ready:
            read = os.read(0, 65536)
            if not read:
                _end(children)
                return
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                word, _, path = os.fsdecode(line).partition(" ")
                folder = Path(path)
                if fork and word == "models":
                    _import_heavy()
                children.add(pid := _start(folder, fork, processes))
                _say(f"started {pid} {folder}")


def _say(line: str) -> None:
    with suppress(BrokenPipeError):  # the runner is gone; the end of the input follows
        os.write(1, os.fsencode(line) + b"\n")


def _report_ended(children: set[int]) -> None:
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.discard(pid)
            _say(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def _start(folder: Path, fork: bool, processes: int) -> int:
    fork = fork and not gpu_touched()
    pid = os.fork()
    if pid == 0:
        _become_worker(folder, fork, processes)
    return pid


def gpu_touched() -> bool:
    """Return whether a GPU's driver is open in this process, which its forks could not use then."""
    return any(_target(entry).startswith(("/dev/nvidia-uvm", "/dev/kfd")) for entry in Path("/proc/self/fd").iterdir())


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""  # the listing's own


def _become_worker(folder: Path, fork: bool, processes: int) -> NoReturn:
    """Become an ordinary process in a group of its own, so that a terminal's Ctrl-C does not reach it."""
    status = 1
    try:
        die_with_parent()
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *NOTED):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        if not fork:
            _start_afresh(folder, 1 if worker.is_preflight(folder) else processes)
        status = worker.main([str(folder)])
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _start_afresh(folder: Path, processes: int) -> NoReturn:
    module = ["alignkit.run.worker", str(folder)]
    if processes > 1:
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN))
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it would end torchrun; its processes heed it
        module = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", *module]
    os.execv(sys.executable, [sys.executable, "-m", *module])  # noqa: S606  # no shell is wanted


def _end(children: set[int]) -> None:
    """End all children within two seconds: ask them first, so that what they are just saving is saved."""
    _signal(children, signal.SIGTERM)
    until = time.monotonic() + GRACE
    while children and time.monotonic() < until:
        _report_ended(children)
        time.sleep(0.02)
    _signal(children, signal.SIGKILL)


def _signal(children: set[int], number: int) -> None:
    for pid in children:
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # the libraries take a second to be taken down, and hold nothing
