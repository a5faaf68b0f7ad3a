"""Settings of a recipe against their class: every mistake at once, in plain words."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from alignkit.contract.settings import Settings
from alignkit.errors import Problem, RecipeError, near_miss

S = TypeVar("S", bound=Settings)
Where = Callable[..., str]
"""Says where a setting stands, given its path inside its table."""


def read_settings(kind: type[S], given: Mapping[str, Any], where: Where, prefix: str) -> S:
    """Validate what a recipe says; a message names a setting as `prefix` + its path.

    Raises RecipeError with all that is wrong.
    """
    try:
        return kind.model_validate_json(json.dumps(_as_written(kind, given), default=str), strict=True)
    except ValidationError as error:
        problems = [_problem(kind, detail, where, prefix) for detail in error.errors()]
        raise RecipeError.of(list(dict.fromkeys(problems))) from error


def _as_written(kind: type[Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    """Give numbers as text where a setting takes text only: `--set x.label=1` means the text."""
    fields = kind.model_fields
    return {
        key: str(value)
        if key in fields and isinstance(value, int | float) and not isinstance(value, bool) and _text_only(fields[key])
        else value
        for key, value in given.items()
    }


def _text_only(field: Any) -> bool:
    options = {option for option in get_args(field.annotation) if option is not type(None)} or {field.annotation}
    return options == {str}


def _problem(kind: type[Settings], detail: ErrorDetails, find: Where, prefix: str) -> Problem:
    keys = _keys(kind, detail)
    where = find(*keys)
    name = ".".join(keys)
    if detail["type"] == "extra_forbidden":
        known = list(_group(kind, keys[:-1]).model_fields)
        hint = near_miss(keys[-1], known) or f"there are {', '.join(known)}"
        return Problem(f"{prefix}{name}: unknown setting", where, hint)
    shown = json.dumps(detail["input"], default=str)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return Problem(f"{prefix}{name}: {_plain(detail)}, and is {shown}", where, _hint(detail))


def _keys(kind: type[Settings], detail: ErrorDetails) -> list[str]:
    """Give the path of a setting, without the names that pydantic adds for the members of a union."""
    keys: list[str] = []
    group: type[Settings] | None = kind
    for part in map(str, detail["loc"]):
        known = group is not None and part in group.model_fields
        if known or (detail["type"] == "extra_forbidden" and part == str(detail["loc"][-1])):
            keys.append(part)
            group = _inner(group, part) if known and group else None
    return keys or [str(detail["loc"][0])]


def _group(kind: type[Settings], keys: list[str]) -> type[Settings]:
    for key in keys:
        kind = _inner(kind, key) or kind
    return kind


def _inner(kind: type[Settings], key: str) -> type[Settings] | None:
    annotation = kind.model_fields[key].annotation
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, Settings):
            return option
    return None


_WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "tuple_type": "must be a list",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "mapping_type": "must be a table",
    "dict_type": "must be a table",
}


def _plain(detail: ErrorDetails) -> str:
    if word := _WORDS.get(detail["type"]):
        return word
    if detail["type"] == "value_error":
        return str(detail.get("ctx", {}).get("error", detail["msg"]))
    text = detail["msg"].replace("Input should", "must").replace("String should", "must")
    return text[0].lower() + text[1:]


def _hint(detail: ErrorDetails) -> str:
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        expected = str(detail.get("ctx", {}).get("expected", ""))
        return near_miss(detail["input"], [word.strip("' ") for word in expected.replace(" or ", ",").split(",")])
    return ""
