"""Sources: the artifacts that a recipe starts from, by their addresses."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from alignkit.contract.files import FORMATS, format_of
from alignkit.contract.kinds import (
    SOURCE_KINDS,
    Artifact,
    FunctionReward,
    Judge,
    Policy,
    Records,
    Reward,
    RewardModel,
)
from alignkit.contract.plugins import Plugins
from alignkit.contract.records import SLICE, Part, placed_rows
from alignkit.contract.settings import Settings
from alignkit.errors import AlignkitError, DataError, PluginError, RecipeError, near_miss
from alignkit.plan.check import Find, read_settings
from alignkit.plan.fingerprint import FileHashes, code_identity, digest
from alignkit.plan.folders import adapter_base, model_files
from alignkit.plan.recipe import Recipe, packaged_recipes
from alignkit.plan.toml import Keys

BUILT_IN = {"policy": "tiny"} | dict.fromkeys(("text", "demonstrations", "preferences", "prompts"), "reviews")
SCHEMES = ("builtin:", "hf:", "function:")
PEEK = 20
"""Rows that the planner reads of each file, to find a wrong column at once."""
LARGEST_JSON = 16 * 1024 * 1024
"""Bytes of a .json file that the planner still reads."""


class RecordOptions(Settings):
    """How the rows of a source are read."""

    columns: Mapping[str, str] = {}
    """Our name of a column -> the name it has in the source."""
    split: str | None = None
    """A split of a hub data set, with a slice where wanted: `train[:2000]`. Files: a slice such as `[:2000]`."""
    config: str | None = None
    """The configuration of a hub data set that has several."""
    rows: PositiveInt | None = None
    """Take so many rows from the start."""
    keep: tuple[str, ...] = ()
    """Further columns that stay with the row, for reward functions."""
    held_out: float | str = Field(default=0.05)
    """Share of the prompts that are kept aside to measure on; or a file, or a hub split, of its own."""


class PolicyOptions(Settings):
    load: Literal["4bit", "8bit"] | None = None
    """Quantise the frozen weights while loading (needs bitsandbytes and a GPU)."""


class RewardOptions(Settings):
    weight: float = 1.0
    """Its share where several rewards are added up; below zero it is a penalty."""
    label: str | None = None
    """The class of a text classifier whose logit is the score."""
    settings: Mapping[str, Any] = {}
    """Settings of a reward function."""


class JudgeOptions(Settings):
    url: str | None = None
    """Where an endpoint answers."""
    key_env: str | None = None
    """The environment variable that holds its key; a key itself never stands in a recipe."""


Options = RecordOptions | PolicyOptions | RewardOptions | JudgeOptions
How = Literal["files", "folder", "gguf", "builtin", "hub", "function", "judge"]


@dataclass(frozen=True)
class Source:
    """One source, resolved as far as that goes without fetching anything."""

    name: str
    kind: type[Artifact]
    word: str
    """The kind's word in the recipe, such as `demonstrations`."""
    address: str
    how: How
    options: Options
    fingerprint: str | None
    """None where the commit of a hub source is not known yet."""
    files: tuple[Path, ...] = ()
    held_out_files: tuple[Path, ...] = ()
    repository: str = ""
    """The hub's name of it."""
    commit: str = ""

    @property
    def fetched(self) -> bool:
        """It must be put on this machine before a stage can start from it."""
        return self.how in ("builtin", "hub", "gguf")

    def artifact(self, place: Path | None = None) -> Artifact:
        """Make the typed input of it; `place` is the folder where a fetched source lies."""
        path = place or (self.files[0] if self.files else Path())
        facts = {"name": self.name, "fingerprint": self.fingerprint or "", "path": path, **self._facts(path)}
        return self.kind.model_validate(facts)

    def _facts(self, path: Path) -> dict[str, Any]:
        if isinstance(self.options, RecordOptions):
            return {"parts": tuple(self._parts(self.options, path))}
        if isinstance(self.options, PolicyOptions):
            return {"load": self.options.load}
        if isinstance(self.options, JudgeOptions):
            return {"address": self.address, "options": self.options.model_dump(exclude_none=True)}
        if self.kind is FunctionReward:
            function = self.address.partition(":")[2]
            return {"weight": self.options.weight, "function": function, "settings": self.options.settings}
        return {"weight": self.options.weight, "label": self.options.label}

    def _parts(self, options: RecordOptions, place: Path) -> Iterator[Part]:
        """Say which files are read how: one part, or two where the held-out rows have an address of their own."""
        whole = Part(
            name=self.name,
            paths=self.files or (place,),
            hub=f"{self.repository}:{options.config or ''}" if self.how == "hub" else None,
            columns=options.columns,
            split=options.split,
            rows=options.rows,
            keep=options.keep,
            held_out=0.0 if isinstance(options.held_out, str) else options.held_out,
        )
        if self.how == "builtin":
            for side in ("train", "held_out"):
                yield whole.model_copy(update={"paths": (place / f"{self.word}-{side}.jsonl",), "side": side})
        elif isinstance(options.held_out, str):
            yield whole.model_copy(update={"side": "train"})
            aside = {"split": options.held_out} if whole.hub else {"split": None, "paths": self.held_out_files}
            yield whole.model_copy(update=aside | {"side": "held_out", "rows": None})
        else:
            yield whole


