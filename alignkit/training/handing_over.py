"""Write a policy's weights so that vLLM's server takes them: the whole model, its weights alone, or its adapter."""

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.training.adapters import weights_beneath
from alignkit.training.packing import beneath
from alignkit.training.saving import without_patches

HEAD = "lm_head.safetensors"


def write_model(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype
) -> Path:
    """Write what a server is started with, and return its folder: the model, or what lies under its adapter.

    Where a folder holds exactly an adapter's base, that is returned, and nothing written.
    """
    if isinstance(model, PeftModel) and (named := model.peft_config["default"].base_model_name_or_path):
        return Path(named)
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    write_weights(model, folder, dtype)
    return folder


def write_weights(model: PreTrainedModel | PeftModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a model's weights of now in a type, or those of what lies under its adapter.

    A tied output layer is written by its own name, too: a server that loads weights into a model it has open looks for
    every name, and leaves as it was what it does not find.
    """
    without_patches(model)
    inner = beneath(model)
    named = weights_beneath(inner) if isinstance(model, PeftModel) else inner.state_dict()
    weights = {name: w.detach().to("cpu", dtype) if w.is_floating_point() else w.cpu() for name, w in named.items()}
    inner.save_pretrained(folder, state_dict=dict(weights), max_shard_size="1000TB")
    head = inner.get_output_embeddings()
    tied = head is not None and head.weight is inner.get_input_embeddings().weight
    if tied:
        name = next(name for name, part in inner.named_modules() if part is head)
        save_file({f"{name}.weight": weights[f"{name}.weight"].clone().contiguous()}, folder / HEAD)


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Write a model's adapter, as PEFT does."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
