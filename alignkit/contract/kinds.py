"""The kinds of artifact: what sources are, what methods take and make.

A kind is what the planner checks, the typed input that a method uses, and the noun in an error. A subclass satisfies
its parent; a package may define its own.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict

from alignkit.contract.constraint import Constraint
from alignkit.contract.mix import Mix
from alignkit.contract.reward_function import Score
from alignkit.data.records import Part, Record, Row, read_side
from alignkit.data.values import FURTHER
from alignkit.errors import RecipeError


class Artifact(BaseModel):
    """A typed result on disk. `name` is the source or stage that it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str
    path: Path


class Records(Artifact):
    """Rows in files. A row is held out by its prompt, the same in every source and stage."""

    columns: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """The sets of columns that a row may have, the preferred one first.

    A package's own kind says by `Columns` what each holds; a set of names alone is of texts and chats.
    """
    further: ClassVar[tuple[str, ...]] = ()
    """Columns that it may have besides."""

    parts: tuple[Part, ...]
    mix: Mix | None = None
    """How its sources are read; None: all their rows, shuffled together."""

    def train(self) -> Iterator[Record]:
        """Return the rows to learn from, in the order of the files; each knows its place."""
        return read_side(self.parts, type(self).__name__, self.columns, held_out=False)

    def held_out(self) -> Iterator[Record]:
        """Return the rows kept aside to measure on."""
        return read_side(self.parts, type(self).__name__, self.columns, held_out=True)

    def by_source(self) -> dict[str, Self]:
        """Return the rows of each of its sources by themselves, in their order."""
        names = dict.fromkeys(part.name for part in self.parts)
        parts = {name: tuple(part for part in self.parts if part.name == name) for name in names}
        return {name: self.model_copy(update={"name": name, "parts": some}) for name, some in parts.items()}


class Text(Records):
    """Raw text: `text`."""

    columns = (("text",),)


class Prompts(Records):
    """What a policy is asked: `prompt`, a string or chat messages.

    Beside a chat, here and in the kinds below, `tools` are what it may call, and `system` is a system turn's text.
    """

    columns = (("prompt",),)
    further = FURTHER["Prompts"]


class Demonstrations(Records):
    """Good answers: `prompt` and `completion`, or chat `messages`, or a `completion` alone.

    `completion` ends with an answer of the assistant; of `messages` all its turns are answers, but those of `weight` 0.
    """

    columns = (("prompt", "completion"), ("messages",), ("completion",))
    further = FURTHER["Demonstrations"]


class Preferences(Records):
    """Pairs: `prompt`, `chosen`, `rejected`; without `prompt` it is what both sides begin with.

    In chats a side is an answer of the assistant, with the calls of tools before it and what those return; what comes
    before is the prompt, the same for both. `p_chosen` may say, from 0 to 1, how likely it is that the chosen answer is
    the better one.
    """

    columns = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))
    further = FURTHER["Preferences"]


class Ratings(Records):
    """Judged answers: `prompt`, `completion` and a `rating` (a number) or a `label` (true is good)."""

    columns = (("prompt", "completion", "rating"), ("prompt", "completion", "label"))
    further = FURTHER["Ratings"]


class Snapshot(BaseModel):
    """A policy on its way to the one that a stage made: a folder like that one's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """The optimiser step, or update, after which it was kept."""
    path: Path


class Policy(Artifact):
    """A language model: a folder of full weights, or a LoRA adapter that names its full-weights base."""

    load: Literal["4bit", "8bit"] | None = None
    """Quantise the frozen weights while loading."""
    grow_embedding: bool = False
    """Give tokens that the tokenizer has and the embedding has not rows of their own, each the mean of the others."""
    chat_template: str | None = None
    """The template that chats are rendered by, in place of the tokenizer's own."""
    snapshots: tuple[Snapshot, ...] = ()
    """Policies on the way to it, by step."""

    def on_the_way(self) -> "Iterator[Policy]":
        """Yield its snapshots as policies of their own, named `NAME@STEP`."""
        for one in self.snapshots:
            yield self.model_copy(update={"name": f"{self.name}@{one.step}", "path": one.path, "snapshots": ()})


class Reward(Artifact):
    """Whatever scores answers."""

    weight: float = 1.0
    """Its share where several rewards are added up."""
    constraint: Constraint | None = None
    """The bound on its mean, where a method gets it as a cost."""

    def open(self, cache: Path | None) -> Score:
        """Return what scores answers: a package's own kind of reward says it here, else no method can use it.

        The `cache` is a folder that outlives the stage. Ours are opened by the stage, with its plugins.
        """
        raise RecipeError(f"a {type(self).__name__} cannot score answers", f"source {self.name!r}")


class RewardModel(Reward):
    """A text classifier that scores an answer: trained by a stage, or anybody's."""

    label: str | None = None
    """The class whose logit is the score; needed where there are several."""


class FunctionReward(Reward):
    """A reward function that a plugin offers, by its name."""

    function: str
    settings: Mapping[str, Any] = {}


class Judge(Artifact):
    """Compares or rates answers: an endpoint, a policy, a rule. Never taken for a policy."""

    address: str
    """Its scheme, a colon, and what the scheme makes of the rest."""
    options: Mapping[str, Any] = {}

    @property
    def scheme(self) -> str:
        return self.address.partition(":")[0]

    @property
    def rest(self) -> str:
        return self.address.partition(":")[2]


class JudgeReward(Reward):
    """A judge that rates answers."""

    judge: Judge


class Scores(Artifact):
    """A table of results: one row for each policy."""

    def rows(self) -> list[Row]:
        lines = (self.path / "data.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]


def can_be_opened(kind: type[Artifact]) -> bool:
    """Return whether a kind of reward scores answers: it is one of ours, or says how it is opened."""
    ours = (RewardModel, FunctionReward, JudgeReward)
    return kind is Reward or issubclass(kind, ours) or (issubclass(kind, Reward) and kind.open is not Reward.open)


SOURCE_KINDS: Mapping[str, type[Artifact]] = {
    "policy": Policy,
    "text": Text,
    "prompts": Prompts,
    "demonstrations": Demonstrations,
    "preferences": Preferences,
    "ratings": Ratings,
    "reward": Reward,
    "judge": Judge,
}
"""The words that name a source's kind in a recipe."""


def source_words(kinds: Iterable[type[Artifact]]) -> dict[str, type[Artifact]]:
    """Return the words that name a source's kind where these are offered besides ours.

    A package's kind of rows that says its columns has its name, in a recipe's writing: `StepLabels` is `step-labels`.
    """
    own = {word_of(kind): kind for kind in kinds if issubclass(kind, Records) and kind.columns}
    return {**SOURCE_KINDS, **{word: kind for word, kind in own.items() if word not in SOURCE_KINDS}}


def word_of(kind: type[Artifact]) -> str:
    """Return how a recipe writes the name of a kind."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", kind.__name__).lower()


def kinds_by_name() -> dict[str, type[Artifact]]:
    """Return every kind that is defined by now, third parties' among them; nobody's replaces one of ours.

    Of a plugin file that was loaded anew the last definition counts.
    """
    found: dict[str, type[Artifact]] = {}
    waiting: list[type[Artifact]] = [Artifact]
    while waiting:
        kind = waiting.pop(0)
        if kind.__module__ == __name__ or kind.__name__ not in globals():
            found[kind.__name__] = kind
        waiting += kind.__subclasses__()
    return found
