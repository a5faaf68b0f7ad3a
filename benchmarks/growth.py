"""Measure how the time of a PPO update grows with the answers' length, the batch and the vocabulary.

    python benchmarks/growth.py --json growth.json

One of the three grows at a time, from a Llama of 5 layers and width 256 whose vocabulary has 4,096 words, with 16
prompts of 32 tokens and answers of 64 that none ends early. Reported is the median second of --updates updates after
one to warm up, its phases, and the peak of memory less what the process had before. Beside each row stands its share
of linear growth: the seconds a unit, over those of the row before; up to 1 is linear or better.
"""

import argparse
import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from job import forget_peak, peak_memory
from ppo_vs_trl import machine
from transformers import LlamaConfig, LlamaForCausalLM

from alignkit.methods.ppo import Generation, PPOSettings, train
from alignkit.training.layouts import Models, ValueHead
from alignkit.training.packing import packs
from alignkit.training.rollouts import Rollout
from alignkit.training.scoring import Scored
from alignkit.training.updates import Loop, start

BASE = {"answer": 64, "batch": 16, "vocabulary": 4096}
GROWN: Mapping[str, Sequence[int]] = {
    "answer": (64, 128, 256, 512),
    "batch": (8, 16, 32, 64),
    "vocabulary": (4096, 16384, 65536, 131072),
}
PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3, help="updates that count (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    rows = [
        {"grown": name, "size": size, **measured(BASE | {name: size}, words.updates)}
        for name, sizes in GROWN.items()
        for size in sizes
    ]
    print(f"{machine()}; layout shared, fp32\n")
    print(table(rows))
    if words.json:
        words.json.write_text(json.dumps({"measured on": machine(), "rows": rows}, indent=2) + "\n", "utf-8")


def measured(sizes: Mapping[str, int], updates: int) -> dict[str, float]:
    """Take updates of one job, and give the medians of what each took."""
    before = psutil.Process().memory_info().rss
    models = make(sizes["vocabulary"])
    given = PPOSettings(
        updates=updates + 1,
        batch=sizes["batch"],
        minibatches=1,
        learning_rate=1e-6,
        layout="shared",
        generation=Generation(max_new_tokens=sizes["answer"], unfinished="subtract", penalty=0),
    )
    chance = torch.Generator().manual_seed(1)
    prompts = torch.randint(sizes["vocabulary"], (sizes["batch"], PROMPT), generator=chance).tolist()
    logged: list[dict[str, float]] = []
    forget_peak()
    state = start(models, given, given.critic.learning_rate)
    train(Loop(models, state, prompts, some_scores, given, 1, lambda _, row: logged.append(dict(row))))
    tokens = sizes["batch"] * sizes["answer"]
    phases = {
        phase: median(tokens / row[f"tokens_per_second{key}"] for row in logged[1:])
        for phase, key in {"seconds": "", "sample": "/sample", "learn": "/learn"}.items()
    }
    return {**phases, "memory": float(peak_memory() - before)}


def make(vocabulary: int) -> Models:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    policy: Any = LlamaForCausalLM(config)
    reference = deepcopy(policy.eval()).requires_grad_(False)
    if not all(map(packs, (policy, reference))):
        raise SystemExit("a Llama is not packed")
    return Models(policy, reference, ValueHead(config.hidden_size, policy.device), frozenset(), form="packed")


def some_scores(rollout: Rollout) -> Scored:
    scores = torch.tensor([float(len(set(answer))) for answer in rollout.answers])
    return Scored(scores, {"different tokens": scores})


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Give the rows as a table of Markdown."""
    lines = ["| grows | to | seconds | sample | learn | memory, GB | share of linear |", "|---|" + "---:|" * 6]
    for before, row in zip([None, *rows], rows, strict=False):
        share = "-"
        if before and before["grown"] == row["grown"]:
            share = f"{row['seconds'] / before['seconds'] * before['size'] / row['size']:.2f}"
        figures = " | ".join(f"{row[name]:.2f}" for name in ("seconds", "sample", "learn"))
        lines.append(f"| {row['grown']} | {row['size']} | {figures} | {row['memory'] / 1e9:.2f} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