def read_sources(
    recipe: Recipe, plugins: Plugins, hashes: FileHashes, lock: Mapping[str, str]
) -> tuple[dict[str, Source], list[AlignkitError]]:
    """Resolve all sources of a recipe; give those that are right, and what is wrong with the others."""
    sources: dict[str, Source] = {}
    errors: list[AlignkitError] = []
    for name, table in recipe.sources.items():
        try:
            sources[name] = _read_source(recipe, name, table, plugins, hashes, lock)
        except AlignkitError as error:
            errors.append(error)
    return sources, errors


def _read_source(
    recipe: Recipe, name: str, table: Mapping[str, Any], plugins: Plugins, hashes: FileHashes, lock: Mapping[str, str]
) -> Source:
    word = _kind_word(recipe, name, table)
    kind = SOURCE_KINDS[word]
    options_class = _options_of(kind)
    given = {key: value for key, value in table.items() if key != word}
    options = read_settings(options_class, given, _find(recipe, name), recipe.typed("sources", name))
    address = _address(recipe, name, word, table[word])
    where = recipe.where("sources", name, word)
    if isinstance(options, RecordOptions):
        _check_columns(recipe, name, kind, options)
    _check_fitting(recipe, name, address, options)
    resolver = _Resolver(recipe, name, word, kind, options, plugins, hashes, lock, where)
    try:
        return resolver.resolve(address)
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"source {name!r}: the address cannot be read ({reason})", where, "correct it") from error


def _find(recipe: Recipe, name: str, *table: str) -> Find:
    def find(keys: Keys) -> tuple[str, str]:
        return recipe.where("sources", name, *table, *keys), f"source {name!r}: {'.'.join([*table, *keys])}"

    return find


def _kind_word(recipe: Recipe, name: str, table: Mapping[str, Any]) -> str:
    words = [key for key in table if key in SOURCE_KINDS]
    if len(words) == 1:
        return words[0]
    where = recipe.where("sources", name)
    if words:
        raise RecipeError(f"source {name!r} has two kinds, {' and '.join(words)}", where, "make two sources of it")
    known = list(SOURCE_KINDS)
    hint = next((h for key in table if (h := near_miss(key, known))), f"the kinds are {', '.join(known)}")
    raise RecipeError(f"source {name!r} says no kind (it has {', '.join(table) or 'nothing'})", where, hint)


def _options_of(kind: type[Artifact]) -> type[Options]:
    if issubclass(kind, Records):
        return RecordOptions
    return PolicyOptions if kind is Policy else JudgeOptions if kind is Judge else RewardOptions


