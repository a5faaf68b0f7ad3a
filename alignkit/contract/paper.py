"""Papers: of which paper a method is, and with which of its settings."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from alignkit.contract.settings import Settings, but_missing

PAPER_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,40}")


@dataclass(frozen=True)
class Paper:
    """A paper whose method this is. Raises ValueError where it cannot be found by its name."""

    name: str
    """What people call its method, such as `dapo` or `reinforce++`; `alignkit methods NAME` finds it."""
    title: str
    source: str
    """Where it is, such as `arXiv 2503.14476`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The method's settings that make it the paper's, groups as tables."""
    differs: str = ""
    """What is not as in the paper."""

    def __post_init__(self) -> None:
        if not PAPER_NAME.fullmatch(self.name):
            raise ValueError(f"the name of paper {self.name!r} must match {PAPER_NAME.pattern}")

    def is_called(self, name: str) -> bool:
        """Return whether this is its name, or where it is: `dapo`, `2503.14476`."""
        return name.lower() in (self.name, self.source.lower(), self.source.lower().removeprefix("arxiv "))

    def why_not_of(self, kind: type[Settings]) -> str:
        """Return why its settings are none of a class; nothing where they are."""
        try:
            kind.model_validate(dict(self.settings))
        except ValidationError as error:
            return but_missing(error)
        return ""

    def keys(self, prefix: str) -> dict[str, Any]:
        """Return its settings under the keys that a stage gives them: `{"grpo.kl.coef": 0.0}`."""
        return dict(_flat(prefix, self.settings))


def _flat(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        yield from _flat(f"{prefix}.{key}", value) if isinstance(value, Mapping) else [(f"{prefix}.{key}", value)]
