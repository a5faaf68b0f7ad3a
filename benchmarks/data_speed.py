"""Measure how fast rows are checked and encoded, and that memory does not grow with them.

    python benchmarks/data_speed.py --rows 1000000

Pairs of about 400 characters are generated into a file, read with the structural checks alone, then audited whole; then
a stage's start encodes them for a reward model, finds them in the cache when it starts again, and reads 10,000 of them.
Each in a new process, for its peak memory; seconds are also told of the processors alone, which other work disturbs
less.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = ("structural checks", "whole audit", "start", "start again")
READ = """
import resource, sys, time
from pathlib import Path
what, file, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if what.startswith("start"):
    from alignkit.testing import RecordingStage, write_tiny_policy
    from alignkit.training.encoded import encode_pairs_once
    from alignkit.training.tokenizers import open_tokenizer
    tokenizer = open_tokenizer(write_tiny_policy(file.parent / "model").path)
    stage = RecordingStage(file.parent / "stage")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
from alignkit.sources.audit import audit
from alignkit.contract.kinds import Preferences
from alignkit.data.records import Part, placed_rows
from alignkit.sources.source import RecordOptions
part = Part(name="pairs", paths=(file,), held_out=0.0)
pairs = Preferences(name="pairs", fingerprint="0", path=Path(), parts=(part,))
began, worked = time.perf_counter(), time.process_time()
if what.startswith("start"):
    found = encode_pairs_once(stage, pairs, tokenizer, 1024, lambda pair: pair).rows
    assert len(found) == rows
    sum(len(found[row].chosen.ids) for row in range(0, rows, max(1, rows // 10_000)) if what == "start again")
elif what == "structural checks":
    for _ in placed_rows(part, "Preferences", Preferences.columns):
        pass
else:
    audit(pairs, RecordOptions())
seconds, worked = time.perf_counter() - began, time.process_time() - worked
print(seconds, worked, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    words = parser.parse_args()
    chance = random.Random(17)
    known = [f"w{number}" for number in range(3000)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for _ in range(words.rows):
                row = {name: " ".join(chance.choices(known, k=25)) for name in ("prompt", "chosen", "rejected")}
                file.write(json.dumps(row) + "\n")
        for what in words.parts:
            command = [sys.executable, "-c", READ, what, path, str(words.rows)]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds, worked, memory, before = map(float, ended.stdout.split())
            print(
                f"{what:18} {seconds:7.1f} s ({worked:.1f} of processors), {words.rows / worked:10,.0f} rows/s of one "
                f"processor, peak memory {memory:.0f} MiB, {memory - before:.0f} more than before",
                flush=True,
            )


if __name__ == "__main__":
    main()