def _address(recipe: Recipe, name: str, word: str, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str) and value:
        return value
    fine = isinstance(value, list) and value and all(isinstance(item, str) and item for item in value)
    if fine and issubclass(SOURCE_KINDS[word], Records):
        if any(item.startswith(("hf:", "builtin:")) for item in value):
            where = recipe.where("sources", name, word)
            raise RecipeError(
                f"source {name!r}: a list of addresses may hold files only",
                where,
                "make a source of each and list their names under inputs",
            )
        return tuple(value)
    raise RecipeError(
        f"source {name!r}: {word} must be an address", recipe.where("sources", name, word), f'write {word} = "..."'
    )


def _check_columns(recipe: Recipe, name: str, kind: type[Artifact], options: RecordOptions) -> None:
    assert issubclass(kind, Records)
    known = sorted({column for columns in kind.columns for column in columns})
    for ours in options.columns:
        if ours not in known:
            hint = near_miss(ours, known) or f"{kind.__name__.lower()} have {', '.join(known)}"
            where = recipe.where("sources", name, "columns", ours)
            raise RecipeError(f"source {name!r}: columns.{ours}: unknown column", where, hint)
    if not isinstance(options.held_out, str) and not 0 <= options.held_out < 1:
        where = recipe.where("sources", name, "held_out")
        raise RecipeError(f"source {name!r}: held_out must be a share from 0 to below 1", where, "0.05 is usual")


def _check_fitting(recipe: Recipe, name: str, address: str | tuple[str, ...], options: Options) -> None:
    """Refuse options that do nothing with an address of this form."""
    scheme = address.partition(":")[0] if isinstance(address, str) else "files"
    given = options.model_dump(exclude_unset=True)
    for key, fits, advice in (
        ("config", scheme == "hf", "only data sets of the hub have configurations"),
        ("label", scheme != "function", "only text classifiers have labels"),
        ("settings", scheme == "function", "only reward functions have settings"),
        ("held_out", scheme != "builtin", "built-in sources have held-out rows of their own"),
        (
            "split",
            scheme == "hf" or str(given.get("split")).startswith("["),
            'of files write a slice, such as "[:2000]"',
        ),
    ):
        if key in given and given[key] is not None and not fits:
            where = recipe.where("sources", name, key)
            raise RecipeError(f"source {name!r}: {key} does not fit the address {address!r}", where, advice)
    for key in ("split", "held_out") if scheme == "hf" else ("split",):
        if isinstance(given.get(key), str) and not re.fullmatch(SLICE, given[key]):
            where = recipe.where("sources", name, key)
            raise RecipeError(f"source {name!r}: {key}: {given[key]!r} is no split", where, 'write "train[:500]"')
    if isinstance(options, JudgeOptions) and not re.fullmatch(r"[A-Z_a-z][A-Z_a-z0-9]{0,60}", options.key_env or "KEY"):
        problem = f"source {name!r}: key_env must be the name of an environment variable"
        raise RecipeError(problem, recipe.where("sources", name, "key_env"), "a key itself never stands in a recipe")


