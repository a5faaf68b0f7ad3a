"""Measure CLM, SFT and reward against TRL, side by side: the same model, rows, batches, learning rate, all in fp32.

    python benchmarks/rows_vs_trl.py sft --data sft_t0_tasks.jsonl.gz --json sft.json

The model is a Llama of 30 million random weights (see made_models.py). Both sides get the same tokens and take the same
batches in the same order, each in a new process, one after the other in every repeat. First once for exactness: the
loss of every step, and how far apart the weights end, as a share of the way that they went. Then for speed; TRL has its
own best of how many rows it takes at once, in the given order or (for speed alone) grouped by length, which is tried
out first. Seconds are those of the processors: on cores that are shared with other work they are disturbed the least.
"""

import argparse
import gzip
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trl
from made_models import make_models
from ppo_vs_trl import machine, spread
from sides import SIDES, exact, run
from transformers import AutoTokenizer

from alignkit.methods.clm import blocks
from alignkit.training.encoding import demonstrations, preferences
from alignkit.training.row_order import rows_of_step

SEED = 17
TRIED = 1
"""Steps by which TRL's best is found."""


def main() -> None:
    words = read_words()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_models(words.model, 28.0, folder)
        model = models.reward if words.method == "reward" else models.policy
        rows = read_rows(words, model)
        tokens = [len(row[0]) + (len(row[1]) if words.method == "reward" else 0) for row in rows]
        if not words.micro:
            words.micro, words.strategy = best(words, model, rows, folder)
        exact = exactness(words, model, rows, folder)
        found = speed(words, model, rows, folder)
    facts = {
        "measured on": f"{machine()}, {os.environ['OMP_NUM_THREADS']} threads",
        "trl": trl.__version__,
        "method": words.method,
        "data": words.data.name,
        "tokens of a row": {"mean": sum(tokens) / len(tokens), "max": max(tokens)},
        "batch": words.batch,
        "rows that TRL takes at once": words.micro,
        "TRL's order": words.strategy,
        "exact": exact,
        "speed": found,
    }
    ratio, memory = found["times TRL's speed"], found["share of TRL's memory"]
    print(
        f"{words.method}: {ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f}) times TRL's speed, "
        f"{memory['median']:.2f} of its memory; losses differ by at most {exact['greatest difference of losses']:.1e}"
    )
    if words.json:
        words.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def read_words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["clm", "sft", "reward"])
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines, also .gz")
    parser.add_argument("--model", default="30M", help="5M, 30M, or a model's folder (default 30M)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="of a timed run (default 4)")
    parser.add_argument("--exact-steps", type=int, default=10, help="of the run for exactness (default 10)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest", type=int, default=256, help="tokens of a row (default 256)")
    parser.add_argument("--micro", type=int, help="rows that TRL takes at once (default: its fastest, tried out)")
    parser.add_argument("--strategy", default="sequential", help="TRL's order, with --micro (default sequential)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(words.threads), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    return words


def read_rows(words: argparse.Namespace, model: Path) -> list[list[list[int]]]:
    """Give rows as tokens, as many as the longest run takes: ids and labels, or both sides of a pair."""
    opened = gzip.open if words.data.suffix == ".gz" else open
    with opened(words.data, "rt", encoding="utf-8") as lines:
        given = [{name: as_text(value) for name, value in json.loads(line).items()} for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(model)
    found: list[list[list[int]]]
    if words.method == "clm":
        found = [[*row.tokens] for row in blocks(given, tokenizer, words.longest)]
    elif words.method == "sft":
        found = [[*row] for row in demonstrations(given, tokenizer, words.longest)[0]]
    else:
        found = [[pair.chosen, pair.rejected] for pair in preferences(given, tokenizer, words.longest)[0]]
    wanted = words.batch * max(words.steps, words.exact_steps)
    repeated: list[list[list[int]]] = found * -(-wanted // len(found))
    return repeated[:wanted]


def as_text(value: Any) -> str:
    """Give a text or a chat as words, for a tokenizer that knows nothing else."""
    turns = [turn["content"] for turn in value] if isinstance(value, list) else [str(value)]
    return " " + " ".join(" ".join(turns).split())


def best(words: argparse.Namespace, model: Path, rows: Sequence[Any], folder: Path) -> tuple[int, str]:
    """Find how TRL should take its rows: small batches are padded less, large ones need fewer passes."""
    seconds: dict[tuple[int, str], float] = {}
    grouped = (
        ["group_by_length"] if words.method == "sft" else []
    )  # blocks are of one length, and pairs it cannot group
    for strategy in ("sequential", *grouped):
        for micro in (size for size in (1, 4, 16) if words.batch % size == 0):
            words.micro, words.strategy = micro, strategy
            job = told(words, model, rows[: TRIED * words.batch])
            seconds[micro, strategy] = run("rows_side.py", "trl", job, folder)["seconds"]
            print(f"TRL, {micro} rows at once, {strategy}: {seconds[micro, strategy]:.2f} s", flush=True)
    return min(seconds, key=seconds.__getitem__)


def exactness(words: argparse.Namespace, model: Path, rows: Sequence[Any], folder: Path) -> dict[str, Any]:
    """Take the same steps on both sides, and compare losses and weights."""
    rows = rows[: words.batch * words.exact_steps]
    results = {}
    for side in SIDES:
        job = told(words, model, rows, save=folder / side, learning_rate=1e-4)
        results[side] = run("rows_side.py", side, job | {"strategy": "sequential"}, folder)
    return exact(results, model, folder)


def speed(words: argparse.Namespace, model: Path, rows: Sequence[Any], folder: Path) -> dict[str, Any]:
    """Run both sides in turn, repeat by repeat."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repeat in range(words.repeats):
        for side in SIDES:
            found[side].append(run("rows_side.py", side, told(words, model, rows[: words.batch * words.steps]), folder))
        parts = (f"{side} {results[-1]['seconds']:.2f} s" for side, results in found.items())
        print(f"repeat {repeat + 1}: {', '.join(parts)}", flush=True)
    both = list(zip(found["trl"], found["alignkit"], strict=True))
    return {
        "times TRL's speed": spread([their["seconds"] / our["seconds"] for their, our in both]),
        "share of TRL's memory": spread([our["memory"] / their["memory"] for their, our in both]),
        **{
            side: {key: spread([float(result[key]) for result in results]) for key in ("seconds", "memory")}
            for side, results in found.items()
        },
    }


def told(
    words: argparse.Namespace,
    model: Path,
    rows: Sequence[Any],
    save: Path | None = None,
    learning_rate: float = 1e-6,
) -> dict[str, Any]:
    """Say what is to be done; TRL gets the rows in the order in which ours takes them."""
    steps = -(-len(rows) // words.batch)
    order = [row for step in range(steps) for row in rows_of_step(len(rows), step, words.batch, SEED)]
    return {
        "method": words.method,
        "model": str(model),
        "rows": list(rows),
        "ordered": [rows[row] for row in order],
        "batch": words.batch,
        "micro": words.micro,
        "strategy": words.strategy,
        "learning_rate": learning_rate,
        "seed": SEED,
        "save": str(save) if save else "",
    }


if __name__ == "__main__":
    main()
