"""How text classifiers read answers, and where what is too long for one is cut.

A decoder (a reward model of ours, or OpenRLHF's) is scored at the last token that it reads, so it keeps the end of the
text, behind the token that its tokenizer begins every text with. Any other classifier (BERT, RoBERTa, BART, XLNet)
reads what its own tokenizer makes of the text: special tokens at both ends, segments, and the tokenizer's
`truncation_side` and `padding_side`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.contract.reward_function import Answer
from alignkit.errors import DataError
from alignkit.training import sharding
from alignkit.training.arithmetic import evaluating, padded
from alignkit.training.configs import positions
from alignkit.training.encoding import answered, prompt_ids, text_ids, turn_ends
from alignkit.training.row_texts import prompt_text
from alignkit.training.templates import rendered
from alignkit.training.ways import alone_beyond

TOKENS_IN_A_PASS = 2**14
Warn = Callable[[str, str], None]
"""Takes what is wrong, and what to do."""


@dataclass
class Limit:
    """How many tokens a classifier reads; that answers are longer is told once."""

    name: str
    """Of the classifier."""
    tokens: int | None
    """None: nothing says so."""
    warn: Warn | None = None

    def tell(self, lengths: Sequence[int], lost: str) -> None:
        """Warn of rows that are longer; `lost` is what is cut off."""
        cut = sum(length > self.tokens for length in lengths) if self.tokens else 0
        if not cut or self.warn is None:
            return
        self.warn(
            f"{cut} of {len(lengths)} answers are longer with their prompts than {self.name!r} reads "
            f"({self.tokens} tokens), and are scored without their {lost}; the longest has {max(lengths)}",
            "lower generation.max_new_tokens or take shorter prompts, or a reward model that reads more",
        )
        self.warn = None


@dataclass
class Reader:
    """A classifier that scores answers, and tells once where it could not read all of one."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    warn: Warn | None = None

    def __post_init__(self) -> None:
        self.decoder = scored_at_the_last_token(self.model)
        tokens = positions(self.model) if self.decoder else reading_limit(self.model, self.tokenizer)
        self.limit = Limit(self.name, tokens, self.warn)

    def logits(self, answers: Sequence[Answer]) -> list[list[float]]:
        """Return all logits of each answer, in their order."""
        if self.decoder:
            rows = [as_read(answer, self.tokenizer) for answer in answers]
            self.limit.tell([len(row) for row in rows], "beginning")
            return token_logits(self.model, rows, self.tokenizer)
        return self._by_tokenizer([text_of(answer, self.tokenizer) for answer in answers])

    def _by_tokenizer(self, texts: Sequence[str]) -> list[list[float]]:
        """Score texts as their tokenizer frames, cuts and pads them."""
        tokenizer, known = self.tokenizer, inspect.signature(self.model.forward).parameters
        read = [_framed(tokenizer, text, None) for text in texts]
        lengths = [len(one["input_ids"]) for one in read]
        self.limit.tell(lengths, "end" if tokenizer.truncation_side == "right" else "beginning")
        limit = self.limit.tokens
        rows = [
            _framed(tokenizer, text, limit) if limit and length > limit else one
            for text, length, one in zip(texts, lengths, read, strict=True)
        ]
        tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True  # the advice is not for rows of a batch

        def batch(places: Sequence[int]) -> Mapping[str, Any]:
            columns = {key: [rows[place][key] for place in places] for key in rows[0]}
            filled = tokenizer.pad(columns, return_tensors="pt").to(self.model.device)
            return {key: value for key, value in filled.items() if key in known}

        return _logits(self.model, [len(row["input_ids"]) for row in rows], batch)


def scored_at_the_last_token(model: PreTrainedModel) -> bool:
    """Return whether a classifier is a decoder whose `score` head reads the last token; encoders have other heads."""
    return isinstance(getattr(model, "score", None), nn.Linear)


def reading_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens a classifier that is no decoder reads at most; None where nothing says so.

    RoBERTa and those like it count positions from behind that of the pad token: they read fewer than they have. What
    the tokenizer says counts, too; those of decoders often speak of another model.
    """
    limits = [positions(model), int(tokenizer.model_max_length)]
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding) and table.padding_idx is not None:
            limits.append(table.num_embeddings - table.padding_idx - 1)
    return min((limit for limit in limits if limit), default=None)


def text_of(answer: Answer, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return prompt and answer as one text; a chat is rendered by the classifier's own template."""
    asked = answer.row.get("prompt", answer.prompt)
    if isinstance(asked, str) or tokenizer.chat_template is None:
        return answer.prompt + answer.text
    chat = [*asked, {"role": "assistant", "content": answer.text}]
    with suppress(DataError):
        return rendered(tokenizer, chat, tools=answer.row.get("tools"))
    return answer.prompt + answer.text


