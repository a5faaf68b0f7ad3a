"""Show that two processes learn what one does: losses and gradient norms of each step, with weights in each and cut up.

    python benchmarks/processes_equal.py --json docs/figures/processes_equal.json

Each method learns in miniature, in fp32 on the processor, from the same rows: with all weights, with embedding and head
tied, and with LoRA; in one process, in two that each hold all weights, and in two among which these are cut up. A
difference is told over the size of its figure, and at least 0.01.
"""

import argparse
import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppo_vs_trl import machine

from alignkit.contract.events import Event, Metrics
from alignkit.contract.method import Method
from alignkit.errors import RecipeError
from alignkit.plugins import load_plugins
from alignkit.testing import RecordingStage, run_method, write_inputs
from alignkit.testing.examples import write_tied_policy
from alignkit.testing.processes import run_in_processes

Figures = list[dict[str, float]]
"""Losses and gradient norms of each step."""

ROWS: Mapping[str, Any] = {"batch": 6, "epochs": 2}
ANSWERS = {"generation": {"max_new_tokens": 6, "unfinished": "subtract", "penalty": 0}}
ONLINE: Mapping[str, Any] = {"batch": 8, "updates": 4, "minibatches": 2, **ANSWERS}
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "clm": ("clm", {"batch": 2, "epochs": 2, "max_length": 32}),
    "sft": ("sft", ROWS),
    "reward": ("reward", ROWS),
    "dpo": ("dpo", ROWS),
    "kto": ("kto", {**ROWS, "batch": 8}),
    "ppo, a critic of its own": ("ppo", ONLINE),
    "ppo, shared": ("ppo", {**ONLINE, "layout": "shared"}),
    "ppo, frozen": ("ppo", {**ONLINE, "layout": "frozen", "trained_layers": 1}),
    "grpo": ("grpo", {**ONLINE, "answers": 4}),
    "rloo": ("rloo", {**ONLINE, "answers": 4}),
}
WEIGHTS = ("all", "all, tied", "LoRA")
WAYS = {"all weights in each": False, "cut up": True}
LEAST = 0.01


class Difference(NamedTuple):
    """How far two processes are from one, at worst."""

    loss: float
    grad_norm: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    words = parser.parse_args()
    plugins, found = load_plugins(()), list[dict[str, Any]]()
    print("| method | weights | steps | loss, first and last | all weights in each of two | cut up among two |")
    print("|---|---|---|---|---|---|")
    for name in words.cases:
        method, settings = plugins.method(CASES[name][0]), CASES[name][1]
        for weights in WEIGHTS:
            if weights == "LoRA" and settings.get("layout") == "frozen":
                continue  # one or the other
            found.append({"case": name, "weights": weights, **compared(method, settings, weights)})
            print(line(found[-1]), flush=True)
    if words.json:
        facts = {"measured on": machine(), "cases": found}
        words.json.write_text(json.dumps(facts) + "\n", "utf-8")


def compared(method: Method, settings: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Return the steps of one process, and how far those of two are from them; None where they refuse."""
    lora = {"lora": {"rank": 4}} if weights == "LoRA" else {}
    given = {"learning_rate": 1e-3, "precision": "fp32", **settings, **lora}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        policy = {"policy": write_tied_policy(folder / "tied")} if "tied" in weights else {}
        inputs, stage = write_inputs(method, folder / "inputs", policy), RecordingStage(folder / "stage")
        run_method(method, given, stage, **inputs)
        one, ways = steps_of(stage.events), dict[str, Difference | None]()
        for way, sharded in WAYS.items():
            try:
                _, told = run_in_processes(method, given, folder / way, inputs, sharded=sharded)
            except RecipeError:
                ways[way] = None
                continue
            ways[way] = difference(one, steps_of(told))
    return {"steps": one, **{way: found and found._asdict() for way, found in ways.items()}}


def steps_of(events: Sequence[Event]) -> Figures:
    """Return the losses and gradient norms that were told of each step."""
    metrics = (event.values for event in events if isinstance(event, Metrics))
    kept = [{name: value for name, value in step.items() if "loss" in name or "grad_norm" in name} for step in metrics]
    return [step for step in kept if step]


def difference(one: Figures, two: Figures) -> Difference:
    """Return how far two processes are from one."""

    def worst(part: str) -> float:
        return max(_apart(one, two, part), default=float("nan"))

    return Difference(worst("loss"), worst("grad_norm"))


def _apart(one: Figures, two: Figures, part: str) -> Iterator[float]:
    for ours, theirs in zip(one, two, strict=True):
        for name in ours:
            if part in name:
                yield abs(ours[name] - theirs[name]) / max(abs(ours[name]), LEAST)


def line(case: Mapping[str, Any]) -> str:
    """Return a line of the table."""
    steps = case["steps"]
    loss = next(name for name in steps[0] if "loss" in name)
    cells = [
        "refused" if case[way] is None else f"{case[way]['loss']:.0e}, {case[way]['grad_norm']:.0e}" for way in WAYS
    ]
    ends = f"{steps[0][loss]:.4f}, {steps[-1][loss]:.4f}"
    return f"| {case['case']} | {case['weights']} | {len(steps)} | {ends} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
