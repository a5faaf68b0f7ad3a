"""Measure how long PPO takes to learn, against TRL 1.12.0's PPOTrainer: seconds until the gold score reaches a target.

    python benchmarks/learning_vs_trl.py --trl TRL --seeds 1 2 3 --json learning.json

TRL is a folder that this TRL is installed into, apart from any other; it is made where it is missing. The chain is the
packaged recipe's on `builtin:tiny`: for each seed of the recipe, CLM, SFT and a reward model are trained once, and both
sides start from the same policy and learn from the same reward model, with the same prompts, batch, epochs, optimiser
steps and greatest length. Ours has the recipe's settings but for what each --ours says, all of which run. TRL has its
own best of six: on the first seed every learning rate of --rates runs with every KL coefficient of --coefs, and what
reaches the target first, or else comes closest, runs on the other seeds. It takes 1 off the score of an answer that
was cut.

Gold is the known score that the reward model only approximates (`alignkit.demo.gold`): of sampled answers to the 256
held-out prompts, every --every updates, by the same code on both sides. Neither this nor loading is on the clock. The
time at which the target is reached is read off the straight line between the two measurements around it. A run goes
through all its updates, so the curves are whole; the learning rate falls to 0 over them on both sides.
"""

import argparse
import json
import os
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import inf, isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any

from job import HERE, TRL, Job, Result, install_trl, run_side
from ppo_vs_trl import machine, settings

from alignkit import __version__, run_recipe
from alignkit.demo.reviews import rows
from alignkit.methods.ppo import PPOSettings

RECIPE = HERE.parent / "recipes" / "rlhf.toml"
PENALTY = 1.0
"""What TRL takes off an answer that was cut; its examples have it."""


@dataclass
class Run:
    """One run of one side."""

    side: str
    seed: int
    learning_rate: float
    kl_coef: float
    curve: list[tuple[int, float, float]]
    """Updates done, seconds of training until then, gold."""
    steps: int
    """Optimiser steps in all."""
    seconds: float | None
    """Until the target was reached; None: it was not."""

    @property
    def best(self) -> float:
        return max(gold for _, _, gold in self.curve)

    @property
    def words(self) -> str:
        reached = "not reached" if self.seconds is None else f"reached after {self.seconds:.1f} s"
        name = f"{self.side}, seed {self.seed}, learning rate {self.learning_rate:g}, KL {self.kl_coef:g}"
        _, seconds, gold = self.curve[-1]
        return f"{name}: {reached}; gold {self.curve[0][2]:.3f} -> {gold:.3f} in {seconds:.1f} s, {self.steps} steps"