def _framed(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None) -> dict[str, list[int]]:
    """Encode a text with the tokenizer's own special tokens, unless it begins with one; cut to the limit."""
    framed = bool(tokenizer.cls_token) and text.startswith(str(tokenizer.cls_token))
    found: Any = tokenizer(
        text, add_special_tokens=not framed, truncation=limit is not None, max_length=limit, verbose=False
    )
    return dict(found)


def as_read(answer: Answer, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encode an answer as the model was taught to read it; one that was cut has no end-of-sequence token.

    A chat is rendered by the model's own template, with its tools. An answer that the template would render otherwise
    than it stands, such as one without the thought that the template opens, is read as it was given.
    """
    asked, tools = answer.row.get("prompt", answer.prompt), answer.row.get("tools")
    prompt = answer.prompt if isinstance(asked, str) or tokenizer.chat_template is None else asked
    ends = answer.finished and tokenizer.eos_token_id is not None
    if ends:
        with suppress(DataError):
            return answered(prompt, answer.text, tokenizer, tools).ids
    if isinstance(prompt, str):
        return prompt_ids(tokenizer, prompt + answer.text)
    found = text_ids(tokenizer, prompt_text(tokenizer, prompt, tools) + answer.text)
    return [*found, next(iter(turn_ends(tokenizer)), tokenizer.eos_token_id)] if ends else found


def score_tokens(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    place: int = 0,
) -> list[float]:
    """Return one logit of each row of tokens, in their order, as `token_logits` reads them."""
    return [row[place] for row in token_logits(model, rows, tokenizer)]


def token_logits(
    model: PreTrainedModel | PeftModel, rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> list[list[float]]:
    """Return all logits of each row of tokens, in their order, by a decoder.

    A row longer than the model reads loses what follows its opening token, and keeps its end.
    """
    limit = positions(model)
    rows = [shortened(row, limit, tokenizer) for row in rows]

    def batch(places: Sequence[int]) -> Mapping[str, Any]:
        ids, mask = padded([rows[i] for i in places], tokenizer.pad_token_id, model.device)
        return {"input_ids": ids, "attention_mask": mask, "use_cache": False}

    return _logits(model, [len(row) for row in rows], batch)


def shortened(row: Sequence[int], limit: int | None, tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """Keep the end of a row, and its first token where that opens every text."""
    if limit is None or len(row) <= limit:
        return row
    opens = row[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)
    return [row[0], *row[len(row) - limit + 1 :]] if opens else row[-limit:]


Batch = Callable[[Sequence[int]], Mapping[str, Any]]
"""Makes the model's arguments of the rows at these places."""


def _logits(model: PreTrainedModel | PeftModel, lengths: Sequence[int], batch: Batch) -> list[list[float]]:
    """Run rows through a classifier, short ones first; they go alone where others beside them change their scores."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    scores: list[list[float]] = [[] for _ in lengths]
    start = 0
    with evaluating(model), sharding.whole(model):
        shared = _shared_up_to(model, lengths, order, batch)
        while start < len(order):
            group = _group(lengths, order, start, shared)
            logits = model(**batch(group)).logits.float()
            for i, value in zip(group, logits.tolist(), strict=True):
                scores[i] = value
            start += len(group)
    return scores


_filled: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether rows that are filled up score as they do alone, where it was tried."""


def _shared_up_to(
    model: PreTrainedModel | PeftModel, lengths: Sequence[int], order: Sequence[int], batch: Batch
) -> float:
    """Return the length up to which rows may go through the model together; it is tried once, on two of them."""
    beyond = alone_beyond(model) or math.inf
    within = [i for i in order if lengths[i] <= beyond]
    if model not in _filled and within and lengths[within[0]] < lengths[within[-1]]:
        _filled[model] = _same_filled(model, within[0], within[-1], batch)
    return beyond if _filled.get(model, True) else 0


def _same_filled(model: PreTrainedModel | PeftModel, short: int, long: int, batch: Batch) -> bool:
    """Return whether a row scores beside a longer one as it does alone; FNet and ConvBERT do not look at the mask."""
    both, alone = model(**batch([short, long])).logits.float(), model(**batch([short])).logits.float()
    half = model.dtype != torch.float32 or torch.is_autocast_enabled(model.device.type)
    return bool((both[0] - alone[0]).abs().max() <= (0.1 if half else 1e-3) * both.abs().max())


def _group(lengths: Sequence[int], order: Sequence[int], start: int, shared: float) -> list[int]:
    """Take the next rows, in the order of their length, that fit in one pass and are no longer than `shared`."""
    end = start + 1
    while (
        end < len(order)
        and lengths[order[end]] <= shared
        and lengths[order[end]] * (end + 1 - start) <= TOKENS_IN_A_PASS
    ):
        end += 1
    return list(order[start:end])
