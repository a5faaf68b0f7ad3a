"""A pool of a policy's answers, many to each prompt: drawn in parts, so that what was drawn before a kill is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignkit.contract.kinds import Policy
from alignkit.contract.reward_function import Answer
from alignkit.contract.settings import Precision
from alignkit.training.arithmetic import computing
from alignkit.training.encoding import Prompt
from alignkit.training.models import load_policy
from alignkit.training.rollouts import generator_for, sample_answers
from alignkit.training.tokenizers import policy_tokenizer, stop_tokens

PART = 4096
"""Answers that are drawn between two checkpoints, about."""


class PoolPart(NamedTuple):
    """Answers to some of the prompts, those to one prompt side by side."""

    tokens: list[list[int]]
    finished: list[bool]


@dataclass(frozen=True)
class PoolRequest:
    """Who shall answer what, how often and how."""

    policy: Policy
    prompts: Sequence[Prompt]
    answers: int
    """To each prompt."""
    max_new_tokens: int
    temperature: float
    precision: Precision
    seed: int

    @property
    def parts(self) -> list[Sequence[Prompt]]:
        """The prompts, cut into parts of about `PART` answers."""
        size = max(1, PART // self.answers)
        return [self.prompts[start : start + size] for start in range(0, len(self.prompts), size)]


def draw_pool(
    request: PoolRequest, drawn: Sequence[PoolPart], keep: Callable[[Sequence[PoolPart]], None]
) -> list[Answer]:
    """Draw the parts that come after those that were drawn before, and keep each; return all answers, by prompt.

    Each part has random numbers of its own: what is drawn does not depend on where an attempt before has ended.
    """
    parts = list(drawn)
    if len(parts) < len(request.parts):
        model, tokenizer = load_policy(request.policy, precision=request.precision, trainable=False)
        stop = stop_tokens(model, tokenizer)
        with computing(request.precision):
            for number in range(len(parts), len(request.parts)):
                tokens, _, finished = sample_answers(
                    model,
                    [prompt.ids for prompt in request.parts[number] for _ in range(request.answers)],
                    max_new_tokens=request.max_new_tokens,
                    stop=stop,
                    generator=generator_for(request.seed, "pool", number),
                    temperature=request.temperature,
                )
                parts.append(PoolPart(tokens, finished))
                keep(parts)
    return _answers(request, parts)


def _answers(request: PoolRequest, parts: Sequence[PoolPart]) -> list[Answer]:
    tokens = [answer for part in parts for answer in part.tokens]
    finished = [done for part in parts for done in part.finished]
    texts = policy_tokenizer(request.policy).batch_decode(tokens, skip_special_tokens=True)
    asked = [prompt for prompt in request.prompts for _ in range(request.answers)]
    return [
        Answer(prompt.text, text, done, prompt.row, len(answer))
        for prompt, text, done, answer in zip(asked, texts, finished, tokens, strict=True)
    ]
