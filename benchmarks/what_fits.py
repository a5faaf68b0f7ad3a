"""Tell what each GPU would hold of models of known shapes: `python benchmarks/what_fits.py`. No GPU is needed.

The estimate is that of `alignkit check`, for a card of 80 GiB, prompts of 256 tokens and answers of 384, in bf16;
weights are cut up among the GPUs where there are several. Each cell tells what a GPU holds whatever a pass does
(weights, gradients, AdamW's moments), and how many tokens go through at once beside it; with a star, layers are
computed again for the gradient; "no": it does not fit. What a layer keeps is weighed on a narrower one.
"""

import argparse
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from transformers import LlamaConfig

from alignkit.contract.method import Method
from alignkit.estimate import formulas
from alignkit.estimate.formulas import Facts, Held, Job, estimated, space_on_card
from alignkit.estimate.sizes import sizes_of
from alignkit.estimate.timing import Gauge, Rate, kept_by_a_layer
from alignkit.plugins import load_plugins
from alignkit.testing.recording import settings_of_recipe
from alignkit.training import output_layer

CARD = 80 * 2**30
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
    "70B": {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
"""Qwen2.5-1.5B's, Llama 3.1's."""
JOBS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sft, all weights": ("sft", {}),
    "dpo, all weights": ("dpo", {}),
    "dpo, LoRA": ("dpo", {"lora": {"rank": 16}}),
    "grpo, all weights": ("grpo", {"batch": 128, "answers": 8, "minibatches": 4}),
    "ppo, a critic of its own": ("ppo", {"batch": 128, "minibatches": 4, "layout": "separate"}),
    "ppo, shared body": ("ppo", {"batch": 128, "minibatches": 4, "layout": "shared"}),
}
HELD = ("weights", "gradients", "optimiser", "rounded")
NO_TIME = Rate(0.0, 0.0, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8, 64])
    words = parser.parse_args()
    on_a_card()
    columns = [f"{name}, {count} GPU{'s' * (count > 1)}" for name in words.shapes for count in words.gpus]
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (1 + len(words.shapes) * len(words.gpus)) + "|")
    for job, (method, given) in JOBS.items():
        cells = [
            cell(load_plugins(()).method(method), given, name, gpus) for name in words.shapes for gpus in words.gpus
        ]
        print(f"| {job} | {' | '.join(cells)} |", flush=True)


def on_a_card() -> None:
    """Have estimates made as on a machine with the card."""
    machine: Any = formulas  # what it asks of this machine is answered for another one
    machine.device = lambda: torch.device("cuda")
    machine.machine_memory = lambda: CARD
    machine.arithmetic = lambda precision: torch.float32 if precision == "fp32" else torch.bfloat16
    logits: Any = output_layer
    logits.logits_in_a_chunk = lambda _: CARD // output_layer.PART_OF_A_GPU


@cache
def kept(name: str) -> float:
    """Weigh what a layer keeps of a token, on one of a quarter of the width: it grows with all widths alike."""
    shape = SHAPES[name]
    wide = shape["hidden_size"] // shape["num_attention_heads"]
    parts = {size: max(1, shape[size] // 4) for size in ("hidden_size", "intermediate_size", "num_attention_heads")}
    keys = max(1, shape["num_key_value_heads"] // 4)
    small = LlamaConfig(**{**shape, **parts, "num_key_value_heads": keys, "head_dim": wide})
    return 4 * kept_by_a_layer(small, None, "bf16")


def cell(method: Method, given: Mapping[str, Any], name: str, gpus: int) -> str:
    """Tell what a GPU holds whatever a pass does, and whether there is room for passes beside it."""
    config = LlamaConfig(**SHAPES[name])
    settings: Any = settings_of_recipe(method.settings, given)
    needs = method.needs(settings)
    assert needs
    others = [Held(sizes_of(config, scores=True), trains=False, bytes=2)] if "rewards" in method.consumes else []
    gauge = Gauge(kept(name), NO_TIME, NO_TIME, NO_TIME, 0.0, 0.0, NO_TIME)
    job = Job(needs, Facts(10_000, 0, 256.0, 384.0, 640), sizes_of(config, settings.lora), gauge, others, parts=gpus)
    need = estimated(needs, job)
    held = sum(need.parts.get(part, 0.0) for part in HELD)
    if need.memory > CARD:
        return f"{held / 2**30:,.0f} GiB: no"
    least = space_on_card(job.policy, gauge.kept, CARD, held + need.parts["logits"])
    again = " \\*" if least.kept < gauge.kept * job.policy.layers else ""
    return f"{held / 2**30:,.0f} GiB, {least.tokens // 1024}k{again}"


if __name__ == "__main__":
    main()
