"""A recipe: read from TOML, with overrides, and a line for every problem."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from alignkit.contract.names import NAME
from alignkit.errors import AlignkitError, DataError, PluginError, RecipeError, near_miss
from alignkit.recipe.rounds import (
    Repeat,
    Round,
    check_repeats,
    parts_of,
    read_repeats,
    rounds_of,
    unrolled,
    with_parts,
)
from alignkit.recipe.self_checks import TABLES, SelfChecks, read_self_checks
from alignkit.recipe.toml import DEEPEST, Keys, key_lines, parse
from alignkit.store.rundir import RESERVED

OVERRIDABLE = ("defaults", "seed", "name", "result", "requires", "trackers", "repeat")
"""What `--set` may say besides keys of stages and sources."""
KEYS = ("name", "seed", "requires", "trackers", "defaults", "sources", "stage", "repeat", "result", *TABLES)
OWN_NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
"""What a stage or a source may be called."""
SURROGATE = re.compile("[\ud800-\udfff]")
LARGEST = 256 * 1024
"""Bytes of a recipe; more is a mistake or an attack."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe says, checked for its shape only."""

    name: str
    path: Path
    text: str
    seed: int
    sources: Mapping[str, Mapping[str, Any]]
    stages: Mapping[str, Mapping[str, Any]]
    """In the order of the file, which is the order of the run; of those that repeat each round by itself."""
    defaults: Mapping[str, Any]
    result: tuple[str, ...]
    requires: tuple[str, ...]
    overrides: Mapping[Keys, Any]
    repeats: Mapping[str, Repeat] = field(default_factory=dict)
    """By their names; that of `[repeat]` itself is empty."""
    trackers: tuple[str, ...] = ()
    """Where figures go besides the report; no stage's result depends on them."""
    checks: SelfChecks = field(default_factory=SelfChecks)
    """What it says of itself; no stage's result depends on it, and no other process reads it."""
    errors: tuple[RecipeError, ...] = ()
    """What is wrong with its shape, to be told together with what else is wrong."""

    def where(self, *path: str) -> str:
        """Return where something stands: the override that gave it, else the file with the line of it or around it."""
        places = self._places(path)
        given = [o for place in places for o in self.overrides if o == place[: len(o)]]
        if not given and not any(place in self._lines for place in places):
            given = [o for place in places for o in self.overrides if o[: len(place)] == place]
        if given:
            return "--set " + dotted(given[-1])
        around = (place[:size] for size in range(len(path), 0, -1) for place in reversed(places))
        line = next((self._lines[place] for place in around if place in self._lines), None)
        return f"{self.path.name}:{line}" if line else self.path.name

    def typed(self, *path: str) -> dict[Keys, str]:
        """Return the overrides below a place as they were typed, by the rest of their path."""
        size, places = len(path), self._places(path)
        below = ((place, o, v) for place in places for o, v in self.overrides.items() if isinstance(v, str))
        return {o[size:]: v for place, o, v in below if o[:size] == place != o}

    def _places(self, path: Keys) -> list[Keys]:
        """Return where the recipe may say something of a place: of a round first what is said of all rounds."""
        every = self._written.get(path[:2])
        return [(path[0], every, *path[2:]), path] if every else [path]

    @cached_property
    def _written(self) -> Mapping[Keys, str]:
        """The rounds of stages and the parts of sources, each with what the recipe calls all of them."""
        stages: dict[Keys, str] = {("stage", name): one.stage for name, one in self.rounds.items()}
        return stages | {
            ("sources", part): name
            for repeat in self.repeats.values()
            for name in repeat.split
            for part in parts_of(name, repeat)
        }

    @cached_property
    def rounds(self) -> Mapping[str, Round]:
        """The stages that are rounds of another one."""
        return rounds_of(self.repeats)

    @property
    def named_stages(self) -> list[str]:
        """What a stage may be called: by its name, or of one that repeats by what all its rounds are called."""
        return list(dict.fromkeys([*self.stages, *(one.stage for one in self.rounds.values())]))

    def last_round(self, name: str) -> str:
        """Return the stage that a name means: of one that repeats, its last round."""
        return next((last for last, one in self.rounds.items() if one.stage == name and one.number == one.of), name)

    def stage_in_file(self, name: str) -> str:
        """Return what the recipe calls a stage: of a round, the stage that it is a round of."""
        return self.rounds[name].stage if name in self.rounds else name

    @cached_property
    def _lines(self) -> Mapping[Keys, int]:
        return key_lines(self.text)


def dotted(override: Keys) -> str:
    return ".".join(override[1:] if override[0] in ("stage", "sources") else override)


def combine(errors: Sequence[AlignkitError]) -> AlignkitError:
    """Make one error of many; its kind, and so the exit status, is that of the gravest."""
    for kind in (RecipeError, PluginError, DataError):
        if any(isinstance(error, kind) for error in errors):
            problems = [problem for error in errors for problem in error.problems]
            return kind.of(list(dict.fromkeys(problems)))
    return errors[0]


