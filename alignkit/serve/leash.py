"""Become another program that the system ends when its parent dies, however it dies (Linux).

python leash.py vllm serve ...
"""

import ctypes
import os
import signal
import sys


def main(command: list[str]) -> None:
    """Become the command; this does not return."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    os.execvp(command[0], command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
