"""Measure whether a judge's preferences teach as much as the given ones, on the embedded default.

    python benchmarks/rlaif_figures.py --seeds 3

recipes/rlaif.toml runs as it stands (rlaif -> dpo), by way of a reward model (rlaif -> reward -> ppo), and both once
more on the packaged pairs in place of those that the judge made. All share their first stages. What is compared is the
gold score of answers to held-out prompts, after and above supervised fine-tuning.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from alignkit import run_recipe

HERE = Path(__file__).parent.parent
RECIPE = HERE / "recipes" / "rlaif.toml"
OWN = 'own     = { preferences    = "builtin:reviews" }'
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "rlaif -> dpo": {},
    "packaged pairs -> dpo": {"align.inputs.pairs": "own"},
    "rlaif -> reward -> ppo": {"align.method": "ppo"},
    "packaged pairs -> reward -> ppo": {"align.method": "ppo", "reward.inputs.pairs": "own"},
}


def measure(recipe: Path, changes: Mapping[str, object], seed: int, runs: Path) -> dict[str, float]:
    run = run_recipe(recipe, set=changes, seed=seed, runs=runs)
    found = {
        (stage.name, figure.name): figure.after
        for stage in run.stages
        for figure in stage.results
        if figure.after is not None
    }
    return {"start": found["scores", "reward finetune"], "gold": found["scores", "reward align"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="recipe seeds 1, 2, ... (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    facts = {"measured on": f"CPU, {os.cpu_count()} cores", "seeds": words.seeds, "variants": {}}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / RECIPE.name
        recipe.write_text(RECIPE.read_text("utf-8").replace("[sources]\n", f"[sources]\n{OWN}\n"), "utf-8")
        for name, changes in VARIANTS.items():
            found = [measure(recipe, changes, seed, Path(folder) / str(seed)) for seed in range(1, words.seeds + 1)]
            golds, starts = [one["gold"] for one in found], [one["start"] for one in found]
            print(f"{name:38} gold {fmean(starts):.3f} -> {fmean(golds):.3f}  ({min(golds):.3f} - {max(golds):.3f})")
            facts["variants"][name] = {"start": fmean(starts), "gold": fmean(golds), "golds": golds}
    if words.json:
        words.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
