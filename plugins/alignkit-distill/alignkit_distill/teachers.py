"""Teachers: what says at each place of an answer how likely each token is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from alignkit import DataError, Judge, Policy, Precision

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alignkit_distill.endpoint_teacher import ScoringEndpoint

TOLD = 20
"""Tokens that an endpoint is asked for where the settings leave it open; vLLM tells no more unless it is told to."""
Tokens = Sequence[int]
Row = Mapping[str, Any]


class TokenComparison(NamedTuple):
    """What policy and teacher say at m places."""

    policy: Tensor
    """Its log-probabilities of v tokens (m, v)."""
    teacher: Tensor
    policy_token: Tensor
    """Its log-probability of the token that stands there (m,)."""
    teacher_token: Tensor
    kl: Tensor
    """The policy's KL from the teacher, by all tokens of which both tell (m,), without gradient."""
    agree: Tensor
    """1 where both hold the same token likeliest, else 0 (m,)."""
    whole: Tensor
    """The policy's log-probabilities of all tokens (m, vocabulary)."""
    tokens: Tensor
    """Those that stand there (m,)."""

    def token_at(self, temperature: float) -> Tensor:
        """Return the policy's log-probability of each token as if its logits had not been divided by this (m,)."""
        return (self.whole * temperature).log_softmax(dim=-1).gather(-1, self.tokens[:, None]).squeeze(-1)


class Teacher(Protocol):
    """Says of given answers how likely each token is."""

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """What reads the answers beside the policy, each time they are learnt from."""
        ...

    def prompt(self, row: Row) -> list[int]:
        """Return what it is asked, as tokens."""
        ...

    def known(self, asked: Sequence[Tokens], answers: Sequence[Tokens]) -> Sequence[Tensor]:
        """Return what is found out about answers once, before they are learnt from, as tables (n, t, ...)."""
        ...

    def sides(self, tables: Sequence[Tensor], tokens: Tensor, known: Sequence[Tensor]) -> TokenComparison:
        """Return what both say, from the log-probabilities of all tokens by policy and models (m, v), the tokens there
        (m,), and what is known of these (m, ...)."""
        ...


@dataclass(frozen=True)
class Hint:
    """What the teacher is told before each prompt, and the policy is not."""

    text: str = ""
    column: str = ""
    """A column of the prompts whose text follows."""

    def before(self, prompt: Any, row: Row) -> Any:
        """Return the prompt with the hint: a string begins with it, a chat has it in its system turn.

        Raise DataError where the row lacks the column.
        """
        if self.column and not isinstance(row.get(self.column), str):
            problem = f"a prompt has no text in the column {self.column!r}, which is the teacher's hint"
            raise DataError(problem, remedy=f'its source must keep it: keep = ["{self.column}"]')
        hint = self.text + (row[self.column] if self.column else "")
        if not hint:
            return prompt
        if isinstance(prompt, str):
            return hint + prompt
        turns = [dict(turn) for turn in prompt]
        if turns[0]["role"] == "system":
            return [{**turns[0], "content": f"{hint}\n\n{turns[0]['content']}"}, *turns[1:]]
        return [{"role": "system", "content": hint}, *turns]

    def asked(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return a row's prompt with the hint, as tokens."""
        from alignkit.kit import prompt_ids

        return prompt_ids(tokenizer, self.before(row["prompt"], row), row.get("tools"))


@dataclass(frozen=True)
class PolicyTeacher:
    """A policy that is asked what the learner is asked, with its own template and hint."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    hint: Hint = Hint()
    top_k: int | None = None
    """So many tokens that it holds likeliest are told apart, and all others are one."""

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        return (self.model,)

    def prompt(self, row: Row) -> list[int]:
        return self.hint.asked(row, self.tokenizer)

    def known(self, asked: Sequence[Tokens], answers: Sequence[Tokens]) -> Sequence[Tensor]:
        return ()

    def sides(self, tables: Sequence[Tensor], tokens: Tensor, known: Sequence[Tensor]) -> TokenComparison:
        from alignkit_distill.divergences import kl, with_rest

        whole = policy = tables[0]
        teacher = tables[1]
        at = tokens[:, None]
        token = policy.gather(-1, at).squeeze(-1), teacher.gather(-1, at).squeeze(-1)
        apart = kl(policy.detach(), teacher)
        agree = (policy.argmax(dim=-1) == teacher.argmax(dim=-1)).float()
        if self.top_k and self.top_k < teacher.shape[1]:
            likeliest = teacher.topk(self.top_k, dim=-1).indices
            policy, teacher = with_rest(policy, likeliest), with_rest(teacher, likeliest)
        return TokenComparison(policy, teacher, *token, apart, agree, whole, tokens)


@dataclass(frozen=True)
class EndpointTeacher:
    """A model behind an endpoint, which tells of given tokens how likely they were, and which others were likeliest."""

    endpoint: ScoringEndpoint
    tokenizer: PreTrainedTokenizerBase
    """The learner's, whose tokens it reads."""
    hint: Hint = Hint()

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        return ()

    def prompt(self, row: Row) -> list[int]:
        return self.hint.asked(row, self.tokenizer)

    def known(self, asked: Sequence[Tokens], answers: Sequence[Tokens]) -> Sequence[Tensor]:
        import torch

        told = self.endpoint.score(asked, answers)
        ids, likeliest, token = (torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, side)), True) for side in told)
        return ids, likeliest, token

    def sides(self, tables: Sequence[Tensor], tokens: Tensor, known: Sequence[Tensor]) -> TokenComparison:
        from alignkit_distill.divergences import add_rest, kl, with_rest

        (whole,) = tables
        ids, likeliest, teacher_token = known
        policy, teacher = with_rest(whole, ids), add_rest(likeliest)
        token = whole.gather(-1, tokens[:, None]).squeeze(-1)
        agree = (whole.argmax(dim=-1) == ids[:, 0]).float()
        return TokenComparison(
            policy, teacher, token, teacher_token, kl(policy.detach(), teacher), agree, whole, tokens
        )


def open_teacher(
    teacher: Policy | Judge, learner: PreTrainedTokenizerBase, hint: Hint, top_k: int | None, precision: Precision
) -> PolicyTeacher | EndpointTeacher:
    """Open a teacher, which does not learn: a policy, or an endpoint that reads the tokens of what learns from it.

    Raise DataError where a policy has other tokens.
    """
    from alignkit.kit import check_same_tokens, load_policy
    from alignkit_distill.endpoint_teacher import open_endpoint

    if isinstance(teacher, Judge):
        return EndpointTeacher(open_endpoint(teacher, top_k or TOLD, learner), learner, hint)
    model, tokenizer = load_policy(teacher, precision=precision, trainable=False)
    check_same_tokens(tokenizer, learner, teacher.name)
    return PolicyTeacher(model, tokenizer, hint, top_k)


def check_room(teacher: Teacher, longest: int) -> None:
    """Raise DataError where a teacher reads fewer tokens than the longest of its prompts has with its answer."""
    from alignkit.kit import positions

    for model in teacher.models:
        limit = positions(model)
        if limit is not None and longest > limit:
            problem = f"the teacher reads at most {limit} tokens, and a prompt with its answer has up to {longest}"
            raise DataError(problem, remedy="lower max_length, shorten the hint, or take another teacher")
