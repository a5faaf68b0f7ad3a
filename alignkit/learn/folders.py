"""What stands in a model's folder, and what is refused before anything of it is opened."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from alignkit.errors import DataError

REWARD_FILE = "reward.json"
"""Holds the mean and spread of a reward model's scores, beside its weights."""


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def base_of(adapter: Path) -> Path:
    """Give the folder of the full weights that an adapter belongs to.

    That is its own `base/`, else the folder that it names, else what the local cache holds under the hub name.
    """
    if (adapter / "base").is_dir():
        return adapter / "base"
    named = str(read_json(adapter / "adapter_config.json").get("base_model_name_or_path") or "")
    if named and Path(named).is_dir():
        return Path(named)
    try:
        return Path(snapshot_download(named, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError) as error:
        problem = f"the adapter's base {named!r} is neither a folder nor in the local cache"
        remedy = "correct base_model_name_or_path in its adapter_config.json"
        raise DataError(problem, str(adapter), remedy) from error


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that is no model, or one that would run its author's code. Raises DataError.

    Weights are safetensors, else `pytorch_model.bin`, of which torch's `weights_only` reads tensors and nothing else.
    """
    if not folder.is_dir():
        raise DataError("there is no such model folder", str(folder), "check the address in the recipe")
    if not (folder / "config.json").is_file():
        raise DataError("the folder has no config.json, so it is no model", str(folder), "name a model's folder")
    odd = sorted(_odd_keys(read_json(folder / "config.json")))
    if odd:
        problem = f"the model's config.json asks for code of its author ({', '.join(odd)})"
        raise DataError(problem, str(folder), "use a model of an architecture that transformers has itself")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise DataError("the model folder has no weights", str(folder), "add its .safetensors files")


def _odd_keys(config: object) -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "auto_map" or (key.startswith("_") and key.endswith("_internal")):
                yield key
            yield from _odd_keys(value)


def read_json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"not JSON ({error})", str(file), "copy the model again") from error
    if not isinstance(read, dict):
        raise DataError("not a JSON object", str(file), "copy the model again")
    return read


def normalisation_of(folder: Path) -> tuple[float, float]:
    file = folder / REWARD_FILE
    if not file.is_file():
        return 0.0, 1.0
    facts = read_json(file)
    return float(facts["mean"]), float(facts["std"])
