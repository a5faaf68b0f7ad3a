"""Run another program, and end it with all that it has started once this one's input ends: its parent has died.

python leash.py vllm serve ...

It leads a group of processes of its own. A program that is killed alone may leave others behind, as vLLM leaves the one
that holds the model.
"""

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Return the program's exit status, or end by the signal that has ended it; SIGTERM is passed on to it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    status = process.wait()
    if status < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
