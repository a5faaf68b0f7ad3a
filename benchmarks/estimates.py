"""Hold what `alignkit check` estimates against what stages take: peak memory and time of each method.

    python benchmarks/estimates.py --model builtin:tiny --json tiny.json
    python benchmarks/estimates.py --model FOLDER --methods dpo ppo

Each method runs two or three steps on generated rows, with all weights and with LoRA, with a batch of 8 rows of 60
words, with twice the batch, and with twice the words. Memory is a stage's peak less the libraries' own:
what its process held before, and pages of libraries' files. The estimate is made first, knowing nothing of the run.
"""

import argparse
import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ppo_vs_trl import machine

from alignkit.estimate.desk import desk_for
from alignkit.estimate.estimator import Estimate, Estimator
from alignkit.plan.plan import Plan
from alignkit.plan.planner import make_plan
from alignkit.run.runner import run_plan
from alignkit.store.durable import read_json

WORDS = "the cat sat on a mat and it was good film bad story one day time old man saw her big red house".split()  # noqa: SIM905  # easier to read
MIB = 2**20


class Case(NamedTuple):
    method: str
    kind: str
    """Of the rows that it takes."""
    more: Mapping[str, str | int] = {}


CASES = {
    "clm": Case("clm", "text"),
    "sft": Case("sft", "demonstrations"),
    "reward": Case("reward", "preferences"),
    "dpo": Case("dpo", "preferences"),
    "kto": Case("kto", "preferences"),
    "ppo": Case("ppo", "prompts"),
    "ppo-shared": Case("ppo", "prompts", {"layout": "shared"}),
    "ppo-frozen": Case("ppo", "prompts", {"layout": "frozen", "trained_layers": 1}),
    "grpo": Case("grpo", "prompts"),
    "rloo": Case("rloo", "prompts"),
    "evaluate": Case("evaluate", "prompts"),
}
SIZES = ((8, 60), (16, 60), (8, 120))
"""Batch and words of a row."""
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny", help="a policy's address, as in a recipe")
    parser.add_argument("--methods", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sizes", type=int, nargs="+", choices=range(len(SIZES)), default=list(range(len(SIZES))))
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    rows = list(measured(words.model, words.methods, [SIZES[place] for place in words.sizes]))
    print(f"\n{machine()}; {words.model}")
    for what in ("memory", "seconds"):
        ratios = sorted(row[f"estimated {what}"] / row[what] for row in rows)
        print(f"{what}: estimate over measured {ratios[0]:.2f} to {ratios[-1]:.2f}, median {median(ratios):.2f}")
    off = [row for row in rows if abs(row["estimated memory"] - row["memory"]) > max(50.0, 0.25 * row["memory"])]
    print(f"memory: {len(rows) - len(off)} of {len(rows)} within 25 % or 50 MiB")
    near = [row for row in rows if 0.5 <= row["estimated seconds"] / row["seconds"] <= 2]
    print(f"seconds: {len(near)} of {len(rows)} within 2x")
    if words.json:
        words.json.write_text(json.dumps({"measured on": machine(), "rows": rows}, indent=1) + "\n", "utf-8")


def measured(model: str, methods: list[str], sizes: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Estimate and run each case in a folder of its own."""
    for name in methods:
        for lora in (False, True):
            if lora and name in ("evaluate", "ppo-frozen"):
                continue
            for batch, words in sizes:
                with tempfile.TemporaryDirectory() as place:
                    row = {"case": name, "lora": lora, "batch": batch, "words": words}
                    row |= one(recipe(Path(place), model, CASES[name], lora, batch, words))
                print(
                    f"{name:11} {'lora' if lora else 'full':5} batch {batch:2} words {words:3}   "
                    f"MiB {row['memory']:6.0f}, estimated {row['estimated memory']:6.0f}   "
                    f"seconds {row['seconds']:6.1f}, estimated {row['estimated seconds']:6.1f}",
                    flush=True,
                )
                yield row


def one(file: Path) -> dict[str, Any]:
    """Estimate a recipe's one stage, then run it."""
    runs = file.parent / "runs"
    plan = make_plan(file, runs=runs)
    guess = estimate(plan, runs)
    result = run_plan(plan, runs=runs, offline=True)
    facts = read_json(result.stages[0].folder / "stage.json")
    held = facts["peak_memory"]
    return {
        "memory": (held["memory"] - held["libraries"]) / MIB,
        "estimated memory": guess.need.memory / MIB,
        "seconds": facts["seconds"],
        "estimated seconds": guess.need.seconds,
        "parts": {name: size / MIB for name, size in guess.need.parts.items()},
    }


def estimate(plan: Plan, runs: Path) -> Estimate:
    desk, errors = desk_for(plan, runs, offline=True)
    if errors:
        raise errors[0]
    return next(Estimator(desk).estimates())


def recipe(folder: Path, model: str, case: Case, lora: bool, batch: int, words: int) -> Path:
    """Write rows and a recipe of one stage."""
    chance, count = random.Random(1), STEPS * batch + 12

    def text(many: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(many))

    rows: Mapping[str, Callable[[], Mapping[str, str]]] = {
        "text": lambda: {"text": text(2 * words)},
        "demonstrations": lambda: {"prompt": text(words // 3), "completion": " " + text(2 * words // 3)},
        "preferences": lambda: {
            "prompt": text(words // 3),
            **{side: " " + text(2 * words // 3) for side in ("chosen", "rejected")},
        },
        "prompts": lambda: {"prompt": text(words // 3)},
    }
    (folder / "rows.jsonl").write_text("".join(json.dumps(rows[case.kind]()) + "\n" for _ in range(count)), "utf-8")
    address = model if ":" in model else str(Path(model).resolve())
    compared = case.method == "evaluate"
    lines = ['name = "case"', "[sources]", f'base = {{ policy = "{address}" }}']
    lines += [f'other = {{ policy = "{address}" }}'] if compared else []
    lines += [f'rows = {{ {case.kind} = "rows.jsonl", held_out = 0.2 }}']
    lines += ['gold = { reward = "function:reviews-gold" }'] if case.kind == "prompts" else []
    lines += ["[stage.one]", f'method = "{case.method}"', *(["lora = {}"] if lora else [])]
    lines += ['inputs.policies = ["base", "other"]'] if compared else []
    lines += [f"{case.method}.{key} = {value}" for key, value in settings(case, batch, words).items()]
    file = folder / "case.toml"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


def settings(case: Case, batch: int, words: int) -> dict[str, Any]:
    """Give what the recipe says to the method."""
    new = 2 * words // 3
    if case.method == "evaluate":
        return {"prompts": batch, "max_new_tokens": new}
    if case.kind == "prompts":
        more = {"answers": 4} if case.method != "ppo" else {}
        steps = {"updates": STEPS - 1, "epochs": 2, "minibatches": 2, "measured": 8}
        layout = {key: json.dumps(value) for key, value in case.more.items()}
        return {"batch": batch, **steps, "generation.max_new_tokens": new, **more, **layout}
    return {"batch": batch, "epochs": 1, "measured": 8} | ({"max_length": words} if case.method == "clm" else {})


if __name__ == "__main__":
    main()
