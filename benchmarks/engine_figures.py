"""Measure answers from a server of vLLM against those of the policy itself, on the embedded default.

    scripts/vllm.sh build/vllm --cpu && python benchmarks/engine_figures.py build/vllm --seeds 3

`align` of recipes/rlhf.toml is trained anew for each seed, once with answers of its own and once with a server's, upon
the same policy and reward model; both as the variant says. What is compared is the reward on held-out prompts, and how
far server and policy are apart: the largest `engine/kl` and `engine/ratio_max` of all updates.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit import run_recipe
from alignkit.run.machine import Machine
from alignkit.serve.serving import Rollouts

RECIPE = Path(__file__).parent.parent / "recipes" / "rlhf.toml"
FIGURES = ("engine/kl", "engine/ratio_max")
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "ppo": {"align.method": "ppo"},
    "ppo, LoRA": {"align.method": "ppo", "align.ppo.lora": {"rank": 16}, "align.ppo.learning_rate": 3e-3},
    "grpo": {"align.method": "grpo"},
}


def served_by(folder: Path) -> Machine:
    """Return a machine whose answers come from a server of this environment, on a processor."""
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    more = ("--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096")
    return Machine(rollouts=Rollouts(vllm=str(folder / "bin" / "vllm"), more=more, environment=environment))


def measure(changes: Mapping[str, object], seed: int, runs: Path, machine: Machine) -> dict[str, float]:
    run = run_recipe(
        RECIPE, set={"align.seed": seed, **changes}, until="align", again=["align"], runs=runs, machine=machine
    )
    stage = run.stage("align")
    (reward,) = (figure.after for figure in stage.results if figure.name == "reward")
    lines = (stage.folder / "metrics.jsonl").read_text("utf-8").splitlines()
    logged = [json.loads(line)["values"] for line in lines]
    apart = {name: max((one[name] for one in logged if name in one), default=0.0) for name in FIGURES}
    return {"reward": reward or 0.0, "seconds": stage.seconds, **apart}


def summary(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    rewards = [one["reward"] for one in found]
    facts = {"reward": fmean(rewards), "rewards": rewards, "seconds": fmean(one["seconds"] for one in found)}
    return facts | {name: max(one[name] for one in found) for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm", type=Path, help="the folder of the environment that has vLLM")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1, 2, ... of the stage align (default 3)")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in words.variants:
            for way, machine in (("own answers", Machine()), ("a server's", served_by(words.vllm.resolve()))):
                seeds = range(1, words.seeds + 1)
                one = summary([measure(VARIANTS[name], seed, Path(folder), machine) for seed in seeds])
                facts[f"{name}, {way}"] = one
                spread = f"{min(one['rewards']):.3f} - {max(one['rewards']):.3f}"
                apart = f"engine/kl {one['engine/kl']:.1e}, ratio {one['engine/ratio_max']:.5f}"
                print(f"{name:10} {way:12} reward {one['reward']:.3f} ({spread}), {one['seconds']:.0f} s, {apart}")
    if words.json:
        words.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
