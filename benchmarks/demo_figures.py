"""Measure what the embedded default reaches: the packaged recipe under several seeds, into docs/figures/demo.json.

    python benchmarks/demo_figures.py --seeds 3

The README's table is made of that file. Every seed runs the whole chain in a folder of its own; seconds are those of
the run's stages, without set-up.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev

from alignkit import run_recipe
from alignkit.demo.reviews import bayes_accuracy

HERE = Path(__file__).parent.parent


def measure(seed: int, runs: Path) -> dict[str, float]:
    """Run the chain once and give its figures."""
    started = time.perf_counter()
    run = run_recipe("rlhf.toml", seed=seed, runs=runs)
    figures = {
        (stage.name, figure.name): figure.after
        for stage in run.stages
        for figure in stage.results
        if figure.after is not None
    }
    return {
        "gold, after CLM": figures["scores", "reward pretrain"],
        "gold, after SFT": figures["scores", "reward finetune"],
        "gold, after PPO": figures["scores", "reward align"],
        "gold, PPO above SFT": figures["scores", "reward align"] - figures["scores", "reward finetune"],
        "reward model's accuracy over the best possible": figures["reward", "accuracy"] / bayes_accuracy("held_out"),
        "KL of a PPO answer from SFT, in nats": figures["align", "kl"],
        "share of what is attainable at that KL": figures["scores", "attained align from finetune"],
        "seconds for the whole run": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="recipe seeds 1, 2, ... (default 3)")
    parser.add_argument("--out", type=Path, default=HERE / "docs" / "figures" / "demo.json")
    words = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(seed, Path(folder) / str(seed)) for seed in range(1, words.seeds + 1)]
    rows = [
        {
            "name": name,
            "mean": fmean(values),
            "low": min(values),
            "high": max(values),
            "std": stdev(values) if len(values) > 1 else 0.0,
        }
        for name in found[0]
        for values in [[figures[name] for figures in found]]
    ]
    facts = {
        "command": f"python benchmarks/demo_figures.py --seeds {words.seeds}",
        "measured_on": f"CPU, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "seeds": words.seeds,
        "rows": rows,
    }
    words.out.parent.mkdir(parents=True, exist_ok=True)
    words.out.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    for row in rows:
        print(f"{row['name']:50} {row['mean']:8.3f}   {row['low']:.3f} - {row['high']:.3f}")


if __name__ == "__main__":
    main()
