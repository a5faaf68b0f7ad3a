"""Settings: what a recipe may say to a method. The string under a field is its documentation."""

import ast
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from inspect import cleandoc, getsource
from itertools import zip_longest
from textwrap import dedent
from typing import Any, ClassVar, Literal, NamedTuple, get_args
from warnings import catch_warnings

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PydanticUserError,
    ValidationError,
)
from pydantic.fields import Field, FieldInfo
from pydantic_core import PydanticSerializationError


class Settings(BaseModel):
    """A method's settings or a group of them: frozen, unknown keys refused."""

    added: ClassVar[frozenset[str]] = frozenset()
    """Settings that came after others had finished stages: at their default they are no part of a stage's identity."""

    # Deferred: of all the settings that packages bring, a command needs those of few methods.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, defer_build=True)


class InputNames(NamedTuple):
    """Marks a setting that names inputs of a role: `Annotated[tuple[str, ...], InputNames("rewards")] = ()`, or a `str`
    for one. A name that the stage has not is refused when the recipe is planned; in a round it is the round's."""

    role: str


@cache
def described(kind: type[Settings]) -> type[Settings]:
    """Return the class, its fields described by the strings that stand under them in its source, groups included.

    Whoever shows settings asks for this; reading source takes time that `import alignkit` should not.
    """
    for field in kind.model_fields.values():
        for group in (field.annotation, *get_args(field.annotation)):
            if isinstance(group, type) and issubclass(group, Settings):
                described(group)
    for base in reversed(kind.__mro__):
        for name, text in _under_fields(base) if issubclass(base, Settings) else ():
            if name in kind.model_fields:
                kind.model_fields[name].description = text
    kind.model_rebuild(force=True)
    return kind


def _under_fields(kind: type) -> Iterator[tuple[str, str | None]]:
    """Yield the fields that a class declares with the string under each, where its source can be read."""
    with suppress(OSError, TypeError, SyntaxError):
        (tree,) = ast.parse(dedent(getsource(kind))).body
        for field, under in zip_longest(tree.body, tree.body[1:]) if isinstance(tree, ast.ClassDef) else ():
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = (
                    under.value.value if isinstance(under, ast.Expr) and isinstance(under.value, ast.Constant) else None
                )
                yield field.target.id, cleandoc(text) if isinstance(text, str) else None


class LoRA(Settings):
    """Train small added matrices instead of all weights (Hu et al. 2021, arXiv 2106.09685)."""

    rank: PositiveInt = 16
    """Width of the added matrices: more learns more and costs more."""
    alpha: PositiveFloat = 32.0
    """Scale of what they add, divided by the rank; twice the rank is usual."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of their inputs dropped while training."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers get them: all linear ones but the head, or names such as `q_proj`."""


class Optimisation(Settings):
    """How weights are stepped (AdamW, Loshchilov & Hutter 2019)."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls from its peak: to zero, to zero along a cosine, or not at all."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which the learning rate rises first."""
    weight_decay: NonNegativeFloat = 0.0
    """Pull of the weights towards zero."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients longer than this are shortened to it."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Memory of the mean gradient."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Memory of the squared gradient; 0.95 forgets faster."""


class SnapshotSettings(Settings):
    """Settings of every method that makes a policy in steps, or in updates."""

    added: ClassVar[frozenset[str]] = frozenset({"snapshots"})

    snapshots: NonNegativeInt = 0
    """Policies on the way that are kept beside the last one, evenly spaced; `evaluate` and `compare` measure them, too.
    Each takes as much disk as the last one."""


@cache
def why_unusable(kind: type[Settings]) -> str:
    """Return why settings cannot stand in a recipe: they have no JSON schema, or a default that JSON does not keep.

    Nothing where they can.
    """
    try:
        with catch_warnings(action="ignore"):  # of defaults that no schema can show; they are dumped below
            kind.model_json_schema()
        kind.model_validate_json("{}", strict=True)  # as a recipe that says nothing is read
    except PydanticUserError as error:
        return error.message
    except ValidationError as error:
        if wrong := but_missing(error):
            return wrong
    try:
        dumped = kind.model_construct().model_dump(mode="json")  # as an order has it
        return "" if kind.model_validate(dumped) == kind() else "its defaults change when they are written as JSON"
    except (PydanticSerializationError, UnicodeDecodeError) as error:
        return str(error)
    except ValidationError as error:
        return but_missing(error)


def but_missing(error: ValidationError) -> str:
    """Word the first mistake that is not a setting which a recipe must give."""
    wrong = next((detail for detail in error.errors(include_url=False) if detail["type"] != "missing"), None)
    return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg'][:1].lower()}{wrong['msg'][1:]}" if wrong else ""


def identity(settings: Settings) -> dict[str, Any]:
    """Return as JSON values what of settings makes a stage's result: all, but for what was added and is at default."""
    stored = settings.model_dump(mode="json")
    added = {name for kind in type(settings).__mro__ for name in vars(kind).get("added", ())}
    for name, value in settings:
        if name in added and value == type(settings).model_fields[name].default:
            del stored[name]
        elif isinstance(value, Settings):
            stored[name] = identity(value)
    return stored


def over_default(field: FieldInfo, given: Mapping[str, Any]) -> dict[str, Any]:
    """Lay what is said of a group over the field's own default, which may differ from the group's."""
    default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    return merged(default.model_dump(mode="json"), given) if isinstance(default, Settings) else dict(given)


def merged(below: Mapping[Any, Any], above: Mapping[Any, Any]) -> dict[Any, Any]:
    """Lay a nested table over another."""
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            both[key] = merged(below[key], above[key])
    return both


Precision = Literal["auto", "fp32", "bf16"]
"""`auto`: bf16 arithmetic where a GPU has it, else fp32. Weights that are trained are kept in fp32."""

SHARED = ("lora", "precision", "max_length", "optimisation")
"""Settings that may stand on the stage itself, so that they survive a change of its method."""
