"""Measure whether three rounds of online pairs teach more than one round of three times the pairs.

    python benchmarks/rounds_figures.py --seeds 3

recipes/iterated-dpo.toml runs with each pull (`dpo.beta`) in one round on all prompts, in three rounds that have a
third of the prompts each, and in three rounds with the reference fixed. What is compared is the gold score of answers
to held-out prompts at equal KL from the policy before the first round: for each run in rounds, less what the runs in
one round have there, on straight lines between them, seed by seed.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

from alignkit import run_recipe

RECIPE = Path(__file__).parent.parent / "recipes" / "iterated-dpo.toml"
BETAS = (0.01, 0.03, 0.1, 0.3, 1.0)
ONE = "one round"
ARMS: Mapping[str, Mapping[str, object]] = {
    ONE: {"repeat.rounds": 1},
    "three rounds": {},
    "three rounds, reference fixed": {"repeat.reference": "fixed"},
}
Point = tuple[float, float]
"""KL in nats, and gold score."""


def measure(changes: Mapping[str, object], seed: int, runs: Path) -> Point:
    run = run_recipe(RECIPE, set=changes, seed=seed, runs=runs)
    last = run.stage("align").name
    found = {figure.name: float(figure.after or 0) for figure in run.stage("scores").results}
    return found[f"kl {last}"], found[f"reward {last}"]


def gold_at(kl: float, line: Sequence[Point]) -> float | None:
    """Return the gold score at this KL on straight lines between points; None beyond their ends."""
    ordered = sorted(line)
    for (left, low), (right, high) in pairwise(ordered):
        if left <= kl <= right:
            return low + (high - low) * (kl - left) / (right - left)
    return None


def gains(arm: Mapping[str, Sequence[Point]], one: Mapping[str, Sequence[Point]], seeds: int) -> Iterator[float]:
    """Yield for each seed by how much an arm's gold scores exceed those of one round at equal KL, in the mean."""
    for seed in range(seeds):
        line = [points[seed] for points in one.values()]
        beside = [(gold, gold_at(kl, line)) for kl, gold in (points[seed] for points in arm.values())]
        yield fmean(gold - other for gold, other in beside if other is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="recipe seeds 1, 2, ... (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    facts = {"measured on": f"CPU, {os.cpu_count()} cores", "seeds": words.seeds, "arms": {}, "gains": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in ARMS.items():
            arm = facts["arms"][name] = {}
            for beta in BETAS:
                given = {**changes, "align.dpo.beta": beta}
                arm[str(beta)] = [measure(given, seed, Path(folder) / str(seed)) for seed in range(1, words.seeds + 1)]
                kl, gold = (fmean(values) for values in zip(*arm[str(beta)], strict=True))
                print(f"{name:30} beta {beta:<5} KL {kl:5.2f}  gold {gold:.3f}")
            if name != ONE:
                told = facts["gains"][name] = list(gains(arm, facts["arms"][ONE], words.seeds))
                error = stdev(told) / len(told) ** 0.5 if len(told) > 1 else float("nan")
                print(f"{name:30} at equal KL {fmean(told):+.3f}, standard error {error:.3f}")
    if words.json:
        words.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
