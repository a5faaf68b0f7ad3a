"""`alignkit recipe` as a process of its own, on a machine of `machines.toml`, for what is done to it while it runs."""

import subprocess
import sys
import time
from pathlib import Path


def begun(runs: str, machine: str) -> "subprocess.Popen[str]":
    """Start the recipe `r.toml` of this folder."""
    line = [sys.executable, "-m", "alignkit", "recipe", "r.toml", "--on", machine, "--runs", runs, "--offline"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(process: "subprocess.Popen[str]", runs: str, steps: int, seconds: float = 400) -> None:
    """Wait until the stage that runs has told of so many steps; it must not end before, nor take longer."""
    until = time.monotonic() + seconds
    while sum(path.read_text().count("\n") for path in Path(runs).glob("stages/*.partial/metrics.jsonl")) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
