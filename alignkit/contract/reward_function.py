"""Reward functions: `@reward("name")` over one function from answers to scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from alignkit.contract.names import check_offer, settings_taken, summary_of
from alignkit.contract.settings import Settings
from alignkit.errors import PluginError


@dataclass(frozen=True)
class Answer:
    """One answer to be scored."""

    prompt: str
    """What was asked, as text; a chat is rendered by the policy's own template."""
    text: str
    """The answer without special tokens."""
    finished: bool
    """It ended by itself; otherwise it was cut at its length limit."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The prompt's row: its `prompt` as it stood in the source, and the columns that the source keeps."""
    tokens: int | None = None
    """How many tokens were sampled; None where nobody has counted them."""


Score = Callable[[Sequence[Answer]], list[float]]
"""Scores answers: one number for each, in their order."""


@dataclass(frozen=True)
class HeadedScore:
    """Scores of a reward model with several heads. Called, it gives their mean, as any other `Score` gives its own."""

    heads: Callable[[Sequence[Answer]], list[list[float]]]
    """Scores answers: of each the scores of all heads, of which the mean is its score."""
    count: int
    """How many heads there are."""

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return [fmean(each) for each in self.heads(answers)]


@dataclass(frozen=True)
class RewardFunction:
    """A reward function that a plugin offers. Callable as the function that it wraps."""

    name: str
    summary: str
    settings: type[Settings]
    score: Callable[[Sequence[Answer], Any], list[float]]
    version: str = ""

    def __call__(self, answers: Sequence[Answer], settings: Settings) -> list[float]:
        return self.score(answers, settings)


def reward(
    name: str, *, version: str = ""
) -> Callable[[Callable[[Sequence[Answer], Any], list[float]]], RewardFunction]:
    """Make a reward function of `f(answers, settings) -> list[float]`, the settings a `Settings` class.

    Its `version`, where given, is part of a stage's fingerprint, beside that of its package.
    """

    def wrap(function: Callable[[Sequence[Answer], Any], list[float]]) -> RewardFunction:
        check_offer("reward", name, function)
        kind = settings_taken(function, 2)
        if kind is None:
            raise PluginError(
                f"reward {name!r} is not of the form f(answers, settings: SomeSettings) -> list[float]",
                function.__module__,
                "give it two parameters, the second annotated with a Settings class",
            )
        return RewardFunction(name, summary_of(function), kind, function, version)

    return wrap
