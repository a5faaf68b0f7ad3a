"""What policies answer to the same held-out prompts, each once, and how far that is from what another would say."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.contract.asking_settings import AskingSettings
from alignkit.contract.kinds import Policy, Prompts
from alignkit.contract.reward_function import Answer
from alignkit.contract.stage import Stage
from alignkit.errors import DataError
from alignkit.training import encoding
from alignkit.training.answers import summed_logprobs
from alignkit.training.arithmetic import computing
from alignkit.training.configs import open_config, positions_of
from alignkit.training.encoding import AskedPrompt, Prompt, fitting_length
from alignkit.training.models import load_policy
from alignkit.training.rollouts import generator_for, sample_answers
from alignkit.training.tokenizers import policy_tokenizer, stop_tokens

ANSWERS = "answers.json"
"""What the policies answered so far, in a checkpoint."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn from one policy, in the order of the prompts."""

    tokens: list[list[int]]
    finished: list[bool]
    logprobs: list[float] | None
    """The policy's log-probability of each answer; None for the first policy."""


@dataclass(frozen=True)
class PolicyAnswers:
    """What one policy answered, in the order of the prompts."""

    answers: list[Answer]
    prompts: list[list[int]]
    drawn: Drawn
    vocabulary: dict[str, int]


def asked(
    settings: AskingSettings, stage: Stage, readers: Sequence[AskedPrompt], prompts: Prompts
) -> list[Mapping[str, Any]]:
    """Take the first held-out prompts that all policies have room for, each once; warn where there are too few."""
    rows, lengths = encoding.asked_of_all(prompts.held_out(), readers, settings.prompts, settings.max_new_tokens)
    if not lengths.rows + lengths.refused:
        raise DataError(
            "no prompt is held out, so there is nothing to evaluate on",
            f"source {prompts.name!r}",
            "raise its held_out",
        )
    encoding.report(stage, "prompts", lengths, settings.max_lost)
    if len(rows) < settings.prompts:
        stage.warn(
            f"only {len(rows)} different prompts are held out, {settings.prompts} are wanted; the intervals are wider",
            "raise the source's held_out, or give it more prompts",
        )
    return rows


def reader(settings: AskingSettings, policy: Policy) -> AskedPrompt:
    """Return a policy's tokenizer, and how long a prompt with its answer may be."""
    longest = fitting_length(positions_of(open_config(policy.path)), settings.max_length)
    return AskedPrompt(policy_tokenizer(policy), longest)


def answered(
    settings: AskingSettings,
    stage: Stage,
    policies: Sequence[Policy],
    readers: Sequence[AskedPrompt],
    rows: Sequence[Mapping[str, Any]],
) -> list[PolicyAnswers]:
    """Let each policy answer each prompt once; those that an earlier attempt asked are not asked again."""
    kept = stage.latest()
    drawn = [Drawn(**one) for one in json.loads((kept / ANSWERS).read_text("utf-8"))] if kept else []
    results: list[PolicyAnswers] = []
    for number, (policy, known) in enumerate(zip(policies, readers, strict=True)):
        prompts, _ = encoding.prompts(rows, known.tokenizer, known.limit - settings.max_new_tokens)
        if number == len(drawn):
            drawn.append(draw(settings, stage, policy, [prompt.ids for prompt in prompts], compared=number > 0))
            stage.commit(len(drawn), partial(write_answers, drawn))
        results.append(_read(drawn[number], prompts, known.tokenizer))
    return results


def draw(settings: AskingSettings, stage: Stage, policy: Policy, prompts: list[list[int]], *, compared: bool) -> Drawn:
    """Sample one answer to each prompt; read its log-probability where it will be compared with another policy's."""
    model, tokenizer = load_policy(policy, precision=settings.precision, trainable=False)
    with computing(settings.precision):
        tokens, _, finished = sample_answers(
            model,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            stop=stop_tokens(model, tokenizer),
            generator=generator_for(stage.seed, "evaluate"),
            temperature=settings.temperature,
        )
        logprobs = summed_logprobs(model, prompts, tokens, settings.temperature).tolist() if compared else None
    return Drawn(tokens, finished, logprobs)


def write_answers(kept: Sequence[Drawn], folder: Path) -> None:
    """Write into a checkpoint what the policies answered so far."""
    (folder / ANSWERS).write_text(json.dumps([asdict(one) for one in kept]), "utf-8")


def _read(drawn: Drawn, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> PolicyAnswers:
    texts = tokenizer.batch_decode(drawn.tokens, skip_special_tokens=True)
    answers = [
        Answer(prompt.text, text, done, prompt.row, len(answer))
        for prompt, text, done, answer in zip(prompts, texts, drawn.finished, drawn.tokens, strict=True)
    ]
    return PolicyAnswers(answers, [prompt.ids for prompt in prompts], drawn, tokenizer.get_vocab())


def divergence(settings: AskingSettings, first: Policy, results: Sequence[PolicyAnswers]) -> list[list[float] | None]:
    """Estimate the KL of each answer (in nats) from the first policy by log p - log q, for each policy.

    None where a policy's tokens are others than the first one's.
    """
    found: list[list[float] | None] = [[0.0] * len(results[0].answers)]
    if len(results) == 1:
        return found
    model, _ = load_policy(first, precision=settings.precision, trainable=False)
    with computing(settings.precision):
        for result in results[1:]:
            own = result.drawn.logprobs
            if own is None or result.vocabulary != results[0].vocabulary:
                found.append(None)
                continue
            at_first = summed_logprobs(model, result.prompts, result.drawn.tokens, settings.temperature).tolist()
            found.append([ours - theirs for ours, theirs in zip(own, at_first, strict=True)])
    return found
