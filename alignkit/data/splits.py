"""Folders of data sets: which of their files are rows, and of which split.

A folder may be a clone of a data set of the hub, what `save_to_disk` of `datasets` wrote, or anybody's files. Splits
are told, in this order, by `dataset_dict.json` or `state.json`, the configs in the head of README.md, the names of
folders and files, as the hub takes them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.data.files import files_in, format_of, whole_path
from alignkit.errors import DataError

Splits = dict[str, list[Path]]
"""The files of each split, in their order; those of the split "" belong to none."""

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation", "holdout", "heldout", "held_out"),
}
"""Split -> words for it in names of folders and files: those that the hub knows, and a few more."""
CANONICAL = {word: split for split, words in KEYWORDS.items() for word in words}
WORDS = "|".join(sorted(CANONICAL, key=len, reverse=True))
WORD = re.compile(rf"(?<![A-Za-z])({WORDS})(?:set|data|split)?(?![A-Za-z])", re.IGNORECASE)
SHARD = re.compile(r"(?P<split>[\w.-]+?)-\d{5}-of-\d{5}.*")
"""How the hub names the files of a split, in a folder `data`."""


def split_called(name: str) -> str:
    """Return the usual name of a split: `dev` is `validation`."""
    return CANONICAL.get(name.lower(), name)


def files_of_split(
    folder: Path, split: str | None, config: str | None = None, *, in_recipe: bool = True
) -> tuple[list[Path], tuple[str, ...]]:
    """Find the files of one split of a folder, `train` unless another one is named, and the names of all its splits.

    A folder whose files belong to no split is taken whole, and has no such names. Raises DataError where the split, or
    the config, or a file of it is not there or would be a guess; the remedy is for a recipe, or for a command that
    names files.
    """
    splits = splits_in(folder, config, in_recipe=in_recipe)
    if splits.keys() <= {""}:
        if split is not None and splits:
            remedy = 'leave it out, or write a slice such as split = "[:2000]"'
            raise DataError(f"the folder has no splits, and {split!r} is asked for", str(folder), remedy)
        return _there(folder, splits.get("", [])), ()
    names = tuple(name for name in splits if name)
    if "" in splits:
        problem = f"the folder has files of {_listed('split', names)}, and {splits[''][0].name} beside them"
        raise DataError(problem, str(folder), _name_files(folder, splits, in_recipe=in_recipe))
    wanted = split_called(split or "train")
    if wanted not in splits and split in splits:
        wanted = split
    if wanted not in splits:
        problem = f"the folder has {_listed('split', names)}, and no {split or 'train'}"
        likely = next((name for name in names if (split or "train") in name), names[0])
        remedy = f'write split = "{likely}"' if in_recipe else _name_files(folder, splits, in_recipe=False)
        raise DataError(problem, str(folder), remedy)
    if not splits[wanted]:
        problem = f"the folder has no files of the split {wanted}, which it names"
        raise DataError(problem, str(folder), "copy it again, with all files")
    return _there(folder, splits[wanted]), names


def _there(folder: Path, files: Iterable[Path]) -> list[Path]:
    """Return the whole paths of files, all of which must be there."""
    for file in files:
        if not file.is_file():
            problem = f"the folder lacks {file.relative_to(folder)}, which it names as a file of its rows"
            raise DataError(problem, str(folder), "copy it again, with all files")
    return [*map(whole_path, files)]


def _listed(what: str, names: Sequence[str]) -> str:
    return f"the {what}{'s' if len(names) > 1 else ''} {', '.join(names)}"


def splits_in(folder: Path, config: str | None = None, *, in_recipe: bool = True) -> Splits:
    """Find the files of rows in a folder by their split."""
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if saved and config is not None:
        raise DataError(f"the folder has no configs, and {config!r} is asked for", str(folder), "leave config out")
    if (folder / "dataset_dict.json").is_file():
        names = _object(folder / "dataset_dict.json").get("splits") or []
        return {str(name): _saved(folder / str(name)) for name in names}
    if (folder / "state.json").is_file():
        return {"": _saved(folder)}
    configured = _configured(folder, config, in_recipe=in_recipe)
    return configured if configured is not None else by_name(folder, sorted(files_in(folder)))


def by_name(folder: Path, files: Iterable[Path]) -> Splits:
    """Return by the names of folders and files which split each file is of."""
    splits: Splits = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    names = splits.keys() - {""}
    if len(names) == 1 and not names & KEYWORDS.keys():  # the parts of one set, under a name of its own
        return {"": sorted(file for several in splits.values() for file in several)}
    return splits


def _split_of(path: Path) -> str:
    """Return a file's split by its name, or by the folders that it is in; "" where they say nothing."""
    shard = SHARD.fullmatch(path.name)
    if shard and path.parent.name == "data" and path.suffix != ".arrow":
        return split_called(shard["split"])
    for name in (*reversed(path.parts[:-1]), path.name):
        if words := {CANONICAL[word.lower()] for word in WORD.findall(name)}:
            return words.pop() if len(words) == 1 else ""
    return ""


