"""Methods in words: what is offered, by whom, and each method's settings as its documentation."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import JsonValue
from pydantic.fields import FieldInfo

from alignkit.contract.judges import JudgeFunction, JudgeScheme
from alignkit.contract.method import Input, Method
from alignkit.contract.reward_function import RewardFunction
from alignkit.contract.settings import SHARED, Settings, described
from alignkit.plan.presets import PRESET
from alignkit.plugins import CLASH_REMEDY, Plugins
from alignkit.text import table

BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
SIMPLE: Mapping[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    Any: "any value",
    JsonValue: "any values",
}


@dataclass(frozen=True)
class Setting:
    """One line of a settings table. `key` is what a recipe and `--set` say."""

    key: str
    type: str
    default: str
    """As TOML would have it; `-` is none, and the empty string means that it must be given."""
    summary: str


@dataclass(frozen=True)
class Scorer:
    """A reward function, a rule or a scheme of judges, with the address that a source gives."""

    address: str
    origin: str
    summary: str

    settings: tuple[Setting, ...]
    """What the source may say, each under the key that it has there."""


def scorers(plugins: Plugins) -> list[Scorer]:
    """Return all that scores or compares, rewards first."""
    offered: list[tuple[str, str, str, Mapping[str, RewardFunction | JudgeFunction | JudgeScheme]]] = [
        ("reward", 'reward = "function:{}"', "settings.", plugins.rewards),
        ("judge", 'judge = "rule:{}"', "settings.", plugins.judges),
        ("scheme", 'judge = "{}:..."', "", plugins.schemes),
    ]
    return [
        Scorer(
            address.format(name),
            str(plugins.origins[f"{key}:{name}"]),
            one.summary,
            tuple(settings_in(one.settings, below)),
        )
        for key, address, below, those in offered
        for name, one in sorted(those.items())
    ]


def trackers_of(plugins: Plugins) -> list[tuple[str, str, str]]:
    """Return the name, the package and the summary of each tracker."""
    offered = sorted(plugins.trackers.items())
    return [(name, str(plugins.origins[f"tracker:{name}"]), one.summary) for name, one in offered]


def find_scorer(plugins: Plugins, name: str) -> Scorer | None:
    """Find a reward or a judge by its address (`function:NAME`, `rule:NAME`, `SCHEME:`) or its name."""
    found = {scorer.address.partition('"')[2].rstrip('".'): scorer for scorer in reversed(scorers(plugins))}
    by_name = {address.rstrip(":").rpartition(":")[2]: scorer for address, scorer in found.items()}
    return found.get(name) or by_name.get(name)


def describe_scorer(scorer: Scorer, width: int | None) -> list[str]:
    """Return the lines of `alignkit methods NAME` for a reward or a judge."""
    settings = [(s.key, s.default, s.type, s.summary) for s in scorer.settings]
    return [
        *table([(scorer.address, scorer.summary)], width),
        *table([("from", scorer.origin)], width),
        "",
        *(table(settings, width, ("key of the source", "default", "type", "")) or ["It has no settings."]),
    ]


def list_methods(plugins: Plugins, width: int | None) -> list[str]:
    """Return the lines of `alignkit methods`: what there is by kind, clashes, and what is wrong with plugins."""
    rows = [(m.name, signature(m), _origin(plugins, m), m.summary) for _, m in sorted(plugins.methods.items())]
    lines = table(rows, width, ("method", "takes -> makes", "from", "what it does"))
    if others := [(s.address, s.origin, s.summary) for s in scorers(plugins)]:
        lines += ["", *table(others, width, ("reward or judge", "from", "what it does"))]
    if trackers := trackers_of(plugins):
        lines += ["", *table(trackers, width, ("tracker", "from", "what it does"))]
    return lines + [line for text in _complaints(plugins) for line in ["", *table([("!", text)], width)]]


def find_method(plugins: Plugins, name: str) -> Method:
    """Return the method of that name or address, where one or more packages offer it.

    Raise what `Plugins.lacks` makes.
    """
    if isinstance(found := plugins.addressed.get(f"method:{name}"), Method):
        return found
    if name not in plugins.methods:
        raise plugins.lacks("method", name, [*plugins.methods, *plugins.rewards, *plugins.judges, *plugins.schemes])
    return plugins.methods[name]


def signature(method: Method) -> str:
    """Return what a method takes and makes: `policy + rewards (several) + prompts -> Policy`."""
    return f"{' + '.join(map(_role, method.consumes.values())) or 'nothing'} -> {method.produces.__name__}"


def _role(given: Input) -> str:
    role = f"{given.role}..." if given.several else given.role
    return f"[{role}]" if given.optional else role


def _origin(plugins: Plugins, method: Method) -> str:
    clash = plugins.clashes.get(f"method:{method.name}")
    if clash and not method.package:
        return " and ".join(map(str, clash))
    return str(plugins.origins[f"method:{method.address}"])


BY = {"method": 'method = "{}"', "reward": 'reward = "function:{}"', "judge": 'judge = "rule:{}"'}
"""How a recipe says whose it means."""


def _complaints(plugins: Plugins) -> Iterator[str]:
    for key, origins in plugins.clashes.items():
        kind, _, name = key.partition(":")
        yield f"clash: {kind} {name!r} is offered by {' and by '.join(map(str, origins))}; {CLASH_REMEDY}"
    for key, origins in plugins.shadowed.items():
        kind, _, name = key.partition(":")
        for origin in origins:
            how = f"; a recipe gets it by {BY[kind].format(f'{origin.word}:{name}')}" if kind in BY else ""
            yield f"not taken: the {kind} {name!r} of {origin}, since alignkit has one of that name{how}"
    for broken in plugins.broken:
        yield f"broken: {broken.origin} cannot be loaded: {broken.reason}"
    for origin in plugins.heavy:
        yield (
            f"slow: {origin} imports torch when it is loaded, so every command waits for it; "
            "tell its authors to import torch inside the functions that need it"
        )


def describe_method(plugins: Plugins, method: Method, width: int | None) -> list[str]:
    """Return the lines of `alignkit methods NAME`: what it takes and makes, who offers it, and its settings."""
    takes = [(f"  {given.role}", given.words, _how(given)) for given in method.consumes.values()]
    settings = [(s.key, s.default, s.type, s.summary) for s in settings_of(method)]
    return [
        *table([(method.name, method.summary)], width),
        *table([("from", _origin(plugins, method))], width),
        "",
        f"takes{'' if takes else ' nothing'}",
        *table(takes, width),
        *table([("makes", method.produces.__name__)], width),
        *_papers(method, width),
        "",
        *(table(settings, width, ("setting", "default", "type", "")) or ["It has no settings."]),
        *_where_shared(method, width),
    ]


def _papers(method: Method, width: int | None) -> list[str]:
    rows = [(f"  {paper.name}", f"{paper.title} ({paper.source})") for paper in method.papers]
    return ["papers (their settings: alignkit methods --papers)", *table(rows, width)] if rows else []


def _how(given: Input) -> str:
    if given.several:
        return "several, or none" if given.optional else "one or several"
    return "only if the recipe names it" if given.optional else ""


def _where_shared(method: Method, width: int | None) -> list[str]:
    shared = [name for name in SHARED if name in method.settings.model_fields]
    if not shared:
        return []
    text = f"{', '.join(shared)} may also stand on the stage itself or in [defaults], and so survive a change of method"
    if "lora" in shared:
        text += "; lora = false switches off what [defaults] gives"
    return ["", *table([("note", text)], width)]


def as_dict(plugins: Plugins, method: Method) -> dict[str, Any]:
    """Return one method, its inputs and its settings as plain JSON values."""
    return {
        "name": method.name,
        "summary": method.summary,
        "from": _origin(plugins, method),
        "takes": {
            role: {"kinds": [k.__name__ for k in given.kinds], "several": given.several, "optional": given.optional}
            for role, given in method.consumes.items()
        },
        "makes": method.produces.__name__,
        "papers": [asdict(paper) for paper in method.papers],
        "settings": [asdict(setting) for setting in settings_of(method)],
    }


def all_as_dict(plugins: Plugins) -> dict[str, Any]:
    """Return all methods, and what is wrong with plugins, as plain JSON values."""
    return {
        "methods": [as_dict(plugins, method) for _, method in sorted(plugins.methods.items())],
        "rewards and judges": [asdict(one) for one in scorers(plugins)],
        "trackers": [dict(zip(("name", "from", "summary"), one, strict=True)) for one in trackers_of(plugins)],
        "clashes": {key: list(map(str, origins)) for key, origins in plugins.clashes.items()},
        "not taken": {key: list(map(str, origins)) for key, origins in plugins.shadowed.items()},
        "broken": {str(broken.origin): broken.reason for broken in plugins.broken},
        "slow": list(map(str, plugins.heavy)),
    }


def settings_of(method: Method) -> tuple[Setting, ...]:
    """Return a method's settings, groups flattened: `ppo.kl.coef`; where it has presets, they come first."""
    told = f"Settings of a paper, by its name: {', '.join(method.presets)}. What is said besides wins."
    preset = [Setting(f"{method.name}.{PRESET}", "name of a paper", "-", told)] if method.presets else []
    return (*preset, *settings_in(method.settings, f"{method.name}."))


