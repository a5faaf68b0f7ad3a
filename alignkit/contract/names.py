"""What is offered under a name: which names there can be, and which functions can work under them."""

import re
from collections.abc import Callable
from inspect import getdoc, isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from typing import get_type_hints

from alignkit.contract.settings import Settings
from alignkit.errors import PluginError

NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")


def why_not(name: str, function: Callable[..., object]) -> str:
    """Return why a function cannot be offered under a name; nothing where it can."""
    if not NAME.fullmatch(name):
        return f"its name must match {NAME.pattern}"
    if iscoroutinefunction(function) or isasyncgenfunction(function):
        return "it is asynchronous, and nobody would wait for it; write a plain `def`"
    if isgeneratorfunction(function):
        return "it yields, where it must return its result"
    return ""


def check_offer(noun: str, name: str, function: Callable[..., object]) -> None:
    """Raise PluginError where a function cannot be offered under a name."""
    if why := why_not(name, function):
        raise PluginError(f"{noun} {name!r} cannot be offered: {why}", f"{function.__module__}.{function.__qualname__}")


def summary_of(function: Callable[..., object]) -> str:
    """Return the first paragraph of a docstring in one line."""
    return (getdoc(function) or "").split("\n\n")[0].replace("\n", " ")


def settings_taken(function: Callable[..., object], parameters: int) -> type[Settings] | None:
    """Return the class of the second of so many parameters; None where it is no settings, or there are others."""
    names = list(signature(function).parameters)
    kind = get_type_hints(function).get(names[1]) if len(names) == parameters else None
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None