def read_recipe(path: Path, overrides: Mapping[str, Any] | None = None, seed: int | None = None) -> Recipe:
    """Read a recipe and lay the overrides over it (`stage.key` or `source.key` -> value).

    Raises RecipeError where it cannot be read at all; lesser mistakes are in `errors`.
    """
    return recipe_of(path, _text(path), overrides, seed)


def recipe_of(path: Path, text: str, overrides: Mapping[str, Any] | None = None, seed: int | None = None) -> Recipe:
    """Read a recipe of its text, as if it stood at the path, where it may be another by now, or none."""
    table = parse(text, path.name)
    given = dict(overrides or {}) | ({} if seed is None else {"seed": seed})
    placed: dict[Keys, Any] = {}
    errors: list[RecipeError] = []
    for key, value in sorted(given.items(), key=lambda one: one[0].partition(".")[0] != "repeat"):
        try:
            _refuse_no_text(key, value)
            where = _place(table, key)
            _lay(table, where, _toml_value(value) if isinstance(value, str) else value, key)
            placed[where] = value
        except RecipeError as error:
            errors.append(error)
    _refuse_long_numbers(table, path.name)
    return _shape(path, text, table, placed, errors)


def recipe_as_json(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe without errors as `recipe_of_json` reads it, for another process."""
    repeats = {name: repeat.model_dump(mode="json") for name, repeat in recipe.repeats.items()}
    tables = {"sources": recipe.sources, "stages": recipe.stages, "defaults": recipe.defaults, "repeats": repeats}
    words = {"result": recipe.result, "requires": recipe.requires, "trackers": recipe.trackers}
    overrides = [[list(keys), value] for keys, value in recipe.overrides.items()]
    plain = {"name": recipe.name, "path": str(recipe.path.resolve()), "text": recipe.text, "seed": recipe.seed}
    return {**plain, **tables, **words, "overrides": overrides}


def recipe_of_json(facts: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `recipe_as_json` was given, whatever its file holds by now."""
    words = {key: tuple(facts[key]) for key in ("result", "requires", "trackers")}
    overrides = {tuple(keys): value for keys, value in facts["overrides"]}
    repeats = {name: Repeat.model_validate(repeat) for name, repeat in facts["repeats"].items()}
    return Recipe(**{**facts, **words, "path": Path(facts["path"]), "overrides": overrides, "repeats": repeats})


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise RecipeError(f"the recipe cannot be read ({error.strerror})", str(path)) from error
    if len(raw) > LARGEST:
        raise RecipeError(f"the recipe has more than {LARGEST} bytes", str(path), "is it a recipe?")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RecipeError("the recipe is not UTF-8", f"{path.name}:{line}", "save it as UTF-8") from error


def _place(table: Mapping[str, Any], key: str) -> Keys:
    """Return what an override means: a key of a stage, of a source, or of the recipe itself."""
    parts = tuple(key.split("."))
    stages, sources = dict(_items(table.get("stage"))), dict(_items(table.get("sources")))
    if len(parts) > DEEPEST:
        raise RecipeError(f"a key has more than {DEEPEST} parts", f"--set {key[:60]}...", "shorten it")
    repeats, _ = read_repeats(table.get("repeat", {}), lambda *path: "")
    if parts[0] in stages or parts[0] in rounds_of(repeats):
        return ("stage", *parts)
    if parts[0] in sources:
        return ("sources", *parts)
    if parts[0] in OVERRIDABLE:
        return parts
    hint = near_miss(parts[0], [*stages, *sources, *OVERRIDABLE])
    known = f"there are {', '.join([*stages, *sources, *OVERRIDABLE])}"
    raise RecipeError(f"the recipe has no stage or source {parts[0]!r}", f"--set {key}", hint or known)


def _lay(table: dict[str, Any], path: Keys, value: Any, key: str) -> None:
    for name in path[:-1]:
        if table.get(name) is False:  # a group that was switched off
            table[name] = {}
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{name!r} is a value, not a table", f"--set {key}", "shorten the path")
        table = inner
    table[path[-1]] = value


def _refuse_long_numbers(table: Mapping[str, Any], file: str) -> None:
    """Refuse what no setting can mean, and what Python itself refuses to print."""
    if any(isinstance(leaf, int) and abs(leaf) >= 2**63 for leaf in _leaves(table)):
        raise RecipeError("a whole number has more than 64 bits", file, "write a smaller one")


def _refuse_no_text(key: str, value: Any) -> None:
    """Refuse what a command line makes of bytes that are no UTF-8: no file could hold it."""
    if any(isinstance(leaf, str) and SURROGATE.search(leaf) for leaf in _leaves({key: value})):
        shown = key.encode("ascii", "backslashreplace").decode()
        raise RecipeError("a key or value is not UTF-8", f"--set {shown[:60]}", "type it anew")


def _leaves(value: Any) -> Iterator[Any]:
    """Yield all keys and plain values."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        yield from _leaves(inner)
    for inner in value if isinstance(value, list) else ():
        yield from _leaves(inner)
    if not isinstance(value, dict | list):
        yield value


def _toml_value(text: str) -> Any:
    """Read a value as TOML where it is, else take it as a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, ValueError, RecursionError):
        return text


