"""`builtin:tiny`: a Llama of 0.7 million weights and its tokenizer, made here and now, without a download."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.demo.reviews import rows

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
VOCABULARY = 1280
"""At most; it is enough for every word of the reviews to be one token; any other text falls back to its bytes."""
POSITIONS = 512
SEED = 17


def write_tiny(folder: Path) -> None:
    """Write the model, its weights random but always the same, and its tokenizer into a Hugging Face folder."""
    tokenizer = _tokenizer()
    _model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> "PreTrainedTokenizerFast":
    """Train byte-level BPE on the reviews: it loses nothing of any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_and_merges = Tokenizer(models.BPE())
    bytes_and_merges.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_and_merges.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bytes_and_merges.train_from_iterator(_reading(), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers does not annotate it
        tokenizer_object=bytes_and_merges,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _reading() -> Iterator[str]:
    yield from (row["text"] for row in rows("text", "train"))
    yield from (row["prompt"] for row in rows("prompts", "train"))


def _model(vocabulary: int) -> "LlamaForCausalLM":
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    # Two layers and this range find out what a prompt is about some three times sooner than four layers and 0.02.
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        initializer_range=0.06,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config)
