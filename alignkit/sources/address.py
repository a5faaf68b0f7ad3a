"""Follow the address of a source: built in, on the hub, a plugin's function, a folder, files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.contract.judges import RULE, JudgeFunction
from alignkit.contract.kinds import (
    Artifact,
    FunctionReward,
    Judge,
    JudgeReward,
    Policy,
    Records,
    Reward,
    RewardModel,
)
from alignkit.contract.settings import Settings
from alignkit.data.files import FORMATS, files_matching, format_of, is_pattern, whole_path
from alignkit.data.hubsets import VERSION as ROWS_VERSION
from alignkit.data.records import SLICE, placed_rows
from alignkit.data.splits import files_of_split, split_called
from alignkit.errors import DataError, PluginError, near_miss
from alignkit.plugins import Plugins
from alignkit.recipe.fingerprint import code_identity, digest
from alignkit.sources.chat_template import KEY, read_chat_template
from alignkit.sources.entry import Entry
from alignkit.sources.model_folder import adapter_bases, model_files
from alignkit.sources.source import BadRows, How, JudgeOptions, PolicyOptions, RecordOptions, Source
from alignkit.store.file_hashes import FileHashes

Address = str | tuple[str, ...]
"""One address, or several of files."""

BUILT_IN = {
    "policy": ("tiny",),
    **dict.fromkeys(("text", "preferences", "ratings"), ("reviews",)),
    **dict.fromkeys(("demonstrations", "prompts"), ("reviews", "sums")),
}
SCHEMES = ("builtin:", "hf:", "function:", "judge:")
PEEK = 20
"""Rows that the planner reads of each file, to find a wrong column at once."""


def judge_of(kind: type[Artifact], address: Address) -> tuple[str, str] | None:
    """Return the scheme and the rest of a judge's address, also where it is a reward; None where it is no judge's."""
    if not isinstance(address, str) or kind not in (Judge, Reward):
        return None
    first, _, inner = address.partition(":")
    if kind is Reward and first != "judge":
        return None
    scheme, colon, rest = (inner if kind is Reward else address).partition(":")
    return (scheme, rest) if colon and scheme not in ("builtin", "hf") else None


@dataclass(frozen=True)
class Resolver:
    """What is known of a source while its address is followed."""

    entry: Entry
    word: str
    """Of its kind."""
    options: Any
    plugins: Plugins
    hashes: FileHashes
    lock: Mapping[str, str]
    as_policy: bool = False
    """It is the policy behind a judge."""

    @property
    def noun(self) -> str:
        """What the address is followed as, in a recipe's words."""
        return "policy" if self.as_policy else self.word

    @property
    def kind(self) -> type[Artifact]:
        return self.plugins.source_kinds[self.noun]

    @property
    def where(self) -> str:
        return self.entry.where(self.word)

    def resolve(self, address: Address) -> Source:
        """Find what lies at the address, without fetching it. Raises RecipeError, DataError or PluginError."""
        if isinstance(address, tuple):
            return self._files(address)
        if isinstance(self.options, JudgeOptions):
            return self._judge(self.options)
        scheme, colon, rest = address.partition(":")
        if scheme == "builtin" and colon:
            return self._builtin(address, rest)
        if scheme == "hf" and colon:
            return self._hub(address, rest)
        if self.kind is Reward and scheme == "function" and colon:
            return self._function(address, rest)
        if colon and (close := near_miss(f"{scheme}:", SCHEMES)):
            raise self.entry.refusal(f"no address begins with '{scheme}:'", close, self.word)
        if self.kind is Judge or (self.kind is Reward and scheme == "judge"):
            inner = address if self.kind is Judge else rest
            raise self.entry.refusal(f"{inner!r} is no judge's address", "write SCHEME:NAME", self.word)
        return self._folder(address) if self.kind in (Policy, Reward) else self._files((address,))

    def _made(self, address: str, how: How, facts: list[Any] | None, **more: Any) -> Source:
        kind = {"function": FunctionReward}.get(how, RewardModel if self.kind is Reward else self.kind)
        fingerprint = digest([kind.__name__, *facts]) if facts is not None else None
        if self._template is not None:
            more["chat_template"] = self._template
        return Source(self.entry.name, kind, self.word, address, how, self.options, fingerprint, **more)

    def _options(self) -> dict[str, Any]:
        """Return the options as they count; an address of held-out rows counts by what lies there, a template, where
        one is given, by what it says."""
        options: dict[str, Any] = self.options.model_dump(mode="json")
        if isinstance(self.options, PolicyOptions):
            del options["chat_template"]
            options |= {} if self._template is None else {"chat_template": self._template}
        if isinstance(self.options, RecordOptions):
            for key in ("part", "flip", "rated"):
                if not options[key]:
                    del options[key]  # as in versions that had none
        if self._aside is not None:
            del options["held_out"]
        return options

    @cached_property
    def _template(self) -> str | None:
        """The chat template that the source gives."""
        given = self.options.chat_template if isinstance(self.options, PolicyOptions) else None
        if given is None:
            return None
        return read_chat_template(self.entry, (self._base(KEY) / Path(given).expanduser()).resolve(), given)

    @property
    def _aside(self) -> str | None:
        """The address of the held-out rows, where they have one of their own."""
        own = isinstance(self.options, RecordOptions) and isinstance(self.options.held_out, str)
        return str(self.options.held_out) if own else None

    def _builtin(self, address: str, rest: str) -> Source:
        known = BUILT_IN.get(self.noun, ())
        if rest not in known:
            listed = " or ".join(f'"builtin:{name}"' for name in known)
            hint = f"the built-in {self.noun} is {listed}" if known else f"no {self.noun} is built in"
            raise self.entry.refusal(f"nothing built in is called {rest!r}", hint, self.word)
        from alignkit.demo import reviews, sums

        version = sums.VERSION if rest == "sums" else reviews.VERSION
        return self._made(address, "builtin", ["builtin", rest, version, self._options()])

    def _hub(self, address: str, rest: str) -> Source:
        repository, _, revision = rest.partition("@")
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repository, re.ASCII):
            raise self.entry.refusal(f"{rest!r} is no name on the hub", "write hf:OWNER/NAME", self.word)
        commit = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else self.lock.get(address, "")
        read = [ROWS_VERSION] if issubclass(self.kind, Records) else []
        facts = ["hub", *read, repository, commit, self._aside, self._options()] if commit else None
        return self._made(address, "hub", facts, repository=repository, commit=commit)

    def _function(self, address: str, rest: str) -> Source:
        named = self.entry.named
        self._refuse_clash(f"reward:{rest}", "reward function", "function:{}")
        if (offered := self.plugins.reward(rest)) is None:
            raise self.plugins.lacks("reward function", rest, list(self.plugins.rewards), f"{named}: ", self.where)
        settings = self.entry.settings(offered.settings, self.options.settings, "settings")
        code = code_identity(self.plugins.origins[f"reward:{rest}"], offered.score.__module__)
        facts = ["function", rest, offered.version, code, self.options.weight, settings.model_dump(mode="json")]
        read = {"settings": settings.model_dump(mode="json", exclude_unset=True)}
        return replace(self._made(address, "function", facts), options=self.options.model_copy(update=read))

    def _refuse_clash(self, key: str, noun: str, address: str) -> None:
        """Refuse a name that two packages offer; `address` is how a source says whose."""
        if clash := self.plugins.clashes.get(key):
            name, by = key.partition(":")[2], " and by ".join(map(str, clash))
            remedy = f'say whose, as in {self.word} = "{address.format(f"{clash[0].word}:{name}")}"'
            raise PluginError(f"{self.entry.named}: {noun} {name!r} is offered by {by}", self.where, remedy)

    def _judge(self, options: JudgeOptions) -> Source:
        """Find a judge: a rule by its name, a policy like any other, whatever else as its scheme has it."""
        kind = Judge if self.kind is Judge else JudgeReward
        if not options.rest:
            raise self.entry.refusal("the judge has no name", f"write {options.address}NAME", self.word)
        if options.scheme == RULE:
            settings, made_by = self._rule(options)
            facts = [kind.__name__, RULE, options.rest, *made_by, options.weight]
            read = options.given.model_copy(update={"settings": settings.model_dump(mode="json", exclude_unset=True)})
            options = options.model_copy(update={"given": read})
            return Source(self.entry.name, kind, self.word, options.address, "judge", options, digest(facts))
        scheme = self.plugins.schemes[options.scheme]
        code = code_identity(self.plugins.origins[f"scheme:{scheme.name}"], scheme.open.__module__)
        said = options.given.model_dump(mode="json", exclude=set(scheme.free))
        facts = [kind.__name__, scheme.name, code, said, options.weight]
        if not scheme.policy:
            counts = digest([*facts, options.rest])
            return Source(self.entry.name, kind, self.word, options.address, "judge", options, counts)
        found = replace(self, as_policy=True, options=PolicyOptions()).resolve(options.rest)
        counted = digest([*facts, found.fingerprint]) if found.fingerprint else None
        return replace(found, kind=kind, options=options, fingerprint=counted)

    def _rule(self, options: JudgeOptions) -> tuple[Settings, list[Any]]:
        """Return a rule's settings, and what its verdicts depend on. A rule is a judge function, or a reward function,
        which rates."""
        plugins, name, named = self.plugins, options.rest, self.entry.named
        key = next((key for key in (f"judge:{name}", f"reward:{name}") if key in plugins.origins), None)
        if key is None:
            known = [*plugins.judges, *plugins.rewards]
            raise plugins.lacks("rule", name, known, f"{named}: ", self.where)
        self._refuse_clash(key, "rule", "judge:rule:{}" if self.kind is Reward else "rule:{}")
        rule = plugins.judge(name) or plugins.reward(name)
        assert rule
        if self.kind is Reward and isinstance(rule, JudgeFunction):
            raise self.entry.refusal(f"the rule {name!r} compares, and rates nothing", "take one that rates", self.word)
        settings = self.entry.settings(rule.settings, options.given.model_dump()["settings"], "settings")
        asked = rule.compare if isinstance(rule, JudgeFunction) else rule.score
        code = code_identity(plugins.origins[key], asked.__module__)
        return settings, [rule.version, code, settings.model_dump(mode="json")]

    def _base(self, key: str) -> Path:
        """Return where paths begin: those of the command line in the current folder, the recipe's in the recipe's."""
        recipe, table = self.entry.recipe, ("sources", self.entry.name)
        given = table in recipe.overrides or (*table, key) in recipe.overrides
        return Path.cwd() if given else recipe.path.parent

    def _folder(self, address: str) -> Source:
        path = (self._base(self.word) / Path(address).expanduser()).resolve()
        named = self.entry.named
        if not path.exists():
            raise DataError(f"{named}: there is no {address!r}", self.where, _elsewhere(path, address))
        if path.is_file() and path.suffix == ".gguf" and self.kind is Policy:
            return self._made(address, "gguf", ["gguf", self.hashes.of(path), self._options()], files=(path,))
        if path.is_file():
            remedy = "give the model's folder, or a .gguf file" if self.kind is Policy else "give the model's folder"
            raise DataError(f"{named}: {address!r} is a file", self.where, remedy)
        content = [[file.name, self.hashes.of(file)] for file in model_files(path, named, self.where)]
        bases = adapter_bases(path, named, self.where)
        beneath = [file for base in bases for file in model_files(base, named, self.where)]
        below = [[file.name, self.hashes.of(file)] for file in beneath]
        return self._made(address, "folder", ["folder", content, below, self._options()], files=(path,))

    def _files(self, addresses: tuple[str, ...]) -> Source:
        assert isinstance(self.options, RecordOptions)
        named = split_name(self.options.split)
        found = [self._expand(address, self.word, named) for address in addresses]
        files = tuple(file for one in found for file in one.files)
        splits = tuple(dict.fromkeys(name for one in found for name in one.splits))
        aside, aside_split = self._held_out(addresses, splits)
        content = [[self.hashes.of(file) for file in files], [self.hashes.of(file) for file in aside]]
        facts = ["files", [format_of(file) for file in (*files, *aside)], *content, self._options()]
        more = {"files": files, "held_out_files": aside, "splits": splits, "held_out_split": aside_split}
        source = self._made(", ".join(addresses), "files", facts, **more)
        _peek(source)
        return source

    def _held_out(self, addresses: tuple[str, ...], splits: tuple[str, ...]) -> tuple[tuple[Path, ...], str | None]:
        """Find the files of the held-out rows where those have an address of their own: a file's, or a split's name."""
        aside = self._aside
        if aside is None:
            return (), None
        name = split_name(aside)
        if name and split_called(name) in splits and not (self._base("held_out") / aside).exists():
            found = [self._expand(address, self.word, name) for address in addresses]
            return tuple(file for one in found for file in one.files), aside
        return self._expand(aside, "held_out", None).files, None

    def _expand(self, address: str, key: str, split: str | None) -> "Expanded":
        """Find the files of an address: one, those of a split of a folder, or those that match a pattern."""
        inner = Path(address).expanduser()
        path = self._base(key) / inner
        named = self.entry.named
        if path.is_dir():
            return self._of_folder(path, address, key, split)
        assert isinstance(self.options, RecordOptions)
        for option, given in (("split", split), ("config", self.options.config)):
            if given and key == self.word:
                raise self.entry.refusal(f"{option} does not fit the address {address!r}", UNFITTING[option], option)
        if path.is_file():
            return Expanded((whole_path(path),))
        if is_pattern(address):
            found = files_matching(inner, self._base(key))
            problem, remedy = f"{named}: no file matches {address!r}", "check the pattern"
        else:
            found, problem, remedy = [], f"{named}: there is no file {address!r}", _elsewhere(path, address)
        if not found:
            raise DataError(problem, self.entry.where(key), remedy)
        return Expanded(tuple(sorted(map(whole_path, found))))

    def _of_folder(self, path: Path, address: str, key: str, split: str | None) -> "Expanded":
        assert isinstance(self.options, RecordOptions)
        config = self.options.config if key == self.word else None
        try:
            found, splits = files_of_split(path, split, config)
        except DataError as error:
            raise DataError(f"{self.entry.named}: {error.problem}", self.entry.where(key), error.remedy) from error
        if not found:
            problem = f"{self.entry.named}: the folder {address!r} holds no file that can be read"
            remedy = f"files end in {', '.join(FORMATS)}, each also with .gz or .zst"
            raise DataError(problem, self.entry.where(key), remedy)
        return Expanded(tuple(found), splits)


