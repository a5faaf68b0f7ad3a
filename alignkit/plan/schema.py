"""The JSON Schema of recipes, with the settings of every method that is installed, for editors."""

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from alignkit.contract.constraint import Constraint
from alignkit.contract.kinds import Artifact, Records
from alignkit.contract.mix import Mix
from alignkit.contract.settings import Settings, described
from alignkit.data.formats import SHAPES
from alignkit.plan.inactive import Shared
from alignkit.plan.presets import PRESET
from alignkit.plugins import Plugins
from alignkit.recipe.rounds import Repeat
from alignkit.recipe.self_checks import ComparisonTable, Expectation, SmallEdition
from alignkit.sources.source import PolicyOptions, RecordOptions

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def recipe_schema(plugins: Plugins) -> Schema:
    """Make the JSON Schema of recipes, as these plugins read them."""
    kinds: list[type[Settings]] = [method.settings for method in plugins.methods.values()]
    kinds += [Shared, RecordOptions, PolicyOptions, Constraint, Repeat, Mix, ComparisonTable, Expectation, SmallEdition]
    references, shared = models_json_schema([(described(kind), "validation") for kind in dict.fromkeys(kinds)])
    definitions: Schema = shared["$defs"]
    at: dict[Any, Schema] = {kind: _resolved(reference, definitions) for (kind, _), reference in references.items()}
    for definition in definitions.values():
        _allow_off(definition)
    methods = sorted(plugins.methods.values(), key=lambda method: method.name)
    for method in methods:
        if method.presets:
            at[method.settings]["properties"][PRESET] = {
                "enum": list(method.presets),
                "description": "Settings of a paper, by its name; what is said besides wins.",
            }
    shared_settings = at[Shared]["properties"]
    stage = {
        "type": "object",
        "properties": {
            "method": {
                "description": "What the stage does.",
                "anyOf": [
                    *({"const": method.name, "description": method.summary} for method in methods),
                    {"type": "string"},
                ],
            },
            "inputs": {
                "description": "Role -> the source or stage that is taken, or a list of them.",
                "type": "object",
                "additionalProperties": _one_or_several(),
            },
            "constraints": {
                "description": "Reward -> the bound that its mean over answers must keep while the stage learns.",
                "type": "object",
                "additionalProperties": at[Constraint],
            },
            "mix": at[Mix] | {"description": _first_line(Mix.__doc__)},
            "gates": {
                "description": "Result -> the bounds that it must lie in, else the run stops.",
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {"min": {"type": "number"}, "max": {"type": "number"}},
                    "additionalProperties": False,
                },
            },
            "seed": {"type": "integer", "minimum": 0},
            **shared_settings,
            **{
                method.name: {"$ref": references[method.settings, "validation"]["$ref"], "description": method.summary}
                for method in methods
            },
        },
        "additionalProperties": {"type": "object", "description": "Settings of a method that is not installed."},
    }
    return {
        "$schema": DIALECT,
        "title": "A recipe of alignkit",
        "type": "object",
        "required": ["stage"],
        "properties": {
            "name": {"type": "string", "description": "The run's folder under runs/. Unset: the file's name."},
            "seed": {"type": "integer", "minimum": 0},
            "requires": {"type": "array", "items": {"type": "string"}, "description": "Packages that it needs."},
            "trackers": _one_or_several() | {"description": "Where figures go besides the report."},
            "result": _one_or_several() | {"description": "The stages whose results are wanted. Unset: the last."},
            "defaults": {"type": "object", "properties": shared_settings},
            "sources": {"type": "object", "additionalProperties": _source(at, plugins.source_kinds)},
            "stage": {"type": "object", "additionalProperties": stage},
            "repeat": {
                "description": "Stages that run in rounds; several of them by names of their own.",
                "anyOf": [at[Repeat], {"type": "object", "additionalProperties": at[Repeat], "minProperties": 1}],
            },
            "compare": at[ComparisonTable] | {"description": _first_line(ComparisonTable.__doc__)},
            "expect": {
                "description": "Figures that are expected; `alignkit reproduce` checks them.",
                "type": "array",
                "items": at[Expectation],
            },
            "smoke": at[SmallEdition] | {"description": _first_line(SmallEdition.__doc__)},
        },
        "additionalProperties": False,
        "$defs": definitions,
    }


def _resolved(reference: Mapping[str, Any], definitions: Schema) -> Schema:
    found: Schema = definitions[str(reference["$ref"]).rpartition("/")[2]]
    return found


def _one_or_several() -> Schema:
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _allow_off(definition: Schema) -> None:
    """Let groups of settings that are off unless given be false, as recipes may say."""
    for field in definition.get("properties", {}).values():
        options = field.get("anyOf", [])
        if any("$ref" in option for option in options) and {"type": "null"} in options:
            field["anyOf"] = [option for option in options if option != {"type": "null"}] + [{"const": False}]


def _source(at: Mapping[Any, Schema], kinds: Mapping[str, type[Artifact]]) -> Schema:
    """Return what a source may be: one kind, its address, and the options of that kind."""
    return {
        "type": "object",
        "anyOf": [
            _of_records(word, kind, at[RecordOptions])
            if issubclass(kind, Records)
            else {
                "required": [word],
                "properties": {
                    word: {"type": "string", "description": _first_line(kind.__doc__)},
                    **(at[PolicyOptions]["properties"] if word == "policy" else {}),
                },
            }
            for word, kind in kinds.items()
        ],
    }


def _of_records(word: str, kind: type[Records], options: Schema) -> Schema:
    formats = {"enum": [shape.name for shape in SHAPES.get(kind.__name__, ())]}
    described = options["properties"]["format"].get("description", "")
    address = _one_or_several() | {"description": _first_line(kind.__doc__)}
    return {
        "required": [word],
        "properties": {word: address, **options["properties"], "format": {**formats, "description": described}},
        "additionalProperties": False,
    }


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
