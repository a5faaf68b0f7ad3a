"""A recipe: read from TOML, with overrides, and a line for every problem."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignkit.contract.method import NAME
from alignkit.errors import AlignkitError, DataError, PluginError, RecipeError, near_miss

KEYS = ("name", "seed", "requires", "defaults", "sources", "stage", "result")
LARGEST = 256 * 1024
"""Bytes of a recipe; more is a mistake or an attack."""
DEEPEST = 16
"""Parts of a dotted key: tomllib takes quadratic time in them."""

Path_ = tuple[str, ...]
"""A place inside a recipe, such as ("stage", "align", "ppo", "kl")."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe says, checked for its shape only."""

    name: str
    path: Path
    text: str
    seed: int
    sources: Mapping[str, Mapping[str, Any]]
    stages: Mapping[str, Mapping[str, Any]]
    """In the order of the file, which is the order of the run."""
    defaults: Mapping[str, Any]
    result: tuple[str, ...]
    requires: tuple[str, ...]
    overrides: Mapping[Path_, Any]
    errors: tuple[RecipeError, ...] = ()
    """What is wrong with its shape, to be told together with what else is wrong."""

    def where(self, *path: str) -> str:
        """Say where something stands: the override that gave it, else the file with the line."""
        for override in self.overrides:
            if override[: len(path)] == path or path[: len(override)] == override:
                return "--set " + ".".join(override[1:] if override[0] in ("stage", "sources") else override)
        line = _line(self.text, path)
        return f"{self.path.name}:{line}" if line else self.path.name


def combine(errors: Sequence[AlignkitError]) -> AlignkitError:
    """Make one error of many; its kind, and so the exit status, is that of the gravest."""
    for kind in (RecipeError, PluginError, DataError):
        if any(isinstance(error, kind) for error in errors):
            return kind.of([problem for error in errors for problem in error.problems])
    return errors[0]


def find_recipe(name: str | Path) -> Path:
    """Give the path of a recipe: a file, else the packaged recipe of that name. Raises RecipeError."""
    path = Path(name)
    if path.is_file():
        return path.resolve()
    packaged = packaged_recipes()
    if found := packaged.get(path.name.removesuffix(".toml")):
        return found
    if path.is_dir():
        raise RecipeError("this is a folder, not a recipe", str(path), "give the .toml file")
    known = ", ".join(sorted(packaged))
    remedy = near_miss(path.name.removesuffix(".toml"), list(packaged)) or f"the packaged recipes are {known}"
    raise RecipeError("there is no such recipe", str(path), remedy)


def packaged_recipes() -> dict[str, Path]:
    """Give the recipes that come with alignkit, by name."""
    package = Path(__file__).parent.parent
    folder = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_recipe(path: Path, overrides: Mapping[str, Any] | None = None, seed: int | None = None) -> Recipe:
    """Read a recipe and lay the overrides over it (`stage.key` or `source.key` -> value).

    Raises RecipeError where it cannot be read at all; lesser mistakes are in `errors`.
    """
    text = _text(path)
    table = _parse(path, text)
    placed = _place_overrides(table, overrides or {})
    for where, value in placed.items():
        _lay(table, where, value)
    if seed is not None:
        table["seed"] = seed
    return _shape(path, text, table, placed)


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if len(raw) > LARGEST:
        raise RecipeError(f"the recipe has {len(raw)} bytes, more than {LARGEST}", str(path), "is it a recipe?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RecipeError("the recipe is not UTF-8", f"{path.name}:{line}", "save it as UTF-8") from error
    for number, content in enumerate(text.splitlines(), start=1):
        if content.partition("=")[0].count(".") > DEEPEST:
            raise RecipeError(f"a key has more than {DEEPEST} parts", f"{path.name}:{number}", "shorten it")
    return text.replace("\r\n", "\n")


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        column = f":{found[2]}" if found else ""
        problem = re.sub(r" \(at .*\)$", "", str(error))
        raise RecipeError(f"not TOML ({problem})", f"{path.name}:{line}{column}", _toml_advice(text, line)) from error
    except (RecursionError, ValueError) as error:
        raise RecipeError("not TOML that can be read (nested too deeply, or a number too long)", path.name) from error


def _toml_advice(text: str, line: int) -> str:
    """Explain the mistake that TOML's own message leaves unclear: a line break inside `{ }`."""
    for start in (line, line - 1):
        if 0 < start <= text.count("\n") + 1:
            content = re.sub(r'"[^"]*"|#.*', "", text.splitlines()[start - 1]) if text else ""
            if content.count("{") > content.count("}"):
                return "a table in { } must stand on one line; use a [table] of its own for more lines"
    return "correct the line"


def _line(text: str, path: Path_) -> int | None:
    """Find the line of a key, or of the nearest table around it."""
    best, best_line = 0, None
    table: Path_ = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[?([^\]]+)\]", line):
            here = table = tuple(_keys(header[1]))
        elif key := re.match(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""", line):
            here = table + tuple(_keys(key[1]))
        else:
            continue
        shared = next(
            (i for i, (a, b) in enumerate(zip(here, path, strict=False)) if a != b), min(len(here), len(path))
        )
        if shared > best and (shared == len(here) or shared == len(path)):
            best, best_line = shared, number
    return best_line


def _keys(dotted: str) -> Iterator[str]:
    for bare, double, single in re.findall(r"""([\w-]+)|"([^"]*)"|'([^']*)'""", dotted):
        yield bare or double or single


def _place_overrides(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[Path_, Any]:
    stages, sources = table.get("stage", {}), table.get("sources", {})
    placed: dict[Path_, Any] = {}
    for key, value in overrides.items():
        parts = tuple(key.split("."))
        if parts[0] in stages:
            placed["stage", *parts] = value
        elif parts[0] in sources:
            placed["sources", *parts] = value
        elif parts[0] in ("defaults", "seed", "name", "result", "requires"):
            placed[parts] = value
        else:
            known = [*stages, *sources, "defaults", "seed", "result"]
            raise RecipeError(
                f"the recipe has no stage or source {parts[0]!r}",
                f"--set {key}",
                near_miss(parts[0], known) or f"it has {', '.join(known)}",
            )
    return placed


def _lay(table: dict[str, Any], path: Path_, value: Any) -> None:
    for key in path[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{key!r} is a value, not a table", f"--set {'.'.join(path)}", "shorten the path")
        table = inner
    table[path[-1]] = _toml_value(value) if isinstance(value, str) else value


def _toml_value(text: str) -> Any:
    """Read a value as TOML where it is, else take it as a string."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, ValueError, RecursionError):
        return text
    return value


def _shape(path: Path, text: str, table: dict[str, Any], placed: Mapping[Path_, Any]) -> Recipe:
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
    )
    return replace(recipe, errors=tuple(_shape_errors(recipe, table)))


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
    seed = table.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        yield RecipeError("seed must be a whole number, zero or more", recipe.where("seed"), "write seed = 17")
    for key in ("result", "requires"):
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
            if not NAME.fullmatch(name):
                yield RecipeError(f"{noun} {name!r}: the name must match {NAME.pattern}", where, "rename it")
            if not isinstance(value, dict):
                yield RecipeError(f"{noun} {name!r} must be a table", where, f"write [{key}.{name}]")
    for name in recipe.stages:
        if name in recipe.sources:
            yield RecipeError(f"{name!r} names a stage and a source", recipe.where("stage", name), "rename one of them")
