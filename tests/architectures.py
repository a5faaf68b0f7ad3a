"""Every method on small models of many architectures: what runs, and what is refused before anything is trained.

python tests/architectures.py [NAME ...]     prints the table of docs/architectures.md
"""

import json
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from chat_tokenizers import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from alignkit.contract.kinds import Policy
from alignkit.errors import AlignkitError
from alignkit.estimate.desk import desk_for
from alignkit.estimate.preflight import preflight
from alignkit.plan.planner import make_plan
from alignkit.run.runner import run_recipe
from alignkit.training.answers import answer_logprobs
from alignkit.training.miniature import miniature, stir
from alignkit.training.models import load_policy
from alignkit.training.tokenizers import PLAIN_TEMPLATE
from alignkit.training.ways import form_of, ways_of

MIXED = {"num_hidden_layers": 4}
PLAIN = """
llama qwen2 qwen3 mistral ministral gemma gemma3_text gemma4_text phi phi3 smollm3 olmo2 exaone4 starcoder2 glm4
seed_oss ernie4_5 apertus nemotron deepseek_v3 gpt2 gpt_neox opt gpt_bigcode gpt_neo gptj codegen bloom
falcon mpt stablelm xglm
cohere cohere2 gemma2 qwen3_moe olmoe glm4_moe minimax_m2 gpt_oss llama4_text qwen3_next qwen3_5_text jamba falcon_h1
nemotron_h mamba mamba2 rwkv recurrent_gemma
"""
"""Types of models as transformers makes them by default."""
ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {name: (name, {}) for name in PLAIN.split()} | {
    "opt, projected": ("opt", {"word_embed_proj_dim": 32}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "granite": ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0}),
    "granitemoehybrid": ("granitemoehybrid", {"layer_types": ["mamba", "attention", "mamba", "attention"], **MIXED}),
    "bamba": ("bamba", {"attn_layer_indices": [1, 3], **MIXED}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv", "full_attention"], **MIXED}),
    "mixtral, router logits": ("mixtral", {"output_router_logits": True}),
    "qwen2_moe, window": ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 128}),
}
"""Name -> its type of model, and what its config says besides."""
STAGES: Mapping[str, str] = {
    "clm": 'method = "clm"\nclm = { batch = 4, max_length = 32 }',
    "sft": 'method = "sft"\nsft = { batch = 8, epochs = 1, samples = 2 }',
    "sft, LoRA": 'method = "sft"\nlora = { rank = 2 }\nsft = { batch = 8, epochs = 1, samples = 2 }',
    "reward": 'method = "reward"\nreward = { batch = 8 }',
    "dpo": 'method = "dpo"\ndpo = { batch = 8 }',
    "ppo": 'method = "ppo"\nppo.layout = "separate"\n' + "{ONLINE}",
    "ppo, shared": 'method = "ppo"\nppo.layout = "shared"\n' + "{ONLINE}",
    "ppo, frozen": 'method = "ppo"\nppo.layout = "frozen"\nppo.trained_layers = 1\n' + "{ONLINE}",
    "grpo": 'method = "grpo"\ngrpo.answers = 4\n' + "{ONLINE}",
    "evaluate": 'method = "evaluate"\nevaluate = { prompts = 4, max_new_tokens = 6, samples = 1 }',
}
ONLINE = """{0}.updates = 2
{0}.batch = 8
{0}.minibatches = 1
{0}.epochs = 1
{0}.measured = 4
{0}.samples = 1
{0}.patience = 0
{0}.generation = {{ max_new_tokens = 6, unfinished = "subtract", penalty = 0.0 }}"""
SOURCES = """name = "sweep"
seed = 3
[sources]
base = { policy = "model" }
texts = { text = "texts.jsonl", held_out = 0.2 }
demos = { demonstrations = "demos.jsonl", held_out = 0.2 }
pairs = { preferences = "pairs.jsonl", held_out = 0.2 }
asks = { prompts = "asks.jsonl", held_out = 0.2 }
short = { reward = "function:brevity" }
[stage.one]
"""
PLUGIN = '''from alignkit import Settings, hookimpl, reward


class Brevity(Settings):
    scale: float = 20.0


@reward("brevity")
def brevity(answers, settings: Brevity) -> list[float]:
    """Prefer short answers."""
    return [-len(answer.text) / settings.scale for answer in answers]


@hookimpl
def alignkit_rewards():
    return [brevity]
'''
COLOURS, THINGS = ("red", "blue", "green", "brown"), ("door", "boat", "lamp", "chair", "field", "stone", "coat", "hill")


@dataclass
class Found:
    """What came of one architecture."""

    rows: str = ""
    decoding: str = ""
    apart: float = 0.0
    """The largest difference of a log-probability, in nats, between rows read together and each alone."""
    stages: dict[str, str] = field(default_factory=dict)
    """`ok`, or how it is refused, or what failed in mid-run."""


