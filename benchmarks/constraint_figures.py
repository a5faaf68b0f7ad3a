"""Measure whether a constraint holds, and what it costs beside fixed weights, on recipes/constrained.toml.

    python benchmarks/constraint_figures.py --seeds 10

Every seed trains `align` anew, upon the same policy and reward model: under the recipe's constraint, and once for each
weight of a grid, the cost then being a reward of that weight. What is compared are answers to held-out prompts. A bound
holds where the mean cost lies beyond it by at most two standard errors; a weight holds it where its mean over the seeds
does.
"""

import argparse
import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

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
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `alignkit recipe`")
    parser.add_argument("--runs", type=Path, help="where the runs are kept (default: nowhere)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    bound = tomllib.loads(RECIPE.read_text("utf-8"))["stage"]["align"]["constraints"][COST]["min"]
    given = dict(one.split("=", 1) for one in words.set)
    fixed = {"align.constraints": {}, "align.inputs.rewards": ["reward", COST]}
    facts: dict[str, object] = {"bound": bound, "seeds": words.seeds, "set": given}
    with tempfile.TemporaryDirectory() as folder:
        runs = words.runs or Path(folder)
        ways: dict[str, list[dict[str, float]]] = {"constraint": []} | {f"weight {weight:g}": [] for weight in WEIGHTS}
        for seed in range(1, words.seeds + 1):
            ways["constraint"].append(constrained(measure(given, seed, runs)))
            for weight in WEIGHTS:
                changes = {**given, **fixed, f"{COST}.weight": weight}
                ways[f"weight {weight:g}"].append(weighted(measure(changes, seed, runs)))
            for name, found in ways.items():
                print(
                    f"seed {seed}  {name:12} reward {found[-1]['reward']:.3f}  cost {found[-1]['cost']:.3f}", flush=True
                )
    for name, found in ways.items():
        held = sum(one["cost"] >= bound - 2 * one["error"] for one in found)
        reward, cost = (fmean(one[key] for one in found) for key in ("reward", "cost"))
        print(
            f"{name:12} reward {reward:.3f}  mean cost {cost:.3f} (at least {bound:g})  holds in {held} of {len(found)}"
        )
        facts[name] = {"reward": reward, "cost": cost, "held": held, "seeds": found}
    if words.json:
        words.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
