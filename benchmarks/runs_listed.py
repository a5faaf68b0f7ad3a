"""How long `alignkit runs` takes with many runs, each a copy of one that was made: the wall and the processor time.

python benchmarks/runs_listed.py --runs 200
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

from alignkit import run_recipe

RECIPE = """
name = "listed"
[sources]
base = { policy = "builtin:tiny" }
demos = { demonstrations = "builtin:reviews", rows = 40 }
[stage.finetune]
method = "sft"
sft.epochs = 1
"""


def main() -> None:
    """Make one run, copy it, and time the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="how many are kept")
    parser.add_argument("--repeats", type=int, default=5, help="the fastest of so many counts")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place) / "runs"
        made = made_run(Path(place), runs)
        for number in range(1, asked.runs):
            copy(made, number)
        times = [timed(runs) for _ in range(asked.repeats)]
    wall, processor = (min(column) for column in zip(*times, strict=True))
    print(f"{asked.runs} runs listed in {wall:.2f} s, {processor:.2f} s of one processor")


def made_run(place: Path, runs: Path) -> Path:
    """Run a small recipe, and return the folder that is kept of it."""
    (place / "listed.toml").write_text(RECIPE, "utf-8")
    return run_recipe(place / "listed.toml", runs=runs, inline=True).folder


def copy(made: Path, number: int) -> None:
    """Keep the same run once more, as of an earlier hour."""
    began = datetime(2026, 1, 1) + timedelta(hours=number)  # a name
    shutil.copytree(made, made.with_name(f"{began:%Y-%m-%dT%H-%M-%S}-{number:04x}"))


def timed(runs: Path) -> tuple[float, float]:
    """Return the wall and the processor time of the command, in seconds."""
    command = [sys.executable, "-m", "alignkit", "runs", "--runs", str(runs)]
    wall, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - wall, used


if __name__ == "__main__":
    main()
