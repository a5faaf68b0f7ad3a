"""A policy beside its teacher, token by token of the same answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alignkit import Precision
from alignkit_distill.teachers import Teacher, TokenComparison, Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.kit import Readers


@dataclass(frozen=True)
class Read:
    """Answers that both read, each behind a prompt of its own."""

    prompts: Sequence[Tokens]
    """What the policy is asked."""
    asked: Sequence[Tokens]
    """What the teacher is asked."""
    answers: Sequence[Tokens]
    known: Sequence[Tensor] = ()
    """What the teacher has found out about them, as tables (n, t, ...)."""

    def take(self, rows: Sequence[int]) -> Read:
        """Return these rows, as wide as the longest of them."""
        prompts, asked, answers = ([side[row] for row in rows] for side in (self.prompts, self.asked, self.answers))
        width = max(map(len, answers))
        return Read(prompts, asked, answers, [table[list(rows), :width] for table in self.known])


@dataclass(frozen=True)
class BesideTeacher:
    """A policy beside its teacher."""

    policy: Any
    teacher: Teacher
    temperature: float
    """Divides the logits of both."""
    precision: Precision

    @property
    def _readers(self) -> Readers:
        from alignkit.kit import Readers

        return Readers((self.policy, *self.teacher.models), self.temperature, self.precision)

    def known(self, read: Read) -> Read:
        """Return answers with what a teacher finds out about them once; one process asks, for all."""
        from alignkit.kit import brought, parallel

        if self.teacher.models or read.known:
            return read
        found = parallel.first(lambda: self.teacher.known(read.asked, read.answers))
        return replace(read, known=[brought(table, self.policy.device) for table in found])

    def each_token(self, read: Read, compute: Callable[[TokenComparison], Tensor]) -> Tensor:
        """Compute something of what both say at each token of answers (n, t, ...), with gradient."""
        return self._readers.each_token(self._prompts(read), read.answers, self._of_sides(compute), read.known)

    def every_answer(self, read: Read) -> Tensor:
        """Compare both at each token of any number of answers, without gradient (n, t, 4).

        The policy's KL from the teacher, whether both hold the same token likeliest, and the log-probability of the
        token that stands there by each.
        """
        import torch

        def compute(sides: TokenComparison) -> Tensor:
            return torch.stack([sides.kl, sides.agree, sides.policy_token, sides.teacher_token], dim=-1)

        read = self.known(read)
        return self._readers.every_answer(self._prompts(read), read.answers, self._of_sides(compute), read.known)

    def of_answers(self, read: Read) -> dict[str, list[float]]:
        """Return the means over each answer's tokens of the policy's KL from the teacher, and of their agreement."""
        table = self.every_answer(read)
        rows = [row[: len(answer)].mean(dim=0).tolist() for row, answer in zip(table, read.answers, strict=True)]
        return {"teacher_kl": [row[0] for row in rows], "agreement": [row[1] for row in rows]}

    def _prompts(self, read: Read) -> list[Sequence[Tokens]]:
        """Return what each of the readers is asked."""
        return [read.prompts, *(read.asked for _ in self.teacher.models)]

    def _of_sides(self, compute: Callable[[TokenComparison], Tensor]) -> Callable[..., Tensor]:
        return lambda tables, tokens, known: compute(self.teacher.sides(tables, tokens, known))
