"""Measure DPO against TRL's DPOTrainer, side by side: the same model, pairs, batches, learning rate, all in fp32.

    python benchmarks/dpo_vs_trl.py --pairs PAIRS.jsonl.gz --json dpo.json

PAIRS has rows of prompt, chosen and rejected (without it: the packaged reviews). The model is a Llama of 30 million
random weights (see made_models.py). Both sides take the same batches in the same order, each in a new process, one
after the other in every repeat. First once for exactness: the loss of every step, and how far apart the weights end,
as a share of the way that they went. Then for speed, with what the start says computed in the run, and with it cached
before (which is shown apart). How many pairs TRL takes at once is tried out first, and the fastest is used, unless
--micro says it. TRL keeps its reference in memory unless that is cached; ours never has one.
"""

import argparse
import gzip
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trl
from made_models import make_models
from ppo_vs_trl import machine, spread
from sides import SIDES, exact, run
from transformers import AutoTokenizer

from alignkit.demo.reviews import rows as reviews
from alignkit.training.row_order import rows_of_step

SEED = 17


def main() -> None:
    words = read_words()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_models(words.model, 28.0, folder).policy
        pairs = read_pairs(words, model)
        words.micro = words.micro or best_micro_batch(words, model, pairs, folder)
        exact = exactness(words, model, pairs, folder)
        speeds = {cached: speed(words, model, pairs, folder, cached) for cached in (False, True)}
    facts = {
        "measured on": f"{machine()}, {os.environ['OMP_NUM_THREADS']} threads",
        "trl": trl.__version__,
        "pairs": words.pairs.name if words.pairs else "the packaged reviews",
        "batch": words.batch,
        "rows that TRL takes at once": words.micro,
        "exact": exact,
        "computed in the run": speeds[False],
        "cached before": speeds[True],
    }
    print_summary(facts)
    if words.json:
        words.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def read_words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="30M", help="5M, 30M, or a model's folder (default 30M)")
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="JSON Lines, also .gz")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro", type=int, help="pairs that TRL takes at once (default: its fastest, tried out)")
    parser.add_argument("--steps", type=int, default=8, help="of a timed run (default 8)")
    parser.add_argument("--exact-steps", type=int, default=50, help="of the run for exactness (default 50)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest", type=int, default=256, help="words of a pair's side; longer ones are left out")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(words.threads), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    return words


def read_pairs(words: argparse.Namespace, model: Path) -> list[dict[str, str]]:
    """Give pairs of text that fit, as many as the longest run takes."""
    if words.pairs:
        opened = gzip.open if words.pairs.suffix == ".gz" else open
        with opened(words.pairs, "rt", encoding="utf-8") as lines:
            found = [json.loads(line) for line in lines]
    else:
        found = list(reviews("preferences", "train"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    kept = [
        {name: " " + " ".join(as_text(row[name]).split()) for name in ("prompt", "chosen", "rejected")} for row in found
    ]
    fits = [
        row
        for row in kept
        if all(text.strip() for text in row.values())
        and max(len(tokenizer(row["prompt"] + row[side])["input_ids"]) for side in ("chosen", "rejected"))
        <= words.longest
    ]
    return fits[: words.batch * max(words.steps * words.repeats, words.exact_steps)]


def as_text(value: str | list[dict[str, str]]) -> str:
    return value if isinstance(value, str) else " ".join(turn["content"] for turn in value)


def best_micro_batch(words: argparse.Namespace, model: Path, pairs: Sequence[dict[str, str]], folder: Path) -> int:
    """Find how many pairs TRL should take at once: small batches are padded less, large ones need fewer passes."""
    seconds: dict[int, float] = {}
    for micro in (size for size in (1, 2, 4, 8, 16, 32) if words.batch % size == 0 and size <= words.batch):
        words.micro = micro
        seconds[micro] = run("dpo_side.py", "trl", told(words, model, pairs[: 2 * words.batch]), folder)["seconds"]
        print(f"TRL, {micro} pairs at once: {seconds[micro]:.2f} s for two steps", flush=True)
    return min(seconds, key=seconds.__getitem__)


def exactness(words: argparse.Namespace, model: Path, pairs: Sequence[dict[str, str]], folder: Path) -> dict[str, Any]:
    """Take the same steps on both sides, and compare losses and weights."""
    rows = pairs[: words.batch * words.exact_steps]
    results = {
        side: run("dpo_side.py", side, told(words, model, rows, save=folder / side, learning_rate=1e-4), folder)
        for side in SIDES
    }
    return exact(results, model, folder)


def speed(
    words: argparse.Namespace, model: Path, pairs: Sequence[dict[str, str]], folder: Path, cached: bool
) -> dict[str, Any]:
    """Run both sides in turn, repeat by repeat, each repeat on pairs of its own."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    size = words.batch * words.steps
    for repeat in range(words.repeats):
        rows = pairs[repeat * size : (repeat + 1) * size]
        for side in SIDES:
            found[side].append(run("dpo_side.py", side, told(words, model, rows, cached=cached), folder))
        parts = (f"{side} {results[-1]['seconds']:.2f} s" for side, results in found.items())
        print(f"{'cached' if cached else 'uncached'}, repeat {repeat + 1}: {', '.join(parts)}", flush=True)
    ratios = {
        name: spread([their[key] / our[key] for their, our in zip(found["trl"], found["alignkit"], strict=True)])
        for name, key in (("times TRL's speed", "seconds"), ("TRL's memory over ours", "memory"))
    }
    return ratios | {
        side: {key: spread([float(result[key]) for result in results]) for key in ("seconds", "filling", "memory")}
        for side, results in found.items()
    }


def print_summary(facts: Mapping[str, Any]) -> None:
    exact = facts["exact"]
    print(f"{facts['measured on']}; TRL {facts['trl']} takes {facts['rows that TRL takes at once']} pairs at once")
    print(
        f"{exact['steps']} same steps: losses differ by at most {exact['greatest difference of losses']:.1e}, "
        f"weights end {exact['weights apart, as a share of the way']:.1e} of the way apart"
    )
    for name in ("computed in the run", "cached before"):
        speed, memory = (facts[name][ratio] for ratio in ("times TRL's speed", "TRL's memory over ours"))
        print(
            f"the start {name}: {speed['median']:.2f} ({speed['min']:.2f}-{speed['max']:.2f}) times TRL's speed, "
            f"{1 / memory['median']:.2f} ({1 / memory['max']:.2f}-{1 / memory['min']:.2f}) of its memory"
        )


def told(
    words: argparse.Namespace,
    model: Path,
    pairs: Sequence[Mapping[str, str]],
    cached: bool = False,
    save: Path | None = None,
    learning_rate: float = 1e-6,
) -> dict[str, Any]:
    """Say what is to be done; TRL gets the rows in the order in which ours takes them."""
    steps = -(-len(pairs) // words.batch)
    order = [row for step in range(steps) for row in rows_of_step(len(pairs), step, words.batch, SEED)]
    return {
        "model": str(model),
        "pairs": list(pairs),
        "rows": [pairs[row] for row in order],
        "batch": words.batch,
        "micro": words.micro,
        "beta": 0.1,
        "learning_rate": learning_rate,
        "seed": SEED,
        "cached": cached,
        "save": str(save) if save else "",
    }


if __name__ == "__main__":
    main()