def _shape(
    path: Path, text: str, table: Mapping[str, Any], placed: Mapping[Keys, Any], errors: Sequence[RecipeError]
) -> Recipe:
    tables = {key: table.get(key, {}) for key in ("sources", "stage", "defaults")}
    recipe = Recipe(
        name=table.get("name", path.stem),
        path=path,
        text=text,
        seed=table.get("seed", 0),
        sources={name: t for name, t in _items(tables["sources"]) if isinstance(t, dict)},
        stages={name: t for name, t in _items(tables["stage"]) if isinstance(t, dict)},
        defaults=dict(_items(tables["defaults"])),
        result=_words(table.get("result", ())),
        requires=_words(table.get("requires", ())),
        overrides=placed,
        trackers=_words(table.get("trackers", ())),
    )
    errors = [*errors, *_shape_errors(recipe, table)]
    repeats, wrong = read_repeats(table.get("repeat", {}), recipe.where)
    wrong += check_repeats(repeats, recipe.stages, recipe.sources, recipe.where)
    checks, misread = read_self_checks(table, recipe.where)
    made = recipe if wrong else _repeated(recipe, repeats)
    return replace(made, checks=checks, errors=(*errors, *wrong, *misread))


def _repeated(recipe: Recipe, repeats: Mapping[str, Repeat]) -> Recipe:
    """Return a recipe whose rounds are stages of their own."""
    stages, sources = unrolled(recipe.stages, repeats, recipe.seed), with_parts(recipe.sources, repeats)
    made = replace(recipe, stages=stages, sources=sources, repeats=repeats)
    return replace(made, result=tuple(map(made.last_round, recipe.result)))


def _items(table: Any) -> Iterable[tuple[str, Any]]:
    return table.items() if isinstance(table, dict) else ()


def _words(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(word for word in words if isinstance(word, str))


def _shape_errors(recipe: Recipe, table: Mapping[str, Any]) -> Iterator[RecipeError]:
    for key in table:
        if key not in KEYS:
            hint = near_miss(key, KEYS) or f"the keys of a recipe are {', '.join(KEYS)}"
            yield RecipeError(f"unknown key {key!r}", recipe.where(key), hint)
    if not isinstance(table.get("name", ""), str) or not NAME.fullmatch(recipe.name):
        yield RecipeError(
            "the recipe's name must match [a-z][a-z0-9-]{0,40}", recipe.where("name"), 'write name = "..."'
        )
    if recipe.name in RESERVED:
        yield RecipeError(f"a recipe cannot be called {recipe.name!r}", recipe.where("name"), "give it another name")
    seed = table.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        yield RecipeError("seed must be a whole number, zero or more", recipe.where("seed"), "write seed = 17")
    for key in ("result", "requires", "trackers"):
        value = table.get(key, [])
        if not isinstance(value, list | str) or len(_words(value)) != (1 if isinstance(value, str) else len(value)):
            yield RecipeError(f"{key} must be a list of strings", recipe.where(key), f'write {key} = ["..."]')
    for key in ("sources", "stage", "defaults"):
        if not isinstance(table.get(key, {}), dict):
            yield RecipeError(f"{key!r} must be a table", recipe.where(key), f"write [{key}]")
    yield from _name_errors(recipe, table)
    if not recipe.stages:
        yield RecipeError("the recipe has no stage", recipe.path.name, "add one, such as [stage.finetune]")


def _name_errors(recipe: Recipe, table: Mapping[str, Any]) -> Iterator[RecipeError]:
    for key in ("sources", "stage"):
        inner = table.get(key, {})
        for name, value in inner.items() if isinstance(inner, dict) else ():
            where = recipe.where(key, name)
            noun = key.removesuffix("s")
            if not OWN_NAME.fullmatch(name):
                fitting = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_0123456789")[:40] or "mine"
                problem = f"{noun} {name!r}: the name must match {OWN_NAME.pattern}"
                yield RecipeError(problem, where, f"rename it, to {fitting!r} for example")
            if not isinstance(value, dict):
                yield RecipeError(f"{noun} {name!r} must be a table", where, f"write [{key}.{name}]")
    for name in recipe.stages:
        if name in recipe.sources:
            yield RecipeError(f"{name!r} names a stage and a source", recipe.where("stage", name), "rename one of them")
