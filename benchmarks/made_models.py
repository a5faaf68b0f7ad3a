"""Models and prompts for benchmarks: generated Llamas or a given one, answering as long as a job wants them to.

Nothing is known of how long the answers of a random model would be, and a real one would seldom end within 64 tokens.
So one row of the output weights, that of the end-of-sequence token, is moved along the mean direction of the last
hidden states, which raises its logit as a bias would: by so much that the mean answer gets a wanted length. Lengths of
a random model's answers are then about geometric; a real one's have a wider spread. The padding token's row is moved
the other way, since TRL takes a sampled one for the end.
"""

import random
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from alignkit.contract.kinds import Policy
from alignkit.demo.reviews import rows
from alignkit.training.models import load_policy
from alignkit.training.saving import unpack

PAD, EOS = "<pad>", "</s>"
NEVER = 50.0
"""Logits by which a token is pushed down that must not come."""
SIZES = {
    "5M": {"vocabulary": 4096, "width": 256, "inner": 640, "layers": 5, "heads": 4},
    "30M": {"vocabulary": 8192, "width": 512, "inner": 1280, "layers": 8, "heads": 8},
}
"""Llama shapes with half as many key-value heads as heads; 5.4 and 30.4 million weights."""


class Folders(NamedTuple):
    """Where a job's models lie."""

    policy: Path
    reward: Path
    weights: int
    """Of the policy."""


def make_models(model: str, answer_tokens: float | None, folder: Path) -> Folders:
    """Write a policy whose mean answer of at most 64 tokens is so long, or never ends, and a reward model like it.

    `model` is one of SIZES, a model's folder, or a GGUF file.
    """
    quiet: Any = logging  # untyped
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    policy, tokenizer = generated(model) if model in SIZES else opened(Path(model), folder)
    end_after(policy, tokenizer, answer_tokens)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    torch.manual_seed(1)
    reward: Any = AutoModelForSequenceClassification.from_pretrained(
        folder / "policy", num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id
    )
    nn.init.normal_(reward.score.weight, std=(reward.score.in_features + 1) ** -0.5)
    reward.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    return Folders(folder / "policy", folder / "reward", policy.num_parameters())


def generated(size: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Make a Llama with random weights, and a tokenizer with a token for each word of the reviews."""
    shape = SIZES[size]
    tokenizer = words_tokenizer(shape["vocabulary"])
    config = LlamaConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"] // 2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        # Trained models have a direction that all hidden states share; a random one is given it.
        model.get_input_embeddings().weight += config.initializer_range
    return model.eval(), tokenizer


def words_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose every token is a word, so that decoding and encoding again give the same tokens."""
    known = sorted({word for text in texts() for word in text.split()})
    special = [PAD, EOS]
    free = vocabulary - len(special) - len(known)
    words = special + [f"▁{word}" for word in known] + [f"▁w{number}" for number in range(free)]
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=words[-1]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    make: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = make(
        tokenizer_object=raw, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False, model_max_length=1024
    )
    return made


def opened(model: Path, folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Open a model in fp32, its tokenizer with a pad token of its own."""
    if model.suffix == ".gguf":
        unpack(model, folder / "unpacked")
        model = folder / "unpacked"
    return load_policy(Policy(name="policy", fingerprint="0", path=model), precision="fp32")


@torch.no_grad()
def end_after(policy: Any, tokenizer: PreTrainedTokenizerBase, length: float | None) -> None:
    """Move two rows of the output weights so that the mean answer has this length, and the pad token never comes."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    weight: Tensor = policy.get_output_embeddings().weight
    hidden = hidden_states(policy, tokenizer)  # (n, t, d)
    logits = hidden @ weight.T
    logits[..., [end, pad]] = float("-inf")
    others = logits.logsumexp(dim=-1)  # (n, t)
    direction = hidden.mean(dim=(0, 1)) / hidden.mean(dim=(0, 1)).norm()
    along, bare = hidden @ direction, hidden @ weight[end]
    never = NEVER / along.mean()
    weight[pad] -= never * direction

    def mean_length(moved: float) -> float:
        going_on = 1 - (bare + moved * along - others).sigmoid()
        return float(1 + going_on[:, :-1].cumprod(dim=1).sum(dim=1).mean())

    low, high = -float(never), float(never)
    for _ in range(60 if length else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if mean_length(middle) < (length or 0.0) else (middle, high)
    weight[end] += low * direction


def hidden_states(policy: Any, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Give the last hidden states from which the policy samples 64 tokens behind each of 32 prompts (n, t, d)."""
    asked = tokenizer(
        some_prompts(ragged_lengths(32, 0), tokenizer, 0), padding=True, padding_side="left", return_tensors="pt"
    )
    ids, mask = asked["input_ids"], asked["attention_mask"]
    torch.manual_seed(2)
    banned = [[tokenizer.pad_token_id], [tokenizer.eos_token_id]]
    told = policy.generate(ids, attention_mask=mask, max_new_tokens=64, do_sample=True, top_k=0, bad_words_ids=banned)
    mask = nn.functional.pad(mask, (0, told.shape[1] - ids.shape[1]), value=1)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    hidden: Tensor = policy.base_model(told, attention_mask=mask, position_ids=places).last_hidden_state
    return hidden[:, ids.shape[1] - 1 : -1]


def some_prompts(lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
    """Cut texts of the packaged reviews to so many tokens each."""
    prompts = []
    for length, text in zip(lengths, some_texts(len(lengths), max(lengths), tokenizer, seed), strict=True):
        prompt = str(tokenizer.decode(tokenizer(text)["input_ids"][:length]))
        while len(tokenizer(prompt)["input_ids"]) > length:  # a cut word may need more tokens than it had
            prompt = prompt[:-1]
        prompts.append(prompt)
    return prompts


def some_texts(count: int, tokens: int, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
    """Choose different texts of at least so many tokens: reviews, joined where they are short."""
    shuffled = list(texts())
    random.Random(seed).shuffle(shuffled)
    waiting = iter(shuffled)
    found: list[str] = []
    while len(found) < count:
        text = next(waiting)
        while len(tokenizer(text)["input_ids"]) < tokens:
            text += " " + next(waiting)
        found.append(text)
    return found


def ragged_lengths(count: int, seed: int) -> list[int]:
    """Draw lengths of prompts, 4 to 64 tokens, each as likely."""
    drawn = random.Random(seed)
    return [drawn.randint(4, 64) for _ in range(count)]


def texts() -> Iterable[str]:
    return (row["text"] for row in chain(rows("text", "train"), rows("text", "held_out")))
