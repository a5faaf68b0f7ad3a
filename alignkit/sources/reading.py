"""Read the sources of a recipe, and refuse what is wrong with their tables."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.contract.judges import RULE
from alignkit.contract.kinds import Artifact, Judge, Policy, Preferences, Ratings, Records
from alignkit.contract.settings import Settings
from alignkit.data.formats import SHAPES
from alignkit.data.records import SLICE
from alignkit.errors import AlignkitError, DataError, PluginError, RecipeError, near_miss
from alignkit.plugins import CLASH_REMEDY, Plugins
from alignkit.recipe.recipe import Recipe
from alignkit.sources.address import Address, Resolver, judge_of
from alignkit.sources.entry import Entry
from alignkit.sources.source import (
    JudgeOptions,
    Options,
    PolicyOptions,
    RecordOptions,
    RewardOptions,
    RuleOptions,
    Source,
)
from alignkit.store.file_hashes import FileHashes

VARIABLE = r"[A-Z_a-z][A-Z_a-z0-9]{0,60}"
"""The name of an environment variable; most keys are none."""

SHIPPED = {"openai": "alignkit-rlaif", "policy": "alignkit-rlaif"}
"""Schemes of judges that a package of ours offers."""


def read_sources(
    recipe: Recipe, plugins: Plugins, hashes: FileHashes, lock: Mapping[str, str]
) -> tuple[dict[str, Source], list[AlignkitError]]:
    """Resolve all sources of a recipe; give those that are right, and what is wrong with the others."""
    sources: dict[str, Source] = {}
    errors: list[AlignkitError] = []
    for name in recipe.sources:
        try:
            sources[name] = _read_source(Entry(recipe, name), plugins, hashes, lock)
        except AlignkitError as error:
            errors.append(error)
    return sources, errors


def _read_source(entry: Entry, plugins: Plugins, hashes: FileHashes, lock: Mapping[str, str]) -> Source:
    word = _kind_word(entry, plugins.source_kinds)
    kind = plugins.source_kinds[word]
    given = {key: value for key, value in entry.table.items() if key != word}
    address = _address(entry, word, kind)
    options = _read_options(entry, word, address, given, plugins)
    if isinstance(options, RecordOptions):
        _check_rows(entry, kind, options)
    _check_fitting(entry, address, options)
    try:
        return Resolver(entry, word, options, plugins, hashes, lock).resolve(address)
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problem = f"{entry.named}: the address cannot be read ({reason})"
        raise DataError(problem, entry.where(word), "correct it") from error


def _read_options(entry: Entry, word: str, address: Address, given: Mapping[str, Any], plugins: Plugins) -> Options:
    """Read what the source says besides its address; that of a judge is its scheme's business."""
    kind = plugins.source_kinds[word]
    if (found := judge_of(kind, address)) is None:
        return entry.settings(_options_of(kind), given)
    _check_key(entry, given)
    scheme, rest = found
    own = {key: value for key, value in given.items() if key != "weight" or kind is Judge}
    said = entry.settings(_scheme_options(entry, word, scheme, plugins), own)
    share = entry.settings(RewardOptions, {key: value for key, value in given.items() if key not in own})
    return JudgeOptions(scheme=scheme, rest=rest, given=said, weight=share.weight)


def _check_key(entry: Entry, given: Mapping[str, Any]) -> None:
    """Refuse a key in place of its name, before anything repeats it."""
    name = given.get("key_env")
    if name is not None and not (isinstance(name, str) and re.fullmatch(VARIABLE, name)):
        problem = "key_env must be the name of an environment variable"
        raise entry.refusal(problem, "a key itself never stands in a recipe", "key_env")


def _scheme_options(entry: Entry, word: str, scheme: str, plugins: Plugins) -> type[Settings]:
    """Return what a judge's source may say. Raises RecipeError or PluginError where no plugin, or two, offer it."""
    if scheme == RULE:
        return RuleOptions
    if clash := plugins.clashes.get(f"scheme:{scheme}"):
        by = " and by ".join(map(str, clash))
        raise PluginError(
            f"{entry.named}: judges of the scheme {scheme!r} are offered by {by}", entry.where(word), CLASH_REMEDY
        )
    if scheme in plugins.schemes:
        return plugins.schemes[scheme].settings
    if scheme in SHIPPED and not plugins.broken:
        problem = f"no plugin offers judges of the scheme {scheme!r}"
        raise entry.refusal(problem, f"pip install {SHIPPED[scheme]}", word)
    raise plugins.lacks("judge scheme", scheme, [RULE, *plugins.schemes], f"{entry.named}: ", entry.where(word))


