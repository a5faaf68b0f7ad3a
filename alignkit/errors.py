"""What can go wrong for a user: what is wrong, where, and what to do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self

ENDLESS = re.compile(r"(\S{80})\S{300,}")
"""A word that nobody reads to its end; a name from a hostile file may have megabytes."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `where: problem; remedy`."""

    problem: str
    where: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"; {self.remedy}" if self.remedy else ""
        return ENDLESS.sub(r"\1...", f"{place}{self.problem}{advice}")


class AlignkitError(Exception):
    """A mistake that its user can mend; everything else is a bug and keeps its traceback.

    `status` is the exit status of the command line.
    """

    status = 1

    def __init__(self, problem: str, where: str = "", remedy: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(problem, where, remedy),)
        super().__init__(str(self.problems[0]))

    @property
    def problem(self) -> str:
        return self.problems[0].problem

    @property
    def where(self) -> str:
        return self.problems[0].where

    @property
    def remedy(self) -> str:
        return self.problems[0].remedy

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Self:
        """Make one error of all the problems that were found, in the order given."""
        error = cls(problems[0].problem, problems[0].where, problems[0].remedy)
        error.problems = tuple(problems)
        error.args = ("\n".join(map(str, problems)),)
        return error


class StageError(AlignkitError):
    """A stage failed; the message names its folder."""

    status = 1


class RecipeError(AlignkitError):
    """A recipe, or how a command was called, is wrong."""

    status = 2


class DataError(AlignkitError):
    """A row or a file of a source is wrong."""

    status = 65


class JudgeError(AlignkitError):
    """A judge does not answer."""

    status = 69


class MemoryLimitError(AlignkitError):
    """A stage needs more memory than there is."""

    status = 71


class DiskError(AlignkitError):
    """A file cannot be written or read."""

    status = 74


class LockedError(AlignkitError):
    """Somebody else is working on the same stage."""

    status = 75


class NotFiniteError(AlignkitError):
    """A loss, a gradient or a reward became NaN or infinite; stopped before the weights took it."""

    status = 76


class PluginError(AlignkitError):
    """A plugin is broken, or two of them clash."""

    status = 78


INTERRUPTED, TERMINATED = 130, 143


def near_miss(word: str, known: Sequence[str]) -> str:
    """Return `did you mean 'x'?` if one of the known words is close to the given one, else nothing."""
    match = [other for other in known if _one_slip(word, other)] or get_close_matches(word, known, n=1, cutoff=0.7)
    return f"did you mean {match[0]!r}?" if match else ""


def _one_slip(word: str, other: str) -> bool:
    """Return whether one letter wrong, missing or too many, or two swapped, make one word of the other."""
    if min(len(word), len(other)) < 3 or abs(len(word) - len(other)) > 1:
        return False
    same = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    a, b = word[same:], other[same:]
    swapped = a[:2] == b[:2][::-1] and a[2:] == b[2:]
    return swapped or a[1:] == b[1:] or a == b[1:] or a[1:] == b


def one_line(error: BaseException) -> str:
    """Name an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
