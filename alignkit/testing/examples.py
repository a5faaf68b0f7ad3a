"""Inputs for methods in tests: a tiny policy, a reward model of its shape, short rows of each kind."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from alignkit.contract.kinds import (
    Artifact,
    Demonstrations,
    Policy,
    Preferences,
    Prompts,
    Ratings,
    Records,
    Reward,
    RewardModel,
    Text,
)
from alignkit.contract.method import Input, Method
from alignkit.data.records import Part

SENTENCES = (
    "the food was good bad and we liked it not at all my room is cold warm they said hello how are you i am fine "
    "thanks for asking what a lovely day no rain today again never always maybe one two three"
)
ROWS = 48
HELD_OUT = 8

RecordsT = TypeVar("RecordsT", bound=Records)


def write_tiny_policy(folder: Path, seed: int = 0) -> Policy:
    """Write a random Llama of two layers, with a byte-level tokenizer that has a pad token of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>"]
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    text = " ".join([SENTENCES] * 4) + " ### User:\n\n### Assistant:\n"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([text, text], trainer)
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=256
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Policy(name="tiny", fingerprint="0", path=folder)


def write_tied_policy(folder: Path) -> Policy:
    """Write the tiny policy with one matrix for embedding and head."""
    from transformers import AutoModelForCausalLM

    policy = write_tiny_policy(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(policy.path)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(policy.path)
    return policy


def write_tiny_reward(folder: Path) -> RewardModel:
    """Write a reward model of the same shape and tokens, which scores at random."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from alignkit.training.saving import save_reward
    from alignkit.training.weight_files import ScoreScale

    base = write_tiny_policy(folder / "base").path
    kind: Any = AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind.from_pretrained(base, num_labels=1)
    save_reward(model, AutoTokenizer.from_pretrained(base), folder / "reward", ScoreScale(0.0, 0.02))
    return RewardModel(name="reward", fingerprint="0", path=folder / "reward")


def write_records(
    kind: type[RecordsT],
    folder: Path,
    train: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]] = (),
) -> RecordsT:
    """Write rows as records of a kind, some of them held out."""
    parts = []
    folder.mkdir(parents=True, exist_ok=True)
    for side, rows in (("train", train), ("held_out", held_out)):
        file = folder / f"{kind.__name__.lower()}-{side}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        if rows:
            parts.append(Part.model_validate({"name": "rows", "paths": (file,), "side": side}))
    return kind(name="rows", fingerprint="0", path=folder, parts=tuple(parts))


def write_inputs(method: Method, folder: Path, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Make something for each input that a method must have and that is not given: tiny policies, a reward, short rows.

    No two policies have the same weights. Raise ValueError for a kind that only its author can make.
    """
    wanted = {role: one for role, one in method.consumes.items() if not one.optional and role not in given}
    made = {role: _input(role, one, folder, seed) for seed, (role, one) in enumerate(wanted.items())}
    return {role: (one,) if wanted[role].several else one for role, one in made.items()} | dict(given)


def _input(role: str, wanted: Input, folder: Path, seed: int) -> Artifact:
    for kind in wanted.kinds:
        if kind is Policy:
            return write_tiny_policy(folder / role, seed)
        if kind in (Reward, RewardModel):
            return write_tiny_reward(folder / role)
        if issubclass(kind, Records) and kind in EXAMPLES:
            rows = [EXAMPLES[kind](number) for number in range(ROWS)]
            return write_records(kind, folder / role, rows[HELD_OUT:], rows[:HELD_OUT])
    raise ValueError(f"input {role!r} takes a {wanted.words}, which only its author can make")


def _words(number: int, count: int) -> str:
    words = SENTENCES.split()
    return " ".join(words[(number * 7 + place * (number % 5 + 1)) % len(words)] for place in range(count))


def _pair(number: int) -> dict[str, Any]:
    chosen, rejected = f" good {_words(number, 3 + number % 4)}", f" bad {_words(number + 1, 2 + number % 3)}"
    return {"prompt": _words(number, 2 + number % 3), "chosen": chosen, "rejected": rejected}


def _answered(number: int) -> dict[str, Any]:
    return {"prompt": _words(number, 2), "completion": f" {_words(number + 3, 3 + number % 4)}"}


EXAMPLES: Mapping[type[Records], Callable[[int], dict[str, Any]]] = {
    Text: lambda number: {"text": _words(number, 9)},
    Prompts: lambda number: {"prompt": _words(number, 2 + number % 3)},
    Demonstrations: lambda number: {
        "prompt": _words(number, 2),
        "completion": f" {_words(number + 3, 3 + number % 4)}",
    },
    Preferences: _pair,
    Ratings: lambda number: {
        "prompt": _words(number, 2),
        "completion": f" {_words(number, 3)}",
        "label": number % 2 == 0,
    },
}
"""Rows of each kind, by number; prompts and answers are ragged."""
