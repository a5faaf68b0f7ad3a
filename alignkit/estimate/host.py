"""What this machine has, as far as it can be known without importing anything heavy."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

LIBRARIES = ("torch", "transformers", "trl", "peft")
"""What decides whether a model can be opened and trained."""


def host_memory() -> int:
    """Return the main memory in bytes, or what the container may use of it."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    total = int(psutil.virtual_memory().total)
    return min(total, int(text)) if text.isdigit() else total


def state_of_host() -> list[str]:
    """Return what of this machine and its installation a look at a plan depends on, besides the room on its disk."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return [platform.node(), f"{host_memory()} bytes", f"devices {visible}", *map(_installed, LIBRARIES)]


def _installed(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"no {library}"