class Expanded(NamedTuple):
    """The files of an address."""

    files: tuple[Path, ...]
    splits: tuple[str, ...] = ()
    """The splits of a folder, of which they are one."""


UNFITTING = {
    "split": 'of files write a slice, such as "[:2000]"',
    "config": "only data sets of the hub, and clones of them, have configurations",
}
"""Options that mean nothing with the address of a file -> what to do."""


def split_name(said: str | None) -> str | None:
    """Return the name in `train[:500]`; None where there is none."""
    match = re.fullmatch(SLICE, said or "")
    return (match["name"] if match else None) or None


def _elsewhere(path: Path, address: str) -> str:
    """Return where what is not at a path may be: beside it under another name, or on the hub."""
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hub = f'if it is on the hub, write "hf:{address}"' if is_hub_name(address) and not names else ""
    return near_miss(path.name, names) or hub or f"it was looked for as {path}"


def is_hub_name(address: str) -> bool:
    """Return whether an address looks like a name on the hub, not like that of a file."""
    named = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", address, re.ASCII)
    return bool(named) and not format_of(Path(address))


def _peek(source: Source) -> None:
    """Read the first rows of each file, so that a wrong column is found at once; if one is bad, all rows are read."""
    artifact = source.artifact()
    assert isinstance(artifact, Records)
    for part in artifact.parts:
        for number, path in enumerate(part.paths):
            limits = {} if number == 0 else {"split": None, "rows": None}
            one = part.model_copy(update={"paths": (path,), **limits})
            try:
                for _ in islice(placed_rows(one, type(artifact).__name__, artifact.columns), PEEK):
                    pass
            except DataError as error:
                raise _with_all_bad_rows(source, artifact, error) from error


def _with_all_bad_rows(source: Source, artifact: Records, error: DataError) -> DataError:
    """List the first bad rows and count all, where that can be: a file may break off, or lie beyond a limit."""
    assert isinstance(source.options, RecordOptions)
    bad, good = BadRows(), 0
    try:
        for part in artifact.parts:
            good += sum(1 for _ in placed_rows(part, type(artifact).__name__, artifact.columns, bad.note))
    except DataError:
        return error
    return bad.refusal(artifact.parts[0], good, source.options) if bad.count else error
