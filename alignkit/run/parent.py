"""Processes that do not outlive the one that has started them."""

import ctypes
import signal
import sys


def die_with_parent() -> None:
    """Have the system kill this process when its parent dies (Linux; elsewhere the zygote sees to it alone)."""
    _when_parent_dies(signal.SIGKILL)


def outlive_parent() -> None:
    """Take back `die_with_parent`."""
    _when_parent_dies(0)


def _when_parent_dies(number: int) -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)
