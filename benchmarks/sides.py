"""What benchmarks against TRL on given rows share: a side in a process of its own, and how equal both ended."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from job import ABRIDGED, HERE
from safetensors.torch import load_file

SIDES = ("trl", "alignkit")


def run(script: str, side: str, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run one side in a process of its own; raises RuntimeError with what it printed where it fails."""
    tells, tell = folder / "told.json", folder / "result.json"
    tells.write_text(json.dumps(job), "utf-8")
    command = [sys.executable, str(HERE / script), side, str(tells), str(tell)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{side} failed:\n{(ended.stdout + ended.stderr)[-ABRIDGED:]}")
    result: dict[str, Any] = json.loads(tell.read_text("utf-8"))
    return result


def exact(results: Mapping[str, Mapping[str, Any]], model: Path, folder: Path) -> dict[str, Any]:
    """Compare the losses of both sides, and the weights that each has saved in a folder of its name."""
    start, *ends = (load_file(place / "model.safetensors") for place in (model, *(folder / side for side in SIDES)))
    way, apart = (
        sum(float((one[name] - other[name]).square().sum()) for name in start) ** 0.5
        for one, other in ((start, ends[0]), (ends[0], ends[1]))
    )
    losses = list(zip(*(results[side]["losses"] for side in SIDES), strict=True))
    return {
        "steps": len(losses),
        "greatest difference of losses": max(abs(one - other) for one, other in losses),
        "first loss": losses[0],
        "last loss": losses[-1],
        "weights apart, as a share of the way": apart / way,
    }
