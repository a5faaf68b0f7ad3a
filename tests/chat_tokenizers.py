"""Byte-level tokenizers with chat templates, made on the spot."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alignkit.training.encoding import NOT_LEARNT, LabelledTokens

CORPUS = (
    "What colour is the door by the boat? The lamp by the stone is red, and the chair is blue. "
    "Answer in one line. Nobody has painted the field since the winter. I saw it, so I know."
)


@cache
def make_tokenizer(
    template: str,
    marks: tuple[str, ...],
    *,
    eos: str,
    bos: str | None = None,
    pad: str | None = None,
    special: bool = True,
) -> PreTrainedTokenizerFast:
    """Make a tokenizer with a template, whose marks are one token each; `special` says whether it lists them all."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(marks),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([CORPUS], trainer)
    if bos:
        begin = (bos, made.token_to_id(bos))
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[begin])
    named = {name: mark for name, mark in (("eos_token", eos), ("bos_token", bos), ("pad_token", pad)) if mark}
    make: Any = PreTrainedTokenizerFast  # untyped
    tokenizer: PreTrainedTokenizerFast = make(tokenizer_object=made, clean_up_tokenization_spaces=False, **named)
    if special and (others := _others(marks, list(named.values()))):
        tokenizer.add_special_tokens({"extra_special_tokens": others})
    tokenizer.chat_template = template
    return tokenizer


def _others(marks: Sequence[str], named: Sequence[str]) -> list[str]:
    return [mark for mark in marks if mark not in named]


def decoded(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Give tokens as text, special ones included."""
    return str(tokenizer.decode(list(ids)))


def learnt(tokenizer: PreTrainedTokenizerFast, tokens: LabelledTokens) -> list[str]:
    """Give the parts of a sequence that are learnt."""
    return _parts(tokenizer, tokens, learnt=True)


def unlearnt(tokenizer: PreTrainedTokenizerFast, tokens: LabelledTokens) -> list[str]:
    """Give the parts of a sequence that are not learnt."""
    return _parts(tokenizer, tokens, learnt=False)


def _parts(tokenizer: PreTrainedTokenizerFast, tokens: LabelledTokens, *, learnt: bool) -> list[str]:
    pairs = zip(tokens.ids, tokens.labels, strict=True)
    groups = groupby(pairs, key=lambda pair: pair[1] != NOT_LEARNT)
    return [decoded(tokenizer, [token for token, _ in group]) for is_learnt, group in groups if is_learnt is learnt]
