"""Tokenizers: opened from a folder, given a pad token of their own and a chat template, and where answers end."""

from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignkit.contract.kinds import Policy, RewardModel
from alignkit.data.adapter_folder import is_adapter
from alignkit.errors import DataError
from alignkit.training.adapters import resized
from alignkit.training.configs import open_config
from alignkit.training.encoding import turn_ends
from alignkit.training.weight_files import base_of

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ '### ' + (message['role'] | capitalize) + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Assistant:\\n' }}{% endif %}"
)
"""The chat template of models that have none: roles as headings, and the end-of-sequence token closes an answer.

    ### User:
    What is blue?

    ### Assistant:
    The sky.<eos>
"""


PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>")


def stop_tokens(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer.

    They are the tokenizer's end-of-sequence token, what the model's generation config ends answers with, and what the
    chat template closes an answer with, by which a policy learns to stop.
    """
    config = getattr(model, "generation_config", None)
    ends = config.eos_token_id if config is not None else None
    more = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return frozenset([cast("int", tokenizer.eos_token_id), *more]) | turn_ends(tokenizer)


def policy_tokenizer(policy: Policy) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a policy, with the chat template that its source gives, if it gives one."""
    return open_tokenizer(policy.path, policy.chat_template)


def check_same_tokens(other: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a model that reads the tokens of a policy and has others. Raise DataError."""
    theirs, ours = other.get_vocab(), policy.get_vocab()
    if theirs == ours:
        return
    differ = sum(ours.get(token) != number for token, number in theirs.items())
    problem = f"the tokens of {name!r} are not the policy's: {differ} of its {len(theirs)} differ"
    raise DataError(problem, remedy="take a model of the policy's family, which has the same tokenizer")


def open_tokenizer(folder: Path, template: str | None = None) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a policy's folder, with a chat template: the one given, else its own, else a plain one."""
    tokenizer = _tokenizer(folder)
    if template is not None or tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE if template is None else template
    return tokenizer


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a folder, or of the base where an adapter brings none."""
    if is_adapter(folder) and not any(folder.glob("tokenizer*")):
        folder = base_of(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        if (folder / "config.json").is_file():
            open_config(folder)  # the reason, where this fails
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"the tokenizer cannot be opened ({reason})", str(folder), "add its tokenizer files") from error
    return tokenizer


def _make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: Policy | RewardModel) -> bool:
    """Grow the embedding for a pad token, or for all tokens where the source says so; say whether it had to grow."""
    wanted = isinstance(start, Policy) and start.grow_embedding
    embedding: Any = model.get_input_embeddings()
    grown = wanted and len(tokenizer) > embedding.num_embeddings and resized(model, len(tokenizer))
    return _give_pad(model, tokenizer) or grown


def _give_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """See to a pad token that is not the end of a sequence; say whether the model's weights had to grow for it.

    A new one is `<pad>`, for which the embedding grows unless it has spare rows.
    """
    if tokenizer.eos_token_id is None:
        problem = "the tokenizer has no end-of-sequence token, so answers could not end"
        raise DataError(problem, str(tokenizer.name_or_path), "name its eos_token in tokenizer_config.json")
    if tokenizer.pad_token != (name := pad_name(tokenizer)):
        tokenizer.add_special_tokens({"pad_token": name})
    embedding: Any = model.get_input_embeddings()
    grown = tokenizer.pad_token_id >= embedding.num_embeddings and resized(model, len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return grown


def pad_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Choose the pad token: the tokenizer's own, unless it ends sequences; one named like it; the unknown token.

    Else it is `<pad>`, which the tokenizer may not have yet.
    """
    eos = tokenizer.eos_token_id
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != eos:
        return str(tokenizer.pad_token)
    known = tokenizer.get_vocab()
    names = [str(name) for name in (*PAD_NAMES, tokenizer.unk_token)]
    return next((n for n in names if n in known and known[n] not in (eos, tokenizer.bos_token_id)), "<pad>")
