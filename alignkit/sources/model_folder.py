"""Model folders: what must lie in one before anybody tries to load it."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from alignkit.data.adapter_folder import ADAPTER, base_folder, is_adapter, named_base
from alignkit.data.files import refuse_pointer
from alignkit.errors import DataError

WANTED = (".json", ".safetensors", ".jinja", ".model", ".txt")
"""Files that make a model what it is."""
PICKLED = "pytorch_model*.bin"
"""Weights in torch's own form, of which only tensors are read."""
MOST_LAYERS = 10_000


def model_files(folder: Path, named: str, where: str) -> list[Path]:
    """Return the files of a model folder. Raises DataError where it holds no weights.

    `named` and `where` say in messages whose folder it is, and where it is asked for.
    """
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    if not {"config.json", ADAPTER} & set(names):
        if several := sorted(inner.name for inner in folder.iterdir() if inner.is_dir() and is_adapter(inner)):
            problem = f"{named}: {folder} holds adapters in folders of their own ({', '.join(several)})"
            raise DataError(problem, where, f"name one of them, such as {folder / several[0]}")
        problem = f"{named}: {folder} is no model folder (no config.json)"
        raise DataError(problem, where, "give a folder as transformers saves it")
    if not any(name.endswith(".safetensors") or fnmatch(name, PICKLED) for name in names):
        problem = f"{named}: the model folder {folder} has no weights"
        raise DataError(problem, where, "copy its .safetensors files there")
    _refuse_many_layers(folder / "config.json", named)
    for shard in _shards(folder / "model.safetensors.index.json"):
        if shard not in names:
            raise DataError(f"{named}: the model folder {folder} lacks {shard!r}", where, "copy it again")
    files = [folder / name for name in names if name.endswith(WANTED) or fnmatch(name, PICKLED)]
    for file in files:
        refuse_pointer(file)
    return files


def _refuse_many_layers(config: Path, named: str) -> None:
    """Refuse what no model has: libraries would make a list of that length, or of what memory there is."""
    facts = _read(config) if config.is_file() else {}
    texts = [facts, *(inner for inner in facts.values() if isinstance(inner, dict))]
    for key, value in (pair for text in texts for pair in text.items()):
        if "layer" in key and isinstance(value, int) and value > MOST_LAYERS:
            raise DataError(f"{named}: {key} is {value}, more than any model has", str(config), "copy the file again")


def _shards(index: Path) -> list[str]:
    shards = _read(index).get("weight_map") if index.is_file() else {}
    return sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []


def adapter_bases(folder: Path, named: str, where: str) -> list[Path]:
    """Return the folders that a model stands on: none, or an adapter's base, and so on to full weights.

    Raises DataError where one is not on this machine.
    """
    chain = [folder.resolve()]
    while is_adapter(chain[-1]):
        try:
            base = base_folder(chain[-1])
        except (ValueError, RecursionError) as error:
            raise DataError("the file is not JSON", str(chain[-1] / ADAPTER), "copy it again") from error
        if base is None or base.resolve() in chain:
            name = named_base(chain[-1])[0]
            raise DataError(
                f"{named}: the adapter's base {name!r} is not on this machine",
                where,
                "download the base model and write its folder into base_model_name_or_path of adapter_config.json",
            )
        chain.append(base.resolve())
    return chain[1:]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError("the file is not JSON", str(path), "copy it again") from error
    return value if isinstance(value, dict) else {}
