"""Texts for trainers of TRL, which make their own tokens: strings as they stand, chats as alignkit renders them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit.kit import JudgedAnswer


def texts_for_trainer(
    rows: Sequence[JudgedAnswer], tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedTokenizerBase, dict[str, list[Any]]]:
    """Return the trainer's tokenizer and its columns: strings as they stand, chats as our own text.

    A chat is rendered already, so it goes as two turns to a template that puts contents one behind the other: what is
    asked, what is answered and what ends it is then the same in all methods.
    """
    names = ("prompt", "completion")
    if all(isinstance(row.row[name], str) for row in rows for name in names):
        return tokenizer, {name: [row.row[name] for row in rows] for name in names}
    end = str(tokenizer.eos_token)
    closed = [row.answer[-1] == tokenizer.eos_token_id and not row.texts[1].endswith(end) for row in rows]
    return verbatim(tokenizer), {
        "prompt": [[{"role": "user", "content": row.texts[0]}] for row in rows],
        "completion": [
            [{"role": "assistant", "content": row.texts[1] + (end if ended else "")}]
            for row, ended in zip(rows, closed, strict=True)
        ],
    }


def verbatim(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose template puts contents one behind the other, for chats that are rendered already."""
    reader = copy.deepcopy(tokenizer)
    reader.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return reader
