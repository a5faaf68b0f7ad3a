"""What a plugin's function gave for several answers, taken at its word only if it is one number for each."""

from collections.abc import Iterable, Mapping

from alignkit.errors import PluginError


def one_number_each(given: object, asked: int, function: str, where: str) -> list[float]:
    """Return what a function (`the reward`, `the rule`) gave, as numbers. Raise PluginError where it gave others."""
    remedy = "it must return one number for each answer"
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise PluginError(f"{function} gave {_shown(given)} instead of a list of numbers", where, remedy)
    values = list(given)
    if len(values) != asked:
        raise PluginError(f"{function} gave {len(values)} numbers where {asked} were asked for", where, remedy)
    return [_number(value, function, where) for value in values]


def _number(value: object, function: str, where: str) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)  # type: ignore[arg-type]  # numpy's and torch's numbers say nothing of their type
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"{function} gave {_shown(value)} where a number was asked for"
        raise PluginError(problem, where, "it must return one number for each answer") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
