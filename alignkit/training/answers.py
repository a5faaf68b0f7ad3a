"""What methods of any package do with texts: sample answers, and read log-probabilities of tokens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.contract.reward_function import Answer
from alignkit.errors import DataError
from alignkit.training import encoding, parallel, rollouts, sharding
from alignkit.training.configs import positions
from alignkit.training.output_layer import logprobs_of
from alignkit.training.packing import LAID_OUT, by_prompt, joined
from alignkit.training.rollouts import Tokens, apart_beyond, by_length, rows_in_a_pass
from alignkit.training.room import tokens_in_a_pass
from alignkit.training.tokenizers import stop_tokens
from alignkit.training.ways import alone_beyond, form_of, rows_together

Model: TypeAlias = PreTrainedModel | PeftModel


def answer_logprobs(
    model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens], temperature: float = 1.0
) -> Tensor:
    """Compute, with gradient, the log-probability of each answer token (n, t), in fp32; zero behind an answer's end.

    What is computed of a row is what is computed of it alone: rows go through the model without padding, and equal
    prompts once, wherever that changes nothing, and one by one where anything else would.
    """
    groups = exact_groups(model, prompts, answers)
    parts = [
        _logprobs(model, [prompts[row] for row in group], [answers[row] for row in group], temperature)
        for group in groups
    ]
    return parts[0] if len(parts) == 1 else joined(groups, parts)


def _logprobs(model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens], temperature: float) -> Tensor:
    form = form_of(model)
    if form != "logits":
        return logprobs_of(model, LAID_OUT[form](prompts, answers, model.device), temperature)
    table = rollouts.answer_logprobs(model, prompts, answers, temperature)
    return table.masked_fill(~rollouts.answer_mask(answers, table.device), 0.0)


@torch.no_grad()
def summed_logprobs(
    model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens], temperature: float = 1.0
) -> Tensor:
    """Compute the log-probability of each whole answer (n,), without gradient, as many at once as fit."""
    sums = torch.zeros(len(answers))
    for group, counts in parallel.deal_weighted(in_passes(model, prompts, answers)) if answers else []:
        table = answer_logprobs(model, [prompts[row] for row in group], [answers[row] for row in group], temperature)
        sums[group] += counts * table.sum(dim=1).to(sums)
    sharding.part_again(model)
    return parallel.add_up(sums)


def in_passes(
    model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens], packed: bool | None = None
) -> list[list[int]]:
    """Group rows into what goes through a model at once, those of equal prompts side by side where they share it.

    `packed` says whether they share one sequence; None: where their log-probabilities are read so.
    """
    if form_of(model) == "packed" if packed is None else packed:
        groups = by_prompt(prompts, answers, tokens_in_a_pass(model))
    else:
        size = rows_together(model) or rows_in_a_pass(model, prompts, answers)
        groups = by_length(prompts, answers, min(size, parallel.share(len(answers))))
    return apart_beyond(groups, prompts, answers, alone_beyond(model))


def exact_groups(model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[list[int]]:
    """Part rows no further than it takes to compute of each what is computed of it alone."""
    rows = list(range(len(prompts)))
    if form_of(model) != "packed" and rows_together(model) == 1:
        return [[row] for row in rows]
    return apart_beyond([rows], prompts, answers, alone_beyond(model))


class FittingPrompts(NamedTuple):
    """The rows whose prompts can be asked, and how many of the others are too long, or refused by the template."""

    rows: list[Mapping[str, Any]]
    lost: int
    refused: int


def fitting_prompts(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, limit: int
) -> FittingPrompts:
    """Return the rows whose prompts have so many tokens at most.

    Raises DataError with the place of a row that the chat template refuses, unless its source leaves bad rows out.
    """
    kept, lengths = encoding.prompts(rows, tokenizer, limit)
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
    limit = encoding.fitting_length(positions(model), max_length)
    prompts, lengths = encoding.prompts(rows, tokenizer, limit - max_new_tokens)
    if lengths.dropped:
        problem = f"{lengths.dropped} of {lengths.rows} prompts leave no room for an answer of {max_new_tokens} tokens"
        raise DataError(f"{problem} in {limit}", remedy="raise max_length, or take them out of the source")
    if lengths.refused:
        problem = f"the chat template refuses {lengths.refused} of {len(rows)} prompts"
        raise DataError(problem, remedy="leave them out; `alignkit check` names them and says why")
    asked = [prompt for prompt in prompts for _ in range(answers)]
    was_training = model.training
    tokens, _, finished = rollouts.sample_answers(
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
        Answer(prompt.text, text, done, prompt.row, len(answer))
        for prompt, text, done, answer in zip(asked, texts, finished, tokens, strict=True)
    ]
    return [made[start : start + answers] for start in range(0, len(made), answers)]