def _saved(folder: Path) -> list[Path]:
    """Return the files that `save_to_disk` wrote, in their order."""
    state = folder / "state.json"
    listed = _object(state).get("_data_files") if state.is_file() else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "filename" in one for one in listed):
        problem = "save_to_disk wrote this folder, and its state.json names no files"
        raise DataError(problem, str(folder), "write it again, or name its files")
    return [folder / str(one["filename"]) for one in listed]


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})", str(path), "copy it again") from error
    return value if isinstance(value, dict) else {}


def _configured(folder: Path, config: str | None, *, in_recipe: bool) -> Splits | None:
    """Read which files are of which split from the head of README.md; None where it does not say."""
    configs = {str(one.get("config_name", "default")): one for one in _configs(folder)}
    if config is not None and config not in configs:
        known = _listed("config", [*configs]) if configs else "no configs"
        problem = f"the folder has {known}, and {config!r} is asked for"
        remedy = f'write config = "{next(iter(configs))}"' if configs else "leave config out"
        raise DataError(problem, str(folder), remedy)
    if not configs:
        return None
    marked = [name for name, one in configs.items() if one.get("default") is True]
    chosen = config or next((name for name in (*marked, "default") if name in configs), None)
    if chosen is None and len(configs) > 1:
        remedy = f'write config = "{next(iter(configs))}", or another of them'
        if not in_recipe:
            remedy = "name the files of one of them by a pattern in quotes, such as 'FOLDER/data/train-*'"
        raise DataError(f"the folder has the configs {', '.join(configs)}", str(folder), remedy)
    said = configs[chosen or next(iter(configs))]
    base = folder / str(said.get("data_dir") or "")
    if "data_files" not in said:
        return by_name(base, sorted(files_in(base))) if base != folder else None
    return {split_called(name): _matching(base, patterns) for name, patterns in _patterns(said["data_files"]).items()}


def _configs(folder: Path) -> list[Mapping[str, Any]]:
    readme = folder / "README.md"
    if not readme.is_file():
        return []
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        configs = (metadata_load(readme) or {}).get("configs")
    except (ValueError, YAMLError):  # a README.md for people
        return []
    return [one for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []


def _patterns(said: Any) -> dict[str, list[str]]:
    """Read the `data_files` of a config: patterns for each split, or for `train` alone."""
    if isinstance(said, list) and all(isinstance(one, dict) for one in said):
        said = {str(one.get("split", "train")): one.get("path", []) for one in said}
    splits = said if isinstance(said, dict) else {"train": said}
    return {str(name): [one] if isinstance(one, str) else [*map(str, one)] for name, one in splits.items()}


def _matching(base: Path, patterns: Sequence[str]) -> list[Path]:
    """Find the files of rows that match patterns of the hub, for which `**` at the end matches files, too."""
    whole = [f"{pattern}/*" if pattern.endswith("**") else pattern for pattern in patterns]
    try:
        found = [path for pattern in whole for path in sorted(base.glob(pattern))]
    except (ValueError, NotImplementedError) as error:
        problem = f"the head of README.md names files by {', '.join(map(repr, patterns))}, which cannot be looked for"
        raise DataError(problem, str(base), "name the files") from error
    return list(dict.fromkeys(path for path in found if path.is_file() and format_of(path)))


def _name_files(folder: Path, splits: Splits, *, in_recipe: bool) -> str:
    """Advise to name the files of one split."""
    named = [name for name in splits if name]
    files = splits[next((name for name in named if "train" in name), named[0])]
    said = files[0].relative_to(folder) if files[0].is_relative_to(folder) else files[0]
    if in_recipe:
        return f'name the files to read, or a pattern, such as "{Path(folder.name) / said}"'
    return f"name the file, or a pattern in quotes: alignkit data {folder / said}"