def settings_in(kind: type[Settings], prefix: str, instead: Settings | None = None) -> Iterator[Setting]:
    """Yield the settings of a class, their keys behind a prefix, with the defaults that `instead` has where a group is
    given other ones."""
    for name, field in described(kind).model_fields.items():
        key = f"{prefix}{name}"
        group = _group(field.annotation)
        if group is None:
            default = _default(field) if instead is None else in_toml(getattr(instead, name))
            yield Setting(key, _words(field.annotation, field.metadata), default, _prose(field))
            continue
        if types.NoneType in get_args(field.annotation):
            yield Setting(key, "group of settings or false", "-", _prose(field) or "Off unless it is given.")
        given = field.default if instead is None else getattr(instead, name)
        yield from settings_in(group, f"{key}.", given if isinstance(given, Settings) else None)


def _group(annotation: Any) -> type[Settings] | None:
    """Return the settings class that a field holds, alone or optionally."""
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not types.NoneType]
    alone = kinds[0] if len(kinds) == 1 else None
    return alone if isinstance(alone, type) and issubclass(alone, Settings) else None


def _prose(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    return "" if field.is_required() else in_toml(field.get_default(call_default_factory=True, validated_data={}))


def in_toml(value: object) -> str:
    """Write a value as a recipe would; `-` where it is none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return f'"{value}"'
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{value:g}".replace("e-0", "e-")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    if isinstance(value, Settings):
        return in_toml(value.model_dump())
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {in_toml(item)}' for key, item in value.items())} }}" if value else "{}"
    return str(value)


def _words(annotation: Any, metadata: object = ()) -> str:
    """Return what values a type allows: `whole number > 0`, `"linear" or "cosine"`, `list of text`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(args[0], args[1:])
    if origin is Literal:
        return _either([in_toml(value) for value in args])
    if origin in (Union, types.UnionType):
        return _either([_words(arg, metadata) for arg in args if arg is not types.NoneType])
    if origin in (list, tuple, set, frozenset):
        return f"list of {_words(args[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"table of {_words(args[1])}"
    name = SIMPLE.get(annotation) or ("table" if _group(annotation) else str(getattr(annotation, "__name__", "value")))
    return " and ".join([f"{name} {bounds[0]}", *bounds[1:]]) if (bounds := _bounds(metadata)) else name


def _bounds(metadata: Any) -> list[str]:
    return [
        f"{sign} {getattr(bound, key):g}"
        for key, sign in BOUNDS
        for bound in metadata
        if getattr(bound, key, None) is not None
    ]


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
