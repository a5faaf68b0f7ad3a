"""Measure whether a constraint holds, and what it costs beside fixed weights, on recipes/constrained.toml.

    python benchmarks/constraint_figures.py --seeds 10 --set align.ppo.updates=24

Every seed trains `align` anew, upon the same policy and reward model: under the recipe's constraint, and the first ones
also once for each weight of a grid, the cost then being a reward of that weight. What is compared are answers to
held-out prompts. A bound holds where the mean cost lies beyond it by at most two standard errors.
"""

import argparse
import json
import os
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit import Result, run_recipe
from alignkit.noise import Z

HERE = Path(__file__).parent.parent
RECIPE = HERE / "recipes" / "constrained.toml"
COST = "brevity"
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)


def measure(changes: Mapping[str, object], seed: int, runs: Path) -> dict[str, Result]:
    run = run_recipe(RECIPE, set={"align.seed": seed, **changes}, until="align", runs=runs)
    return {figure.name: figure for figure in run.stage("align").results}


def constrained(results: Mapping[str, Result]) -> dict[str, float]:
    cost = results[f"cost/{COST}"]
    return {"reward": results["reward"].after or 0.0, "cost": cost.after or 0.0, "error": error_of(cost)}


def weighted(results: Mapping[str, Result]) -> dict[str, float]:
    cost = results[f"reward/{COST}"]
    return {"reward": results["reward/reward"].after or 0.0, "cost": cost.after or 0.0, "error": error_of(cost)}


def error_of(result: Result) -> float:
    """Return the standard error of a result over its held-out rows."""
    low, high = result.interval or (0.0, 0.0)
    return (high - low) / 2 / Z


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="seeds 1, 2, ... of the stage align (default 10)")
    parser.add_argument("--grid", type=int, default=4, help="the first so many with each fixed weight, too (default 4)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `alignkit recipe`")
    parser.add_argument("--runs", type=Path, help="where the runs are kept (default: nowhere)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    bound = tomllib.loads(RECIPE.read_text("utf-8"))["stage"]["align"]["constraints"][COST]["min"]
    given = dict(one.split("=", 1) for one in words.set)
    fixed = {**given, "align.constraints": {}, "align.inputs.rewards": ["reward", COST]}
    with tempfile.TemporaryDirectory() as folder:
        runs = words.runs or Path(folder)
        ways = {"constraint": [constrained(measure(given, seed, runs)) for seed in range(1, words.seeds + 1)]}
        for weight in WEIGHTS:
            changes = {**fixed, f"{COST}.weight": weight}
            ways[f"weight {weight:g}"] = [weighted(measure(changes, seed, runs)) for seed in range(1, words.grid + 1)]
    facts = {"bound": bound, "set": given, "ways": {name: summary(found, bound) for name, found in ways.items()}}
    for name, one in facts["ways"].items():
        held = f"holds in {one['held']} of {len(one['seeds'])}"
        print(f"{name:12} reward {one['reward']:.3f}, {COST} {one['cost']:.3f} (at least {bound:g}), {held}")
    if words.json:
        words.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def summary(found: Sequence[Mapping[str, float]], bound: float) -> dict[str, Any]:
    reward, cost = (fmean(one[key] for one in found) for key in ("reward", "cost"))
    held = sum(one["cost"] >= bound - 2 * one["error"] for one in found)
    return {"reward": reward, "cost": cost, "held": held, "seeds": found}


if __name__ == "__main__":
    main()
