"""Configs of models: opened from a folder, what they say of positions and answers, and what a trainer set in them."""

import copy
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import transformers
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import GENERATION_CONFIG_NAME

from alignkit.errors import DataError
from alignkit.training.packing import FAILURES, beneath
from alignkit.training.ways import ways_of_config
from alignkit.training.weight_files import check_model_folder, read_json, root_of

_opened: WeakKeyDictionary[nn.Module, list[tuple[Any, dict[str, Any]]]] = WeakKeyDictionary()
"""What the configs of models said when they were opened."""


def remember_configs(model: PreTrainedModel) -> None:
    """Note what a model's configs say, so that `restore_configs` can bring it back."""
    configs = [model.config, *(value for value in vars(model.config).values() if isinstance(value, PreTrainedConfig))]
    more = [model.generation_config] if model.can_generate() else []
    _opened[model] = [(config, copy.deepcopy(_public(config))) for config in (*configs, *more)]


def restore_configs(model: PreTrainedModel | PeftModel) -> None:
    """Take back what a trainer has set in the configs of a model that was opened here; it would be saved with it."""
    inner = beneath(model)
    for config, was in _opened.get(inner, ()):
        for name in _public(config).keys() - was.keys():
            delattr(config, name)
        for name, value in was.items():
            if _public(config).get(name, ...) != value:
                setattr(config, name, copy.deepcopy(value))


def _public(config: Any) -> dict[str, Any]:
    """Return what a config says, without its own notes and the configs inside it, which are looked at by themselves."""
    facts = vars(config).items()
    return {name: value for name, value in facts if name[0] != "_" and not isinstance(value, PreTrainedConfig)}


def open_config(folder: Path) -> Any:
    """Open the config of a model's folder, of its base where it is an adapter. Raises DataError where none opens it."""
    folder = root_of(folder)
    check_model_folder(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (*FAILURES, StrictDataclassError) as error:
        raise _odd_config(folder / "config.json", error) from error


def _odd_config(file: Path, error: Exception) -> DataError:
    """Word why transformers does not open a config."""
    kind = read_json(file).get("model_type")
    if kind not in CONFIG_MAPPING:
        problem = f"transformers {transformers.__version__} knows no architecture {kind!r}"
        return DataError(problem, str(file), "install a transformers that does, or correct model_type")
    told = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return DataError(f"the model's config cannot be read ({told})", str(file), "correct it, or copy the folder again")


def check_causal(config: Any, where: Path) -> None:
    """Refuse, by its config, a model whose tokens see what follows them. Raises DataError."""
    remedy = "give a decoder as policy; an encoder can score answers, as a reward"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        problem = f"transformers has no causal language model of the architecture {config.model_type!r}"
        raise DataError(problem, str(where), remedy)
    ways = ways_of_config(config)
    if ways and not ways.causal:
        problem = f"the model ({config.model_type}) is no causal language model: its tokens see what follows them"
        raise DataError(problem, str(where), remedy)


def positions(model: PreTrainedModel | PeftModel) -> int | None:
    """Return how many tokens the model reads at most; None where nothing says so."""
    return positions_of(model.config)


def positions_of(config: Any) -> int | None:
    """Find it by the model's config alone; MPT has a name of its own for it."""
    facts = config.get_text_config()
    found = getattr(facts, "max_position_embeddings", None) or getattr(facts, "max_seq_len", None)
    return int(found) if found and found > 0 else None


def taught_by(folder: Path) -> int | None:
    """Return how many tokens the answers needed that a folder's policy was taught by; None where it does not say."""
    file = next((one for one in (folder, root_of(folder)) if (one / GENERATION_CONFIG_NAME).is_file()), None)
    found = read_json(file / GENERATION_CONFIG_NAME).get("max_new_tokens") if file else None
    return _within(found, positions_of(open_config(folder)))


def _within(length: int | None, positions: int | None) -> int | None:
    """Leave half of a model's positions to the prompt."""
    return None if not length else min(int(length), positions // 2) if positions else int(length)


def taught_length(model: PreTrainedModel | PeftModel) -> int | None:
    """Return how many tokens the answers needed that the policy was taught by; None where nothing says so."""
    config = getattr(model, "generation_config", None)
    found = getattr(config, "max_new_tokens", None)
    return _within(found, positions(model))
