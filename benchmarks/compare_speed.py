"""Compare four variants one after another and two at a time, from nothing, by turns: the time of each, and whether all
artifacts are equal to the last byte.

    python benchmarks/compare_speed.py --pairs 3 --json jobs.json

Each stage computes in one thread, so that two of them have the cores that one has besides.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parent / "recipes" / "variants.toml"
VARIED = "prefer.dpo.beta=0.05,0.1,0.2,0.3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="how often each is run (default: 3)")
    parser.add_argument("--jobs", type=int, default=2, help="stages at the same time (default: 2)")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--vary", default=VARIED, metavar="KEY=A,B,...")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    pairs = []
    for number in range(words.pairs):
        order = (1, words.jobs) if number % 2 == 0 else (words.jobs, 1)
        sides = {jobs: compared(words.recipe, words.vary, jobs) for jobs in order}
        alone, beside = sides[1], sides[words.jobs]
        pair = {
            "ratio": beside["seconds"] / alone["seconds"],
            "one after another": alone["seconds"],
            f"{words.jobs} at a time": beside["seconds"],
            "processor seconds": [alone["processor"], beside["processor"]],
            "load before": [alone["load"], beside["load"]],
            "equal": alone["artifacts"] == beside["artifacts"],
            "artifacts": len(alone["artifacts"]),
        }
        pairs.append(pair)
        print(
            f"{alone['seconds']:6.1f} s one after another, {beside['seconds']:6.1f} s with {words.jobs} at a time: "
            f"{pair['ratio']:.2f}; {pair['artifacts']} artifacts, {'equal' if pair['equal'] else 'NOT EQUAL'}; load "
            f"before {alone['load']:.1f} and {beside['load']:.1f}",
            flush=True,
        )
    if words.json:
        on = f"CPU {platform.machine()}, {os.cpu_count()} cores, one thread each"
        words.json.write_text(json.dumps({"measured on": on, "pairs": pairs}, indent=1) + "\n", "utf-8")


def compared(recipe: Path, varied: str, jobs: int) -> dict[str, Any]:
    """Compare in a folder of its own; return what that took, and the hash of all that each stage made."""
    with tempfile.TemporaryDirectory() as place:
        line = [sys.executable, "-m", "alignkit", "compare", str(recipe), "--vary", varied, "--jobs", str(jobs)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        load, before, began = os.getloadavg()[0], os.times(), time.perf_counter()
        ended = subprocess.run(
            [*line, "--offline", "--quiet", "--runs", place],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds, after = time.perf_counter() - began, os.times()
        if ended.returncode:
            sys.exit(ended.stderr)
        artifacts = {folder.parent.name: _hash(folder) for folder in sorted(Path(place).glob("stages/*/artifact"))}
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "processor": processor, "load": load, "artifacts": artifacts}


def _hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


if __name__ == "__main__":
    main()
