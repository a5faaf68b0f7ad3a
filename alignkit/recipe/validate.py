"""Settings of a recipe against their class: every mistake at once, in plain words."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from alignkit.contract.settings import Settings, over_default
from alignkit.errors import Problem, RecipeError, near_miss
from alignkit.recipe.other_names import other_name
from alignkit.recipe.toml import Keys

S = TypeVar("S", bound=Settings)
Find = Callable[[Keys], tuple[str, str]]
"""Says where a setting stands and what its full name is, given its path inside its table."""


def read_settings(
    kind: type[S], given: Mapping[str, Any], find: Find, typed: Mapping[Keys, str] = MappingProxyType({})
) -> S:
    """Validate what a recipe says. Raises RecipeError with all that is wrong.

    `typed` are the settings of the command line, as they were typed: where text is wanted, `1.50` means that text.
    """
    try:
        return kind.model_validate_json(json.dumps(_as_typed(kind, given, typed), default=str), strict=True)
    except ValidationError as error:
        raise RecipeError.of(list(_problems(kind, error, find))) from error


def _as_typed(kind: type[Settings], given: Mapping[str, Any], typed: Mapping[Keys, str]) -> dict[str, Any]:
    values = dict(given)
    for key, field in kind.model_fields.items():
        value, inner = values.get(key), _group(field)
        if value is False and inner and _may_be_off(field):
            values[key] = None
        elif inner and isinstance(value, dict):
            below = {path[1:]: text for path, text in typed.items() if path[0] == key and len(path) > 1}
            values[key] = _as_typed(inner, over_default(field, value), below)
        elif (key,) in typed and not isinstance(value, str) and _takes_text_only(field):
            values[key] = typed[key,]
    return values


def _takes_text_only(field: FieldInfo) -> bool:
    return set(get_args(field.annotation) or (field.annotation,)) <= {str, type(None)}


def _may_be_off(field: FieldInfo) -> bool:
    """Return whether `false` switches a group off, which may stand in [defaults]."""
    options = get_args(field.annotation)
    return type(None) in options and bool not in options


def _group(field: FieldInfo) -> type[Settings] | None:
    """Return the class of a group of settings, also of one that may be left out."""
    for option in (field.annotation, *get_args(field.annotation)):
        if isinstance(option, type) and issubclass(option, Settings):
            return option
    return None


def _problems(kind: type[Settings], error: ValidationError, find: Find) -> Iterator[Problem]:
    """Yield one problem for each setting; the members of a union are alternatives of one."""
    found: dict[Keys, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_keys(kind, detail), []).append(detail)
    groups = {keys[:size] for keys in found for size in range(len(keys))}
    for keys, details in found.items():
        if keys in groups:
            continue
        where, name = find(keys)
        yield (
            _unknown(kind, keys, where, name)
            if details[0]["type"] == "extra_forbidden"
            else Problem(f"{name}: {_wrong(details)}", where, _hint(details))
        )


def _keys(kind: type[Settings], detail: ErrorDetails) -> Keys:
    """Return the path of a setting, without the names that pydantic adds for the members of a union."""
    keys: list[str] = []
    group: type[Settings] | None = kind
    for part in detail["loc"]:
        if group is not None and part in group.model_fields:
            keys.append(str(part))
            field = group.model_fields[str(part)]
            group = _group(field)
            if get_origin(field.annotation) in (Mapping, dict):
                return (*keys, *map(str, detail["loc"][len(keys) : len(keys) + 1]))
    if detail["type"] == "extra_forbidden":
        keys.append(str(detail["loc"][-1]))
    return tuple(keys)


def _unknown(kind: type[Settings], keys: Keys, where: str, name: str) -> Problem:
    group = kind
    for key in keys[:-1]:
        group = _group(group.model_fields[key]) or group
    known = list(group.model_fields)
    hint = other_name(keys[-1], kind) or near_miss(keys[-1], known) or f"there are {', '.join(known) or 'none'}"
    return Problem(f"{name}: unknown setting", where, hint)


def _wrong(details: list[ErrorDetails]) -> str:
    kind = details[0]["type"]
    if kind == "missing":
        return "must be given"
    plain = list(dict.fromkeys(map(_plain, details)))
    words = " or ".join([plain[0], *(text.removeprefix("must be ") for text in plain[1:])])
    shown = json.dumps(details[0]["input"], default=str, ensure_ascii=False)
    if kind == "value_error" and isinstance(details[0]["input"], dict):
        return words
    return f"{words}, and is {shown if len(shown) <= 60 else f'{shown[:57]}...'}"


_WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
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
    text = re.sub(r"^\w+ should", "must", detail["msg"])
    return text[0].lower() + text[1:]


def _hint(details: list[ErrorDetails]) -> str:
    for detail in details:
        if detail["type"] == "literal_error" and isinstance(detail["input"], str):
            expected = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
            return near_miss(detail["input"], expected)
    return ""