def main() -> None:
    words = read_words()
    install_trl(words.trl)
    with tempfile.TemporaryDirectory() as folder:
        runs = run_all(words, Path(folder))
    facts = summary(words, runs)
    for side, told in facts["sides"].items():
        if told["median"] is None:
            print(f"{side}: target not reached by half of the seeds {told['seconds']}")
        else:
            print(f"{side}: median {told['median']} s {told['seconds']}; {told['times TRL']} times TRL's speed")
    if words.json:
        words.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def read_words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True, help="folder of TRL 1.12.0; installed there if it is not")
    parser.add_argument("--target", type=float, default=0.75, help="gold to be reached (default 0.75)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the recipe (default 1 2 3)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3], help="TRL's learning rates")
    parser.add_argument("--coefs", type=float, nargs="+", default=[0.05, 0.1], help="TRL's KL coefficients")
    parser.add_argument("--updates", type=int, help="of both sides (default: the recipe's)")
    parser.add_argument("--every", type=int, default=1, help="updates between measurements (default 1)")
    parser.add_argument(
        "--ours", action="append", default=[], metavar='"KEY=VALUE ..."', help="settings of ours to run"
    )
    parser.add_argument("--trl-set", action="append", default=[], metavar="KEY=VALUE", help="an argument of PPOConfig")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OMP_NUM_THREADS of both (default: cores)")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the chains lie, to be reused")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(words.threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return words


def run_all(words: argparse.Namespace, folder: Path) -> list[Run]:
    """Find TRL's best on the first seed, and run both sides on all seeds."""
    first, *others = (make_job(words, seed) for seed in words.seeds)
    tried = [
        run(words, replace(first, learning_rate=rate, kl_coef=coef), None, folder)
        for rate, coef in product(words.rates, words.coefs)
    ]
    best = min(tried, key=lambda run: (run.seconds or inf, -run.best))
    runs = [run(words, first, ours, folder) for ours in words.ours or [""]]
    for job in others:
        theirs = replace(job, learning_rate=best.learning_rate, kl_coef=best.kl_coef)
        runs.append(run(words, theirs, None, folder))
        runs += [run(words, job, ours, folder) for ours in words.ours or [""]]
    return [best, *(run for run in tried if run is not best), *runs]


def make_job(words: argparse.Namespace, seed: int) -> Job:
    """Train what PPO starts from, and say what it has to do."""
    chain = run_recipe(RECIPE, seed=seed, runs=words.runs, until="reward")
    recipe = tomllib.loads(RECIPE.read_text("utf-8"))["stage"]["align"]["ppo"]
    ppo = PPOSettings.model_validate(recipe | ({"updates": words.updates} if words.updates else {}))
    longest = ppo.generation.max_new_tokens
    if longest is None:
        raise SystemExit(f"{RECIPE}: say ppo.generation.max_new_tokens, so that both sides answer as long")
    return Job(
        policy=str(chain.artifact("finetune").path.resolve()),
        reward=str(chain.artifact("reward").path.resolve()),
        prompts=[row["prompt"] for row in rows("prompts", "train")],
        held_out=[row["prompt"] for row in rows("prompts", "held_out")],
        updates=ppo.updates,
        batch=ppo.batch,
        epochs=ppo.epochs,
        minibatches=ppo.minibatches,
        max_new_tokens=longest,
        learning_rate=ppo.learning_rate,
        kl_coef=ppo.kl.coef,
        seed=seed,
        penalty=PENALTY,
        every=words.every,
        ours=ppo.model_dump(mode="json"),
        trl=settings(words.trl_set),
    )


def run(words: argparse.Namespace, job: Job, ours: str | None, folder: Path) -> Run:
    """Run TRL, or ours with these settings, once, and say how it went."""
    if ours is None:
        side, result = "TRL", run_side("trl_side.py", job, folder / "trl", words.trl)
    else:
        from our_side import merged

        whole = merged(job.ours, settings(ours.split()))
        job = replace(job, ours=whole, learning_rate=whole["learning_rate"], kl_coef=whole["kl"]["coef"])
        side, result = f"alignkit, {ours or 'as the recipe says'}", run_side("our_side.py", job, folder / "ours")
    made = told_of(side, job, result, words.target)
    print(made.words, flush=True)
    return made


def told_of(side: str, job: Job, result: Result, target: float) -> Run:
    seconds = seconds_to(target, [(seconds, gold) for _, seconds, gold in result.gold])
    return Run(side, job.seed, job.learning_rate, job.kl_coef, result.gold, result.steps[-1], seconds)


def seconds_to(target: float, curve: Iterable[tuple[float, float]]) -> float | None:
    """Read off when a curve of seconds and gold first reaches the target; None where it does not."""
    for (before, low), (after, high) in pairwise(curve):
        if low >= target:
            return before
        if high >= target:
            return before + (after - before) * (target - low) / (high - low)
    return None


def summary(words: argparse.Namespace, runs: Sequence[Run]) -> dict[str, Any]:
    """Put together what was measured; TRL's runs that were not its best stand apart."""
    best = runs[0]
    chosen = [run for run in runs if run.side != "TRL" or (run.learning_rate, run.kl_coef) == settled(best)]
    names = list(dict.fromkeys(run.side for run in chosen))
    seconds = {name: [run.seconds for run in chosen if run.side == name] for name in names}
    medians = {name: median(inf if value is None else value for value in values) for name, values in seconds.items()}
    return {
        "target": words.target,
        "seeds": words.seeds,
        "trl settings": settings(words.trl_set) | {"learning_rate": best.learning_rate, "kl_coef": best.kl_coef},
        "measured on": f"{machine()}, {words.threads} threads",
        "versions": {"alignkit": __version__, "trl": TRL},
        "sides": {
            name: {
                "seconds": [value and round(value, 1) for value in seconds[name]],
                "median": rounded(medians[name]),
                "times TRL": rounded(medians["TRL"] / medians[name]) if medians[name] < inf else None,
                "ends": [round(run.curve[-1][2], 3) for run in chosen if run.side == name],
            }
            for name in names
        },
        "curves": [{"side": name, "gold": mean_gold(run for run in chosen if run.side == name)} for name in names],
        "runs": [vars(run) for run in runs],
    }


def mean_gold(runs: Iterable[Run]) -> list[float]:
    """Give the mean gold of several runs, measurement by measurement."""
    measured = zip(*([gold for _, _, gold in run.curve] for run in runs), strict=True)
    return [round(fmean(golds), 3) for golds in measured]


def settled(run: Run) -> tuple[float, float]:
    return run.learning_rate, run.kl_coef


def rounded(value: float) -> float | None:
    """Give a number that JSON has; None for one that is not finite."""
    return round(value, 2) if isfinite(value) else None


if __name__ == "__main__":
    main()
