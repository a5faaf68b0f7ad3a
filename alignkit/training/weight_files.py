"""What stands in a model's folder, and what is refused before anything of it is opened."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from alignkit.data.adapter_folder import ADAPTER, base_folder, is_adapter, named_base
from alignkit.errors import DataError

REWARD_FILE = "reward.json"
"""Holds the mean and spread of a reward model's scores beside its weights, and the means of its heads where it has
several."""
PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's tensors."""


def base_of(adapter: Path) -> Path:
    """Return the folder that an adapter belongs to, maybe an adapter itself. Raises DataError where it is gone."""
    try:
        found = base_folder(adapter)
    except (OSError, ValueError) as error:
        raise DataError(f"not JSON ({error})", str(adapter / ADAPTER), "copy the adapter again") from error
    if found is None:
        problem = f"the adapter's base {named_base(adapter)[0]!r} is neither a folder nor in the local cache"
        raise DataError(problem, str(adapter), f"correct base_model_name_or_path in its {ADAPTER}")
    return found


def chain_of(folder: Path) -> list[Path]:
    """Return a model's folder and what it stands on: its base where it is an adapter, and so on to full weights.

    Raises DataError where a base is gone, or where adapters name each other in a circle.
    """
    chain = [folder]
    while is_adapter(chain[-1]):
        base = base_of(chain[-1])
        if any(base == known.resolve() for known in chain):
            raise DataError("the adapter stands on itself", str(folder), f"correct its {ADAPTER}")
        chain.append(base)
    return chain


def root_of(folder: Path) -> Path:
    """Return the folder of the full weights that a model stands on: itself, but for adapters."""
    return chain_of(folder)[-1]


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors in a folder's weights by name.

    What PEFT puts before the names of an adapter's tensors is left away. Of pickled files nothing is told that torch
    does not tell without their numbers. Raises DataError where a safetensors file cannot be read.
    """
    found = dict[str, tuple[int, ...]]()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                    found[name.removeprefix(PREFIX)] = tuple(tensors.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            problem = f"the weights cannot be read ({error})"
            raise DataError(problem, str(file), "copy the file again") from error
    return found or {
        name.removeprefix(PREFIX): tuple(weight.shape) for name, weight in pickled_in(folder, "meta").items()
    }


def pickled_in(folder: Path, where: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder's pickled files, on the device `where`; none of files that cannot be read so."""
    found = dict[str, torch.Tensor]()
    for file in sorted((*folder.glob("pytorch_model*.bin"), *folder.glob("adapter_model*.bin"))):
        try:
            read = torch.load(file, map_location=where, mmap=True, weights_only=True)
        except (OSError, EOFError, ValueError, RuntimeError, UnpicklingError):
            return {}  # what is wrong with them is told where they are opened
        found |= {name: one for name, one in read.items() if isinstance(one, torch.Tensor)}
    return found


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


class ScoreScale(NamedTuple):
    """Where the scores of a reward model lie."""

    mean: float = 0.0
    std: float = 1.0
    heads: tuple[float, ...] = ()
    """Of a model with several heads the mean of each; its score is the mean of theirs."""

    def of_heads(self, logits: Sequence[float]) -> list[float]:
        """Return the scores that a model's heads give, of which the mean is its score: each less its own mean, and
        over the spread of the model's scores."""
        means = self.heads or (self.mean,)
        return [(value - mean) / self.std for value, mean in zip(logits, means, strict=True)]


def scale_of(folder: Path) -> ScoreScale:
    """Return where a reward model's scores lie; 0 and 1 where nobody measured them."""
    file = folder / REWARD_FILE
    if not file.is_file():
        return ScoreScale()
    facts = read_json(file)
    return ScoreScale(float(facts["mean"]), float(facts["std"]), tuple(map(float, facts.get("heads", ()))))


def normalisation_of(folder: Path) -> tuple[float, float]:
    scale = scale_of(folder)
    return scale.mean, scale.std
