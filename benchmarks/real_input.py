"""Run the chain on real data and real models, and print what came of it.

    python benchmarks/real_input.py shakespeare --data DATA
    python benchmarks/real_input.py sentiment   --data DATA
    python benchmarks/real_input.py smollm2     --data DATA --gguf SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/real_input.py dpo         --data DATA --gguf SmolLM2-135M-Instruct.Q4_1.gguf

DATA is a folder with the files that benchmarks/recipes/*.toml name. The pairs of `pref_sentiment_derived` have four
prompts only, so their last 400 rows are held out by a file of their own. Runs lie in --runs and are reused.
"""

import argparse
import gzip
import json
import os
import shutil
from pathlib import Path
from statistics import fmean, stdev

from alignkit import run_recipe
from alignkit.run.run_result import RunResult

HERE = Path(__file__).parent
HELD_OUT = 400


def lay_out(name: str, data: Path, gguf: Path | None, folder: Path) -> Path:
    """Put a recipe and what it names into a folder; give the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    link(folder / "data", data)
    if gguf:
        link(folder / "model.gguf", gguf)
    with gzip.open(data / "pref_sentiment_derived.jsonl.gz", "rt", encoding="utf-8") as lines:
        pairs = list(lines)
    (folder / "pairs-train.jsonl").write_text("".join(pairs[:-HELD_OUT]), "utf-8")
    (folder / "pairs-held-out.jsonl").write_text("".join(pairs[-HELD_OUT:]), "utf-8")
    return Path(shutil.copy(HERE / "recipes" / f"{name}.toml", folder))


def link(place: Path, target: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(target.resolve())


def rewards_of(folder: Path) -> tuple[list[float], list[float]]:
    """Read the mean score and the KL of every PPO update."""
    lines = [json.loads(line)["values"] for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["objective/scores"] for line in lines], [line["objective/kl"] for line in lines]


def report(run: RunResult) -> None:
    for stage in run.stages:
        facts = json.loads((stage.folder / "stage.json").read_text("utf-8"))
        memory = facts["peak_memory"]["memory"] / 2**30
        print(f"{stage.name} ({stage.method}): {stage.seconds:.0f} s, {memory:.1f} GiB, CPU, {os.cpu_count()} cores")
        for figure in stage.results:
            before = "" if figure.before is None else f"{figure.before:.3f} -> "
            floor = "" if figure.floor is None else f" (floor {figure.floor:.3f})"
            print(f"    {figure.name}: {before}{figure.after:.3f}{floor}")
        if stage.method == "ppo":
            scores, kl = rewards_of(stage.folder)
            first, last = scores[:3], scores[-3:]
            error = ((stdev(first) ** 2 + stdev(last) ** 2) / 3) ** 0.5
            rise = fmean(last) - fmean(first)
            print(f"    mean score of updates 1-3: {fmean(first):.3f}, of the last 3: {fmean(last):.3f}")
            print(f"    rise {rise:.3f} = {rise / error:.1f} standard errors; largest KL {max(kl):.2f} nats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["shakespeare", "sentiment", "smollm2", "dpo"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/real"))
    parser.add_argument("--until")
    words = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    recipe = lay_out(words.name, words.data, words.gguf, words.runs / "recipes")
    report(run_recipe(recipe, runs=words.runs, until=words.until))


if __name__ == "__main__":
    main()
