"""One source as it stands in its recipe: what it says, where, and how it is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from alignkit.contract.settings import Settings
from alignkit.errors import RecipeError
from alignkit.recipe.recipe import Recipe
from alignkit.recipe.toml import Keys
from alignkit.recipe.validate import read_settings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Entry:
    """One source as it stands in its recipe."""

    recipe: Recipe
    name: str

    @property
    def named(self) -> str:
        """How messages call it."""
        return f"source {self.name!r}"

    @property
    def table(self) -> Mapping[str, Any]:
        return self.recipe.sources[self.name]

    def where(self, *keys: str) -> str:
        """Return where a key of it stands, or its table."""
        return self.recipe.where("sources", self.name, *keys)

    def refusal(self, problem: str, remedy: str, *keys: str) -> RecipeError:
        """Make the error for what stands under a key."""
        return RecipeError(f"{self.named}: {problem}", self.where(*keys), remedy)

    def settings(self, kind: type[S], given: Mapping[str, Any], *group: str) -> S:
        """Read what it says, or a group of that. Raises RecipeError with all that is wrong."""

        def find(keys: Keys) -> tuple[str, str]:
            return self.where(*group, *keys), f"{self.named}: {'.'.join([*group, *keys])}"

        return read_settings(kind, given, find, self.recipe.typed("sources", self.name, *group))
