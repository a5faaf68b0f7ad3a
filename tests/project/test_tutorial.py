"""The tutorial recipe on its hub names, run offline from a hub cache that holds tiny stand-ins under those names."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from alignkit.plan.planner import make_plan

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SENTENCE = "the film was a warm and funny story with bad pacing but great actors in it . I liked hated this movie"
WORDS = SENTENCE.split()
SMALL = {
    "perplexity.max_length": 32,
    "imdb.max_length": 48,
    "helpful.max_length": 64,
    "positive.max_length": 48,
    "positive.ppo.updates": 2,
    "positive.ppo.batch": 8,
    "positive.ppo.measured": 8,
    "positive.ppo.generation.max_new_tokens": 8,
    "hh.held_out": "test",
}
"""Overrides that make every stage short."""


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * step + step) % len(WORDS)] for step in range(3, 11))


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(sentence, range(50)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def into_cache(cache: Path, name: str, kind: str = "models") -> Path:
    """Make the folder of a repository's commit in a hub cache."""
    repository = cache / f"{kind}--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def put_gpt2(cache: Path) -> None:
    folder = into_cache(cache, "openai-community/gpt2")
    end = "<|endoftext|>"  # as in GPT-2: one token for everything, and none to pad with
    tokenizer = byte_tokenizer(bos_token=end, eos_token=end, unk_token=end)
    tokenizer.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


def put_opt(cache: Path) -> None:
    folder = into_cache(cache, "facebook/opt-350m")
    tokenizer = byte_tokenizer(bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2,
        word_embed_proj_dim=16, max_position_embeddings=64, do_layer_norm_before=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")  # OPT's weights lie on the hub in this form only


def put_sentiment(cache: Path) -> None:
    folder = into_cache(cache, "lvwerra/distilbert-imdb")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(word.lower() for word in WORDS)]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = DistilBertConfig(
        vocab_size=len(words), dim=16, hidden_dim=32, n_layers=1, n_heads=2, max_position_embeddings=512,
        num_labels=2, id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    DistilBertForSequenceClassification(config).save_pretrained(folder)


def write_parquet(file: Path, rows: Iterable[dict[str, object]]) -> None:
    import pyarrow
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)


def put_data(cache: Path) -> None:
    wiki = into_cache(cache, "Salesforce/wikitext", "datasets")
    splits = [{"split": split, "path": f"wikitext-2-raw-v1/{split}-*"} for split in ("train", "validation", "test")]
    configs = [{"config_name": "wikitext-2-raw-v1", "data_files": splits}]
    (wiki / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    for split in ("train", "validation", "test"):
        rows = [{"text": sentence(i) if i % 3 else ""} for i in range(40)]  # wikitext has many blank lines
        write_parquet(wiki / f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet", rows)
    imdb = into_cache(cache, "stanfordnlp/imdb", "datasets")
    for split in ("train", "test"):
        rows = [{"text": f"{sentence(i)} {i}", "label": i % 2} for i in range(120)]
        write_parquet(imdb / f"plain_text/{split}-00000-of-00001.parquet", rows)
    helpful = into_cache(cache, "Anthropic/hh-rlhf", "datasets")
    for split, count in (("train", 40), ("test", 10)):
        (helpful / "helpful-base").mkdir(exist_ok=True)
        with gzip.open(helpful / "helpful-base" / f"{split}.jsonl.gz", "wt") as file:
            for i in range(count):
                asked = f"\n\nHuman: {sentence(i)[:20]}?\n\nAssistant:"
                file.write(json.dumps({"chosen": f"{asked} great", "rejected": f"{asked} bad"}) + "\n")
    cherries = into_cache(cache, "HuggingFaceH4/cherry_picked_prompts", "datasets")
    rows = [{"prompt": f"{sentence(i)[:20]} {i}", "completion": "", "meta": {"source": "x"}} for i in range(64)]
    write_parquet(cherries / "data/train-00000-of-00001.parquet", rows)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("hub")
    cache = home / "hub"
    put_gpt2(cache)
    put_opt(cache)
    put_sentiment(cache)
    put_data(cache)
    return home


def test_the_tutorial_recipe_is_planned_on_its_hub_names(tmp_path: Path) -> None:
    plan = make_plan("tutorial", runs=tmp_path)

    assert {name: source.repository for name, source in plan.sources.items()} == {
        "gpt2": "openai-community/gpt2",
        "opt": "facebook/opt-350m",
        "wikitext": "Salesforce/wikitext",
        "reviews": "stanfordnlp/imdb",
        "hh": "Anthropic/hh-rlhf",
        "cherries": "HuggingFaceH4/cherry_picked_prompts",
        "sentiment": "lvwerra/distilbert-imdb",
    }
    assert [(stage.name, stage.method.name, dict(stage.inputs)) for stage in plan.stages if stage.wanted] == [
        ("perplexity", "clm", {"policy": ("gpt2",), "corpus": ("wikitext",)}),
        ("imdb", "sft", {"policy": ("opt",), "demos": ("reviews",)}),
        ("helpful", "reward", {"policy": ("gpt2",), "pairs": ("hh",)}),
        ("positive", "ppo", {"policy": ("gpt2",), "rewards": ("sentiment",), "prompts": ("cherries",)}),
    ]


@pytest.mark.slow
def test_the_tutorial_recipe_runs_offline_from_the_hubs_cache(hub: Path, tmp_path: Path) -> None:
    overrides = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    runs = tmp_path / "runs"
    environment = os.environ | {"HF_HOME": str(hub), "OMP_NUM_THREADS": "1", "ALIGNKIT_PLUGINS": ""}
    environment.pop("HF_HUB_CACHE", None)

    ended = subprocess.run(
        [sys.executable, "-m", "alignkit", "recipe", "tutorial", "--offline", "--runs", str(runs), *overrides],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    stages = {
        json.loads(file.read_text())["stage"]: json.loads(file.read_text()) for file in runs.glob("stages/*/stage.json")
    }
    assert set(stages) == {"perplexity", "imdb", "helpful", "positive"}
    lock = json.loads((runs / "tutorial.lock").read_text())["hub"]
    assert lock["hf:openai-community/gpt2"] == COMMIT
