"""Which methods there are for what somebody has, and what each takes: `init` chooses by it, and people do.

What a method needs and holds is told by what it declares; when to take it, and what goes wrong, by its author's advice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from alignkit.contract.kinds import (
    Artifact,
    Demonstrations,
    Judge,
    Policy,
    Preferences,
    Prompts,
    Ratings,
    Records,
    Reward,
    RewardModel,
    Text,
    word_of,
)
from alignkit.contract.method import Input, Method
from alignkit.contract.needs import Needs, RowNeeds, SamplingNeeds
from alignkit.plugins import BUILT_IN, WELL_KNOWN, Plugins

ORDER: tuple[type[Artifact], ...] = (Text, Demonstrations, Preferences, Ratings, Prompts)
"""Kinds of rows, as a chain uses them."""
WORDS: dict[type[Artifact], str] = {Preferences: "pairs", Text: "raw text", Reward: "rewards", Judge: "a judge"}
"""What people call kinds, where that is not their own word."""


@dataclass(frozen=True)
class Choice:
    """A method, as one chooses among several."""

    method: Method

    @property
    def rows(self) -> tuple[type[Artifact], ...]:
        """The kinds of rows that it learns from: of a union each by itself."""
        return tuple(kind for one in self.must_have for kind in one.kinds if issubclass(kind, Records))

    @property
    def takes(self) -> str:
        """What one must have besides the policy that is trained."""
        return " and ".join(_words(one) for one in self.must_have)

    @property
    def must_have(self) -> list[Input]:
        """The inputs that it cannot do without, but for the policy that is trained."""
        needed = [one for one in self.method.consumes.values() if not one.optional]
        first = next((one for one in needed if one.kinds == (Policy,)), None)
        return [one for one in needed if one is not first]

    @property
    def needs(self) -> Needs | None:
        """What it will do by its own settings; None where it does not say, or where one of them must be given."""
        try:
            return self.method.needs(self.method.settings())
        except ValidationError:
            return None

    @property
    def holds(self) -> str:
        """The models in memory while it learns, as far as it says."""
        needs = self.needs
        beside = [one.role for one in self.must_have if one.kinds == (Policy,)]
        if isinstance(needs, SamplingNeeds):
            critic = {"separate": ["critic"], "shared": ["a value head"], None: []}[needs.critic]
            beside = [*(["start"] if needs.start else []), *critic, *beside]
        rewards = ["reward models" for one in self.must_have if issubclass(one.kinds[0], Reward)]
        return " + ".join(["policy", *beside, *rewards]) if needs else "not said"

    @property
    def time(self) -> str:
        """How much it reads or samples by its own settings, as far as it says."""
        needs = self.needs
        if isinstance(needs, SamplingNeeds):
            return f"samples {needs.updates * needs.batch:,} answers"
        if not isinstance(needs, RowNeeds):
            return "not said"
        return f"reads rows in {needs.epochs:g} epoch{'s' * (needs.epochs != 1)}"

    @property
    def papers(self) -> tuple[str, ...]:
        return tuple(paper.source for paper in self.method.papers)


def _words(given: Input) -> str:
    if given.kinds == (Policy,):
        return f"a {given.role}"
    return " or ".join(WORDS.get(kind, word_of(kind)) for kind in given.kinds)


def choices(plugins: Plugins) -> list[Choice]:
    """Return all methods that learn or make rows, by what they take; of each the usual ones come first."""
    makes = (Policy, RewardModel, Records)
    found = [Choice(one) for one in plugins.methods.values() if issubclass(one.produces, makes)]
    return sorted(found, key=lambda one: (_place(one), _makes(one, makes), _rank(plugins, one)))


def _makes(choice: Choice, kinds: Sequence[type[Artifact]]) -> int:
    return next(place for place, kind in enumerate(kinds) if issubclass(choice.method.produces, kind))


def _place(choice: Choice) -> int:
    return min((ORDER.index(kind) for kind in choice.rows if kind in ORDER), default=len(ORDER))


def _rank(plugins: Plugins, choice: Choice) -> tuple[bool, int, str]:
    """Order methods for the same rows: ours first, of others those that people know."""
    method = choice.method
    ours = plugins.origins[f"method:{method.address}"].plugin in BUILT_IN
    return not ours, WELL_KNOWN.index(method.name) if method.name in WELL_KNOWN else len(WELL_KNOWN), method.name


def choices_for(plugins: Plugins, kind: type[Artifact], makes: type[Artifact] = Policy) -> Iterator[tuple[Choice, str]]:
    """Yield the methods that learn from rows of a kind and need nothing else, the usual one first, each with the role
    of those rows."""
    for choice in choices(plugins):
        roles = choice.must_have
        if issubclass(choice.method.produces, makes) and len(roles) == 1 and roles[0].kinds[0] is kind:
            yield choice, roles[0].role