def _kind_word(entry: Entry, kinds: Mapping[str, type[Artifact]]) -> str:
    words = [key for key in entry.table if key in kinds]
    if len(words) == 1:
        return words[0]
    if words:
        raise RecipeError(
            f"{entry.named} has two kinds, {' and '.join(words)}", entry.where(), "make two sources of it"
        )
    known = list(kinds)
    hint = next((h for key in entry.table if (h := near_miss(key, known))), f"the kinds are {', '.join(known)}")
    raise RecipeError(f"{entry.named} says no kind (it has {', '.join(entry.table) or 'nothing'})", entry.where(), hint)


def _options_of(kind: type[Artifact]) -> type[Options]:
    if issubclass(kind, Records):
        return RecordOptions
    return PolicyOptions if kind is Policy else RewardOptions


def _address(entry: Entry, word: str, kind: type[Artifact]) -> Address:
    value = entry.table[word]
    if isinstance(value, str) and value:
        return value
    fine = isinstance(value, list) and value and all(isinstance(item, str) and item for item in value)
    if not fine or not issubclass(kind, Records):
        raise entry.refusal(f"{word} must be an address", f'write {word} = "..."', word)
    if any(item.startswith(("hf:", "builtin:")) for item in value):
        advice = "make a source of each and list their names under inputs"
        raise entry.refusal("a list of addresses may hold files only", advice, word)
    return tuple(value)


def _check_rows(entry: Entry, kind: type[Artifact], options: RecordOptions) -> None:
    assert issubclass(kind, Records)
    known = sorted({column for columns in (*kind.columns, kind.further) for column in columns})
    for ours in options.columns:
        if ours not in known:
            hint = near_miss(ours, known) or f"{kind.__name__.lower()} have {', '.join(known)}"
            raise entry.refusal(f"columns.{ours}: unknown column", hint, "columns", ours)
    formats = [shape.name for shape in SHAPES.get(kind.__name__, ())]
    if options.format is not None and options.format not in formats:
        hint = near_miss(options.format, formats) or f"{kind.__name__.lower()} come as {', '.join(formats)}"
        raise entry.refusal(f"format: unknown format {options.format!r}", hint, "format")
    if options.format and options.columns:
        raise entry.refusal("format and columns cannot both say how rows are read", "leave one out", "format")
    for option, given, own in (("flip", options.flip, Preferences), ("rated", options.rated, Ratings)):
        if given and not issubclass(kind, own):
            words = {Preferences: "preferences have two answers to exchange", Ratings: "ratings have a rating"}
            raise entry.refusal(f"{option} does not fit {kind.__name__.lower()}", f"only {words[own]}", option)
    if not isinstance(options.held_out, str) and not 0 <= options.held_out < 1:
        raise entry.refusal("held_out must be a share from 0 to below 1", "0.05 is usual", "held_out")


def _check_fitting(entry: Entry, address: Address, options: Options) -> None:
    """Refuse options that do nothing with an address of this form, and those that are no split or no variable."""
    if isinstance(options, JudgeOptions):
        return
    scheme = address.partition(":")[0] if isinstance(address, str) else "files"
    given = options.model_dump(exclude_unset=True, exclude_none=True)
    for key, advice in _unfitting(scheme, str(given.get("split"))):
        if key in given:
            raise entry.refusal(f"{key} does not fit the address {address!r}", advice, key)
    for key in ("split", "held_out") if scheme == "hf" else ("split",):
        if isinstance(given.get(key), str) and not re.fullmatch(SLICE, given[key]):
            raise entry.refusal(f"{key}: {given[key]!r} is no split", 'write "train[:500]"', key)


def _unfitting(scheme: str, split: str) -> Iterator[tuple[str, str]]:
    """Yield the options that mean nothing with addresses of this scheme, each with the reason."""
    if scheme == "builtin":
        yield "config", "only data sets of the hub have configurations"
    if scheme == "function":
        yield "label", "only text classifiers have labels"
    else:
        yield "settings", "only reward functions have settings"
    if scheme == "builtin":
        yield "held_out", "built-in sources have held-out rows of their own"
    if scheme == "builtin" and not split.startswith("["):
        yield "split", 'write a slice, such as "[:2000]"'
