"""A policy that is asked as it was while it was trained: by its chat template, or with text as it stands."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Policy
from alignkit.contract.reward_function import Answer
from alignkit.data.values import Form
from alignkit.errors import DataError
from alignkit.training import rollouts
from alignkit.training.answers import Model
from alignkit.training.arithmetic import computing
from alignkit.training.configs import positions, taught_length
from alignkit.training.encoding import Prompt, prompt_ids
from alignkit.training.lengths import UNSET_ANSWER
from alignkit.training.models import load_policy
from alignkit.training.row_texts import prompt_text
from alignkit.training.tokenizers import stop_tokens

UNREAD = "\ufffd"
"""What stands for the beginning of a character whose other bytes are in tokens to come."""


@dataclass(frozen=True)
class Manner:
    """How answers are drawn."""

    max_new_tokens: int | None = None
    """None: as many as the answers needed that taught the policy."""
    temperature: float = 1.0
    """0: each token is the likeliest one."""
    seed: int = 0


@dataclass(frozen=True)
class Speaker:
    """A policy with its model in memory."""

    model: Model
    tokenizer: PreTrainedTokenizerBase
    form: Form

    def longest(self, manner: Manner) -> int:
        """Return how many tokens an answer may have."""
        return manner.max_new_tokens or taught_length(self.model) or UNSET_ANSWER

    def asked(self, row: Mapping[str, Any], manner: Manner) -> Prompt:
        """Return what the policy is asked with for the `prompt` of a row.

        Raises DataError where that leaves no room for an answer, and where a chat asks a policy that never saw one.
        """
        prompt, tools = row["prompt"], row.get("tools")
        if self.form == "chat" and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if self.form == "plain" and not isinstance(prompt, str):
            problem = "the prompt is a chat, and the policy has learnt from plain text"
            raise DataError(problem, remedy="ask with text alone, or take a stage that has learnt from chats")
        ids, room = prompt_ids(self.tokenizer, prompt, tools), positions(self.model)
        if room is not None and len(ids) + self.longest(manner) > room:
            problem = f"{len(ids)} tokens of the prompt and {self.longest(manner)} of an answer are more than {room}"
            raise DataError(problem, remedy="ask with less, or lower --max-new-tokens")
        return Prompt(ids, prompt_text(self.tokenizer, prompt, tools), {**row, "prompt": prompt})

    def stream(self, prompt: Prompt, manner: Manner, *place: int) -> Generator[str, None, Answer]:
        """Yield an answer piece by piece as it is drawn, and return it whole.

        `place` tells its random numbers from those of other answers.
        """
        stop, drawn = stop_tokens(self.model, self.tokenizer), list[int]()
        tokens = rollouts.stream_answer(
            self.model,
            prompt.ids,
            max_new_tokens=self.longest(manner),
            stop=stop,
            generator=rollouts.generator_for(manner.seed, "answers", *place),
            temperature=manner.temperature,
        )
        with computing("auto"):
            yield from pieces(noted(tokens, drawn), self.tokenizer)
        text = str(self.tokenizer.decode(drawn, skip_special_tokens=True))
        return Answer(prompt.text, text, drawn[-1] in stop, prompt.row)

    def answers(self, prompts: Sequence[Prompt], manner: Manner, *place: int) -> list[Answer]:
        """Answer prompts together; `place` tells their random numbers from those of others."""
        with computing("auto"):
            tokens, _, finished = rollouts.sample_answers(
                self.model,
                [prompt.ids for prompt in prompts],
                max_new_tokens=self.longest(manner),
                stop=stop_tokens(self.model, self.tokenizer),
                generator=rollouts.generator_for(manner.seed, "answers", *place),
                temperature=manner.temperature,
            )
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [
            Answer(prompt.text, text, done, prompt.row)
            for prompt, text, done in zip(prompts, texts, finished, strict=True)
        ]


def open_speaker(policy: Policy, form: Form) -> Speaker:
    """Open a policy to be asked. Raises DataError where its folder is no model."""
    model, tokenizer = load_policy(policy, trainable=False)
    return Speaker(model, tokenizer, form)


def noted(tokens: Iterable[int], drawn: list[int]) -> Iterator[int]:
    """Yield tokens, and note them down."""
    for token in tokens:
        drawn.append(token)
        yield token


def pieces(tokens: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield the text of tokens as far as they have come; all pieces together are the text of all tokens."""
    ids, shown, text = list[int](), "", ""
    for token in tokens:
        ids.append(token)
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if not text.endswith(UNREAD) and text.startswith(shown):
            yield text[len(shown) :]
            shown = text
    yield text[len(shown) :]