@dataclass(frozen=True)
class _Resolver:
    """What is known of a source while its address is followed."""

    recipe: Recipe
    name: str
    word: str
    kind: type[Artifact]
    options: Any
    plugins: Plugins
    hashes: FileHashes
    lock: Mapping[str, str]
    where: str

    def resolve(self, address: str | tuple[str, ...]) -> Source:
        if isinstance(address, tuple):
            return self._files(address)
        scheme, colon, rest = address.partition(":")
        if scheme == "builtin" and colon:
            return self._builtin(address, rest)
        if scheme == "hf" and colon:
            return self._hub(address, rest)
        if self.kind is Reward and scheme == "function" and colon:
            return self._function(address, rest)
        if colon and (close := near_miss(f"{scheme}:", SCHEMES)):
            raise RecipeError(f"source {self.name!r}: no address begins with '{scheme}:'", self.where, close)
        if self.kind is Judge:
            return self._made(address, "judge", ["judge", address, self._options()])
        if self.kind is Reward:
            return self._folder(address)
        return self._folder(address) if self.kind is Policy else self._files((address,))

    def _made(self, address: str, how: How, facts: list[Any] | None, **more: Any) -> Source:
        kind = {"function": FunctionReward}.get(how, RewardModel if self.kind is Reward else self.kind)
        fingerprint = digest([kind.__name__, *facts]) if facts is not None else None
        return Source(self.name, kind, self.word, address, how, self.options, fingerprint, **more)

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = self.options.model_dump(mode="json", exclude={"held_out"} & self._own_held_out())
        return options

    def _own_held_out(self) -> set[str]:
        own = isinstance(self.options, RecordOptions) and isinstance(self.options.held_out, str)
        return {"held_out"} if own else set()

    def _builtin(self, address: str, rest: str) -> Source:
        if BUILT_IN.get(self.word) != rest:
            known = BUILT_IN.get(self.word)
            hint = f'the built-in {self.word} is "builtin:{known}"' if known else f"no {self.word} is built in"
            raise RecipeError(f"source {self.name!r}: nothing built in is called {rest!r}", self.where, hint)
        from alignkit.demo.reviews import VERSION

        return self._made(address, "builtin", ["builtin", rest, VERSION, self._options()])

    def _hub(self, address: str, rest: str) -> Source:
        repository, _, revision = rest.partition("@")
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repository, re.ASCII):
            raise RecipeError(
                f"source {self.name!r}: {rest!r} is no name on the hub", self.where, "write hf:OWNER/NAME"
            )
        commit = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else self.lock.get(address, "")
        held = getattr(self.options, "held_out", None) if self._own_held_out() else None
        facts = ["hub", repository, commit, held, self._options()] if commit else None
        return self._made(address, "hub", facts, repository=repository, commit=commit)

    def _function(self, address: str, rest: str) -> Source:
        if clash := self.plugins.clashes.get(f"reward:{rest}"):
            raise PluginError(
                f"source {self.name!r}: reward function {rest!r} is offered by {' and by '.join(map(str, clash))}",
                self.where,
                "uninstall one of them, or name the ones to load in ALIGNKIT_PLUGINS",
            )
        if rest not in self.plugins.rewards:
            raise self.plugins.lacks(
                "reward function", rest, list(self.plugins.rewards), f"source {self.name!r}: ", self.where
            )
        offered = self.plugins.rewards[rest]
        find, typed = _find(self.recipe, self.name, "settings"), self.recipe.typed("sources", self.name, "settings")
        settings = read_settings(offered.settings, self.options.settings, find, typed)
        code = code_identity(self.plugins.origins[f"reward:{rest}"], offered.score.__module__)
        facts = ["function", rest, offered.version, code, self.options.weight, settings.model_dump(mode="json")]
        return self._made(address, "function", facts)

    def _base(self, key: str) -> Path:
        """Say where paths begin: those of the command line in the current folder, the recipe's in the recipe's."""
        given = {("sources", self.name), ("sources", self.name, key)} & set(self.recipe.overrides)
        return Path.cwd() if given else self.recipe.path.parent

    def _folder(self, address: str) -> Source:
        path = (self._base(self.word) / Path(address).expanduser()).resolve()
        if not path.exists():
            raise DataError(f"source {self.name!r}: there is no {address!r}", self.where, _sibling(path))
        if path.is_file() and path.suffix == ".gguf" and self.kind is Policy:
            return self._made(address, "gguf", ["gguf", self.hashes.of(path), self._options()], files=(path,))
        if path.is_file():
            remedy = "give the model's folder, or a .gguf file" if self.kind is Policy else "give the model's folder"
            raise DataError(f"source {self.name!r}: {address!r} is a file", self.where, remedy)
        named = f"source {self.name!r}"
        content = [[file.name, self.hashes.of(file)] for file in model_files(path, named, self.where)]
        base = adapter_base(path, named, self.where)
        below = [[file.name, self.hashes.of(file)] for file in model_files(base, named, self.where)] if base else []
        return self._made(address, "folder", ["folder", content, below, self._options()], files=(path,))

    def _files(self, addresses: tuple[str, ...]) -> Source:
        held = self.options.held_out
        files = tuple(file for address in addresses for file in self._expand(address, self.word))
        aside = tuple(self._expand(held, "held_out")) if isinstance(held, str) else ()
        content = [[self.hashes.of(file) for file in files], [self.hashes.of(file) for file in aside]]
        facts = ["files", [format_of(file) for file in (*files, *aside)], *content, self._options()]
        source = self._made(", ".join(addresses), "files", facts, files=files, held_out_files=aside)
        _peek(source)
        return source

    def _expand(self, address: str, key: str) -> list[Path]:
        """Find the files of an address: one, those of a folder, or those that match a pattern."""
        inner = Path(address).expanduser()
        path = self._base(key) / inner
        where = self.recipe.where("sources", self.name, key)
        if path.is_file():
            return [path.resolve()]
        if path.is_dir():
            found = [p for p in path.rglob("*") if p.is_file() and format_of(p) and not _hidden(p, path)]
            problem = f"source {self.name!r}: the folder {address!r} holds no file that can be read"
            remedy = f"files end in {', '.join(FORMATS)}, each also with .gz"
        elif any(sign in address for sign in "*?["):
            start = Path(inner.anchor) if inner.is_absolute() else self._base(key)
            found = [p for p in start.glob(str(inner.relative_to(inner.anchor))) if p.is_file()]
            problem, remedy = f"source {self.name!r}: no file matches {address!r}", "check the pattern"
        else:
            found, problem, remedy = [], f"source {self.name!r}: there is no file {address!r}", _sibling(path)
        if not found:
            raise DataError(problem, where, remedy)
        return sorted(p.resolve() for p in found)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _sibling(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return near_miss(path.name, names) or f"it was looked for as {path}"


def _peek(source: Source) -> None:
    """Read the first rows of each file, so that a wrong column is found at once.

    A .json file is read only if it is small, because it is read whole.
    """
    artifact = source.artifact()
    assert isinstance(artifact, Records)
    for part in artifact.parts:
        for number, path in enumerate(part.paths):
            if format_of(path) == ".json" and path.stat().st_size > LARGEST_JSON:
                continue
            limits = {} if number == 0 else {"split": None, "rows": None}
            one = part.model_copy(update={"paths": (path,), **limits})
            for _ in islice(placed_rows(one, type(artifact).__name__, artifact.columns), PEEK):
                pass


def lock_path(recipe: Path, runs: Path) -> Path:
    """Say where a recipe's hub commits are kept: beside it, or under `runs` for a packaged recipe."""
    packaged = recipe in packaged_recipes().values()
    return (runs if packaged else recipe.parent) / f"{recipe.stem}.lock"


def read_lock(path: Path) -> dict[str, str]:
    """Read the commits that hub addresses are pinned to; none where there is no lock file."""
    if not path.is_file():
        return {}
    try:
        lock = json.loads(path.read_text("utf-8"))
        return {str(address): str(commit) for address, commit in lock["hub"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            "the lock file cannot be read", str(path), "delete it; the next run writes it anew"
        ) from error


def write_lock(path: Path, commits: Mapping[str, str]) -> None:
    """Write the commits that hub addresses are pinned to."""
    text = json.dumps({"hub": dict(sorted(commits.items()))}, indent=2) + "\n"
    staged = path.with_suffix(".lock.new")
    staged.write_text(text, "utf-8")
    staged.replace(path)
