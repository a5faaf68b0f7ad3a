"""Measure how a stage starts on many rows: seconds and peak memory, the first time and again.

    python benchmarks/many_rows.py --rows 5000000 --kinds strings

Demonstrations of some 140 tokens are generated into a file, as prompt and completion or as chats of two answers. A
stage's start encodes them into the cache, and reads the rows of a step; the start after it finds them there. Each is
measured in a process of its own. Memory is read from /proc, so this needs Linux.
"""

import argparse
import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import random
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

WORDS = "the cat sat on a mat and it was good film bad story one day time old man saw her big red house".split()  # noqa: SIM905  # easier to read
PROMPT, ANSWER = 12, 48
"""Words."""
MIB = 2**20


class Start(NamedTuple):
    """What a start took."""

    seconds: float
    worked: float
    """Seconds of all processors."""
    peak: int
    """Bytes that the process held at most."""
    before: int
    """Of them for the libraries and the model."""
    tokens: float
    """Of a row, in the mean."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--kinds", nargs="+", choices=ROWS, default=list(ROWS), help="default: both")
    words = parser.parse_args()
    print("| rows | start | tokens of a row | seconds | of processors | peak memory, MiB | over libraries and model |")
    print("|---|---|---|---|---|---|---|")
    for kind in words.kinds:
        with tempfile.TemporaryDirectory() as place:
            write(Path(place) / "rows.jsonl", words.rows, ROWS[kind])
            for when in ("first", "again"):
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    print(
                        line(f"{words.rows:,} {kind}", when, process.submit(started, Path(place)).result()), flush=True
                    )


def strings(said: Callable[[int], str]) -> Mapping[str, Any]:
    return {"prompt": said(PROMPT), "completion": f" {said(ANSWER)}"}


def chats(said: Callable[[int], str]) -> Mapping[str, Any]:
    turns = [("user", PROMPT // 2), ("assistant", ANSWER // 2)] * 2
    return {"messages": [{"role": role, "content": said(count)} for role, count in turns]}


ROWS = {"strings": strings, "chats": chats}


def write(file: Path, rows: int, make: Callable[[Callable[[int], str]], Mapping[str, Any]]) -> None:
    """Write so many rows; no two of them are alike."""
    chance = random.Random(17)

    def said(count: int) -> str:
        return " ".join(chance.choices(WORDS, k=count))

    with file.open("w", encoding="utf-8") as opened:
        for _ in range(rows):
            opened.write(json.dumps(make(said)) + "\n")


def started(folder: Path) -> Start:
    """Start a stage of `sft` on the rows, up to those of its first step."""
    from job import peak_memory

    from alignkit.contract.kinds import Demonstrations
    from alignkit.contract.row_settings import DemonstrationSettings
    from alignkit.data.records import Part
    from alignkit.testing import RecordingStage, write_tiny_policy
    from alignkit.training.demonstrated import read_demonstrations
    from alignkit.training.models import load_policy
    from alignkit.training.row_order import rows_of_step

    settings, stage = DemonstrationSettings(), RecordingStage(folder / "stage")
    model, tokenizer = load_policy(write_tiny_policy(folder / "model"))
    demos = Demonstrations(
        name="demos", fingerprint="0", path=Path(), parts=(Part(name="demos", paths=(folder / "rows.jsonl",)),)
    )
    before, began, worked = peak_memory(), time.perf_counter(), time.process_time()
    rows = read_demonstrations(demos, model, tokenizer, settings, stage).train
    step = [rows[row] for row in rows_of_step(len(rows), 0, settings.batch, stage.seed)]
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    return Start(seconds, worked, peak_memory(), before, sum(len(row.ids) for row in step) / len(step))


def line(rows: str, when: str, start: Start) -> str:
    """Return a line of the table."""
    memory = f"{start.peak / MIB:.0f} | {(start.peak - start.before) / MIB:.0f}"
    return f"| {rows} | {when} | {start.tokens:.0f} | {start.seconds:.1f} | {start.worked:.1f} | {memory} |"


if __name__ == "__main__":
    main()
