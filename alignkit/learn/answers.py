"""What methods of any package do with texts: sample answers, and read log-probabilities of tokens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.contract.rewards import Answer
from alignkit.errors import DataError
from alignkit.learn import data, packing, rollouts
from alignkit.learn.models import positions, stop_tokens
from alignkit.learn.packing import by_prompt
from alignkit.learn.rollouts import Tokens, by_length, rows_in_a_pass

Model: TypeAlias = PreTrainedModel | PeftModel

_packed: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model reads packed rows; finding it out costs a few short passes."""


def reads_packed(model: Model) -> bool:
    """Let a model read rows without padding where it computes exactly the same that way, and tell whether it does."""
    if model not in _packed:
        _packed[model] = packing.packs(model)
    return _packed[model]


def answer_logprobs(
    model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens], temperature: float = 1.0
) -> Tensor:
    """Compute, with gradient, the log-probability of each answer token (n, t), in fp32; zero behind an answer's end.

    Rows go through the model without padding, and equal prompts once, wherever that changes nothing.
    """
    if reads_packed(model):
        return packing.packed_logprobs(model, prompts, answers, temperature)
    table = rollouts.answer_logprobs(model, prompts, answers, temperature)
    return table.masked_fill(~rollouts.answer_mask(answers, table.device), 0.0)


@torch.no_grad()
def sequence_logprobs(
    model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens], temperature: float = 1.0
) -> Tensor:
    """Compute the log-probability of each whole answer (n,), without gradient, as many at once as fit."""
    sums = torch.zeros(len(answers))
    for group in in_passes(model, prompts, answers) if answers else []:
        table = answer_logprobs(model, [prompts[row] for row in group], [answers[row] for row in group], temperature)
        sums[group] = table.sum(dim=1).to(sums)
    return sums


def in_passes(model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[list[int]]:
    """Group rows into what goes through a model at once, those of equal prompts side by side where they share it."""
    if reads_packed(model):
        return by_prompt(prompts, answers)
    return by_length(prompts, answers, rows_in_a_pass(model, prompts, answers))


class FittingPrompts(NamedTuple):
    """The rows whose prompts can be asked, and how many of the others are too long, or refused by the template."""

    rows: list[Mapping[str, Any]]
    lost: int
    refused: int


def fitting_prompts(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, limit: int
) -> FittingPrompts:
    """Give the rows whose prompts have so many tokens at most.

    Raises DataError with the place of a row that the chat template refuses, unless its source leaves bad rows out.
    """
    kept, lengths = data.prompts(rows, tokenizer, limit)
    return FittingPrompts([prompt.row for prompt in kept], lengths.dropped, lengths.refused)


def sample_answers(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    answers: int = 1,
    max_new_tokens: int = 64,
    seed: int = 0,
    temperature: float = 1.0,
    max_length: int | None = None,
) -> list[list[Answer]]:
    """Sample so many answers to the `prompt` of each row, from the whole distribution.

    The same seed gives the same answers. Raises DataError where a prompt leaves no room for an answer.
    """
    limit = data.fitting_length(positions(model), max_length)
    prompts, lengths = data.prompts(rows, tokenizer, limit - max_new_tokens)
    if lengths.dropped:
        problem = f"{lengths.dropped} of {lengths.rows} prompts leave no room for an answer of {max_new_tokens} tokens"
        raise DataError(f"{problem} in {limit}", remedy="raise max_length, or take them out of the source")
    if lengths.refused:
        problem = f"the chat template refuses {lengths.refused} of {len(rows)} prompts"
        raise DataError(problem, remedy="leave them out; `alignkit check` names them and says why")
    asked = [prompt for prompt in prompts for _ in range(answers)]
    was_training = model.training
    tokens, finished = rollouts.sample_answers(
        model.eval(),
        [prompt.ids for prompt in asked],
        max_new_tokens=max_new_tokens,
        stop=stop_tokens(model, tokenizer),
        generator=rollouts.generator_for(seed, "answers"),
        temperature=temperature,
    )
    model.train(was_training)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    made = [
        Answer(prompt.text, text, done, prompt.row) for prompt, text, done in zip(asked, texts, finished, strict=True)
    ]
    return [made[start : start + answers] for start in range(0, len(made), answers)]
