"""What `engine.ahead = 1` gives and costs: held-out rewards over seeds, and the time of an update beside a slow server.

python benchmarks/ahead_figures.py [--seeds 3] [--updates 12] [--wait 1.0]

PPO of `builtin:tiny`, taught by `sft` first, answers prompts of `builtin:reviews`; the server holds the real model, and
every answer waits so many seconds besides.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from engine_server import engine_server

from alignkit import run_recipe
from alignkit.run.machine import Machine
from alignkit.serve.serving import Rollouts

RECIPE = """
name = "ahead"
[sources]
base = {{ policy = "builtin:tiny" }}
demos = {{ demonstrations = "builtin:reviews" }}
prompts = {{ prompts = "builtin:reviews" }}
gold = {{ reward = "function:reviews-gold" }}
[stage.finetune]
method = "sft"
sft.batch = 16
sft.epochs = 1
sft.learning_rate = 4e-3
[stage.align]
method = "ppo"
ppo.layout = "shared"
ppo.updates = {updates}
ppo.batch = {batch}
ppo.epochs = {epochs}
ppo.learning_rate = {rate}
ppo.kl.coef = 0.1
ppo.measured = {measured}
ppo.generation.max_new_tokens = {longest}
ppo.generation.penalty = 3.0
"""

USUAL = {"updates": 24, "batch": 128, "epochs": 2, "measured": 256, "longest": 48, "rate": 3e-4}


def ran(folder: Path, seed: int, ahead: int, machine: Machine | None = None, **how: float) -> Any:
    """Run the recipe, and return the stage that aligns."""
    file = folder / "r.toml"
    file.write_text(
        RECIPE.format(**{"updates": 24, "batch": 128, "epochs": 2, "measured": 256, "longest": 48, "rate": 3e-4} | how)
    )
    changes = {"align.ppo.engine.ahead": ahead}
    return run_recipe(file, set=changes, seed=seed, runs=folder / "runs", machine=machine, offline=True)


def rewards(folder: Path, seeds: int, updates: int) -> None:
    """Print held-out rewards of both, seed by seed."""
    print("| seed | held-out reward, ahead = 0 | KL | ahead = 1 | KL |\n|---|---|---|---|---|")
    gained: dict[int, list[float]] = {0: [], 1: []}
    for seed in range(1, seeds + 1):
        cells = [str(seed)]
        for ahead in (0, 1):
            results = {one.name: one for one in ran(folder, seed, ahead, updates=updates).stage("align").results}
            gained[ahead].append(results["reward"].after)
            cells += [f"{results['reward'].before:.3f} -> {results['reward'].after:.3f}", f"{results['kl'].after:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    differences = [one - other for one, other in zip(gained[1], gained[0], strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if seeds > 1 else float("nan")
    print(f"ahead = 1 less ahead = 0: {statistics.mean(differences):+.3f} (SE {error:.3f})\n")


def times(folder: Path, wait: float) -> None:
    """Print what an update takes beside a server that is slow, in both ways."""
    policy = ran(folder, 1, 0, updates=1).artifact("finetune").path
    print("| | sample, s | learn, s | update, s |\n|---|---|---|---|")
    with engine_server(policy, slow=wait) as server:
        machine = Machine(rollouts=Rollouts(urls=(server.url,), at_once=64))
        how = {"updates": 8, "batch": 32, "epochs": 12, "measured": 4, "longest": 12, "rate": 1e-5}
        for ahead in (0, 1):
            result = ran(folder, 1, ahead, machine, **how)
            rows = result.metrics("align").iloc[2:]
            spans = {name: 1 / rows[f"tokens_per_second{name}"] for name in ("/sample", "/learn", "")}
            answered = rows["length"] * how["batch"]
            seconds = [float((span * answered).median()) for span in spans.values()]
            print(f"| ahead = {ahead} | {' | '.join(f'{one:.2f}' for one in seconds)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="0: rewards are not compared")
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--wait", type=float, default=1.0, help="0: times are not measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.seeds:
            rewards(Path(name), options.seeds, options.updates)
        if options.wait:
            times(Path(name), options.wait)


if __name__ == "__main__":
    main()