def write_model(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a small model of an architecture, with random weights and our tokenizer."""
    kind, more = ARCHITECTURES[name]
    small = miniature(AutoConfig.for_model(kind, **more))
    assert small is not None, f"no small model of {name} can be made"
    config = small.config
    config.vocab_size = len(tokenizer)
    if "vocab_size_per_layer_input" in config.to_dict():
        config.vocab_size_per_layer_input = len(tokenizer)
    for token in ("bos", "eos", "pad"):
        setattr(config, f"{token}_token_id", getattr(tokenizer, f"{token}_token_id"))
    torch.manual_seed(0)
    make: Any = AutoModelForCausalLM  # untyped
    model = make.from_config(config, dtype=torch.float32)
    if kind not in ("rwkv", "xlstm"):
        stir(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_encoder(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertForMaskedLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path) -> None:
    questions = [(f"What colour is the {thing} by the {other}?", f" the {thing} is {COLOURS[(a + b) % 4]}.")
                 for a, thing in enumerate(THINGS) for b, other in enumerate(THINGS[:5])]  # fmt: skip
    files = {
        "texts": [{"text": question + answer} for question, answer in questions],
        "demos": [{"prompt": question, "completion": answer} for question, answer in questions],
        "pairs": [
            {"prompt": question, "chosen": answer, "rejected": " I do not know."} for question, answer in questions
        ],
        "asks": [{"prompt": question} for question, _ in questions],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "brevity.py").write_text(PLUGIN)


def exactness(folder: Path) -> tuple[str, str, float]:
    """Compare log-probabilities of rows that are read together with those by plain transformers of each row alone."""
    model, _ = load_policy(Policy(name="p", fingerprint="0", path=folder))
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain.eval()
    chance = torch.Generator().manual_seed(1)
    draw = [torch.randint(3, 90, (length,), generator=chance).tolist() for length in (4, 4, 17, 1, 9, 6, 21, 2, 30, 11)]
    prompts, answers = [draw[0], draw[0], *draw[2:5]], draw[5:]
    ways, worst = ways_of(model), 0.0
    with torch.no_grad():
        together = answer_logprobs(model, prompts, answers)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            logits = plain(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].float()
            alone = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])[:, 0]
            worst = max(worst, float((together[row, : len(answer)] - alone).abs().max()))
    form = form_of(model)
    rows = form if form == "packed" else "padded" if ways.padded else "one by one"
    cached = {"padded": "cached", "level": "cached, prompts of one length", "none": "read anew"}[ways.decoding.cache]
    return rows, cached, worst


def outcome(folder: Path, stage: str) -> str:
    """Check a recipe of one stage as `alignkit recipe` does, and run it; say `ok`, or what is wrong."""
    text = STAGES[stage].replace("{ONLINE}", ONLINE.format(stage.partition(",")[0]))
    recipe, runs = folder / "recipe.toml", folder / "runs"
    recipe.write_text(SOURCES + text + "\n")
    shutil.rmtree(runs, ignore_errors=True)
    plan = make_plan(recipe, runs=runs, plugins=[folder / "brevity.py"])
    desk, _ = desk_for(plan, runs, offline=True)
    found = preflight(desk)
    if found.problems:
        return f"refused: {found.problems[0]}"
    try:
        run_recipe(recipe, runs=runs, inline=True, offline=True, plugins=[folder / "brevity.py"])
    except AlignkitError as error:
        return f"LOST: {error}"
    warned = [line for file in (runs / "stages").rglob("events.jsonl") for line in file.read_text().splitlines()]
    if any("what was to be measured and shown of it failed" in line for line in warned):
        return "ok, but nothing is shown"
    return "ok"


def sweep(names: Sequence[str], stages: Sequence[str], place: Path) -> Iterator[tuple[str, Found]]:
    """Run stages on architectures; yield what came of each."""
    tokenizer = make_tokenizer(PLAIN_TEMPLATE, ("<pad>", "<s>", "</s>"), eos="</s>", bos="<s>", pad="<pad>")
    write_rows(place)
    for name in names:
        shutil.rmtree(place / "model", ignore_errors=True)
        found = Found()
        if name == "bert":
            write_encoder(place / "model", tokenizer)
        else:
            write_model(name, place / "model", tokenizer)
            found.rows, found.decoding, found.apart = exactness(place / "model")
        found.stages = {stage: outcome(place, stage) for stage in stages}
        yield name, found


def table(found: Mapping[str, Found]) -> Iterator[str]:
    yield "| architecture | rows | decoding | " + " | ".join(STAGES) + " |"
    yield "|---|---|---|" + "---|" * len(STAGES)
    for name, one in found.items():
        cells = (outcome if outcome == "ok" else outcome.partition(":")[0] for outcome in one.stages.values())
        yield f"| {name} | {one.rows or '-'} | {one.decoding or '-'} | {' | '.join(cells)} |"


def main() -> None:
    warnings.simplefilter("ignore")
    quiet: Any = transformers_logging  # untyped
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    logging.disable(logging.WARNING)
    names = sys.argv[1:] or [*ARCHITECTURES, "bert"]
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, one in sweep(names, list(STAGES), Path(folder)):
            found[name] = one
            odd = {stage: outcome for stage, outcome in one.stages.items() if outcome != "ok"}
            print(f"{name}: {one.rows}, {one.decoding}, {one.apart:.1e} nats {odd or ''}", file=sys.stderr, flush=True)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
