"""Measure how fast rows are checked, and that memory does not grow with them.

    python benchmarks/data_speed.py --rows 1000000

Pairs of about 400 characters are generated into a file, read with the structural checks alone, then audited whole; each
in a new process, for its peak memory.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

READ = """
import resource, sys, time
from pathlib import Path
from alignkit.sources.audit import audit
from alignkit.contract.kinds import Preferences
from alignkit.data.records import Part, placed_rows
from alignkit.sources.source import RecordOptions
part = Part(name="pairs", paths=(Path(sys.argv[2]),))
pairs = Preferences(name="pairs", fingerprint="0", path=Path(), parts=(part,))
began = time.perf_counter()
if sys.argv[1] == "structural checks":
    for _ in placed_rows(part, "Preferences", Preferences.columns):
        pass
else:
    audit(pairs, RecordOptions())
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    words = parser.parse_args()
    chance = random.Random(17)
    known = [f"w{number}" for number in range(3000)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for _ in range(words.rows):
                row = {name: " ".join(chance.choices(known, k=25)) for name in ("prompt", "chosen", "rejected")}
                file.write(json.dumps(row) + "\n")
        for what in ("structural checks", "whole audit"):
            ended = subprocess.run([sys.executable, "-c", READ, what, path], capture_output=True, text=True, check=True)
            seconds, memory = map(float, ended.stdout.split())
            print(f"{what:18} {words.rows / seconds:10,.0f} rows/s, peak memory {memory:.0f} MiB")


if __name__ == "__main__":
    main()
