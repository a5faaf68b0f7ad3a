"""Measure how much of what PPO has learnt distillation gives to the policy it began with, and from how many tokens.

    python benchmarks/distill_figures.py --seeds 3

recipes/distill.toml runs as it stands, and with GRPO in place of PPO, as recipes/rlhf.toml sets it, whose first stages
it shares. What is compared is the gold score of answers to held-out prompts, and the tokens that each has sampled to
learn from.
"""

import argparse
import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit import run_recipe

HERE = Path(__file__).parent.parent
RECIPES = HERE / "recipes"


def gold(run: Any, policy: str) -> Any:
    return next(figure.after for figure in run.stage("scores").results if figure.name == f"reward {policy}")


def sampled(run: Any, stage: str, batch: int) -> float:
    """Return how many tokens a stage has sampled to learn from."""
    return float(run.metrics(stage)["length"].sum()) * batch


def measure(seed: int, runs: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    distilled = run_recipe(RECIPES / "distill.toml", seed=seed, runs=runs)
    grpo = run_recipe(RECIPES / "rlhf.toml", seed=seed, runs=runs, set={"align.method": "grpo"})
    start, teacher = gold(distilled, "finetune"), gold(distilled, "align")
    return {
        "start": start,
        "teacher": teacher,
        "distilled": gold(distilled, "distil"),
        "closed": (gold(distilled, "distil") - start) / (teacher - start),
        "grpo": gold(grpo, "align"),
        "tokens": sampled(distilled, "distil", settings["distill"]["batch"]),
        "tokens of grpo": sampled(grpo, "align", settings["grpo"]["batch"]),
        "tokens of the teacher": sampled(distilled, "align", settings["ppo"]["batch"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="recipe seeds 1, 2, ... (default 3)")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="keep the runs there, and reuse what is there")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    recipes = [tomllib.loads((RECIPES / name).read_text("utf-8")) for name in ("distill.toml", "rlhf.toml")]
    settings = {**recipes[1]["stage"]["align"], **recipes[0]["stage"]["distil"]}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, words.seeds + 1):
            found.append(measure(seed, words.runs or Path(folder), settings))
            print(f"seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in found[-1].items()), flush=True)
    means = {name: fmean(one[name] for one in found) for name in found[0]}
    print("mean:   " + ", ".join(f"{name} {value:.4g}" for name, value in means.items()))
    if words.json:
        facts = {"measured on": f"CPU, {os.cpu_count()} cores", "means": means, "seeds": found}
        words.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
