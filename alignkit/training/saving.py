"""Save models so that any tool opens them rightly, and prove that what was saved is what was trained."""

import importlib.util
import io
import json
import os
import shutil
import struct
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignkit.data.adapter_folder import ADAPTER, BESIDE
from alignkit.errors import DataError, RecipeError
from alignkit.training.adapters import ends_of, weights_beneath, weights_with, worn
from alignkit.training.arithmetic import evaluating, padded
from alignkit.training.models import Opening, open_full
from alignkit.training.packing import beneath
from alignkit.training.scorer import scorer_named_by
from alignkit.training.tokenizers import stop_tokens
from alignkit.training.weight_files import REWARD_FILE, ScoreScale, read_json


def save_policy(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, stands: Path | None = None
) -> None:
    """Save a policy so that any tool opens it rightly, and prove it: the reloaded logits are compared.

    An adapter is saved as one where a folder holds exactly its base; it names that as seen from itself, so that both
    can be moved together, or by its hub name and commit where it comes from there. Where no folder does (another
    adapter was merged, the embedding grew), adapter and base are merged and saved whole. `stands` is where the folder
    will be once it is renamed.
    """
    _save_stops(model, tokenizer, folder)
    without_patches(model)
    _save(model, tokenizer, folder, stands or folder)
    _compare(model, tokenizer, AutoModelForCausalLM, folder)


def save_snapshot(model: PreTrainedModel | PeftModel, folder: Path, stands: Path) -> None:
    """Save the weights of a policy that goes on learning, as `save_policy` does; what else it needs to be opened as
    one, `complete_snapshot` writes when that is known."""
    _save(model, None, folder, stands)


def complete_snapshot(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write beside the weights of a snapshot what the last policy, which is saved, has beside its own."""
    tokenizer.save_pretrained(folder)
    inner = beneath(model)
    if inner.can_generate():
        inner.generation_config.save_pretrained(folder)
    as_readable_as_others(folder)


def _save_stops(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Let other tools stop where the policy ends its answers, also where only its chat template has that token."""
    inner = beneath(model)
    if not inner.can_generate():
        return
    known, stops = inner.generation_config.eos_token_id, sorted(stop_tokens(model, tokenizer))
    if stops != sorted(known if isinstance(known, list) else [known] if known is not None else []):
        inner.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    if isinstance(model, PeftModel):
        folder.mkdir(parents=True, exist_ok=True)
        inner.generation_config.save_pretrained(folder)


def save_reward(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    scale: ScoreScale,
    *,
    stands: Path | None = None,
) -> None:
    """Save a reward model as `save_policy` does, with the mean and spread of its scores in `reward.json`."""
    without_patches(model)
    _save(model, tokenizer, folder, stands or folder)
    facts = {"mean": scale.mean, "std": scale.std} | ({"heads": list(scale.heads)} if scale.heads else {})
    (folder / REWARD_FILE).write_text(json.dumps(facts) + "\n", "utf-8")
    _compare(model, tokenizer, scorer_named_by(model.config), folder)


def without_patches(model: PreTrainedModel | PeftModel) -> None:
    """Take off the `forward` that a trainer of TRL leaves on a model; a copy of such a model runs the original's."""
    for module in model.modules():
        module.__dict__.pop("forward", None)


def _save(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, stands: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)
    elif _base_named(model):
        _save_adapter(model, _base_named(model), folder, stands)
    elif getattr(model.get_base_model(), "is_quantized", False):  # nothing can be merged into it
        base: PreTrainedModel = model.get_base_model()
        base.save_pretrained(folder / "base", state_dict=weights_beneath(base))
        if tokenizer:
            tokenizer.save_pretrained(folder / "base")
        _save_adapter(model, str((stands / "base").resolve()), folder, stands)
    else:
        _save_merged(model, folder)
    as_readable_as_others(folder)


def _base_named(model: PeftModel) -> str:
    """Return the folder that holds exactly an adapter's base, if any does."""
    return str(model.peft_config["default"].base_model_name_or_path or "")


def _save_adapter(model: PeftModel, base: str, folder: Path, stands: Path) -> None:
    model.save_pretrained(str(folder), save_embedding_layers=False)
    file, named = folder / ADAPTER, _named(Path(base), stands.resolve())
    told = read_json(file)
    for key in ("target_modules", "exclude_modules"):  # sets of PEFT's, in another order each time
        if isinstance(told.get(key), list):
            told[key] = sorted(told[key])
    file.write_text(json.dumps(told | named, indent=2, sort_keys=True), "utf-8")
    if not Path(base).is_relative_to(stands.resolve()):
        (folder / BESIDE).write_text(json.dumps(named | {"base": base}) + "\n", "utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card, all blanks


def _named(base: Path, stands: Path) -> dict[str, str]:
    """Name an adapter's base by its hub name and commit, if the hub's cache holds it, else as seen from the adapter."""
    kept, folder = base.parent.name, base.parent.parent.name
    if kept == "snapshots" and folder.startswith("models--"):
        return {
            "base_model_name_or_path": folder.removeprefix("models--").replace("--", "/"),
            "revision": base.name,
        }
    return {"base_model_name_or_path": os.path.relpath(base, stands)}


def _save_merged(model: PeftModel, folder: Path) -> None:
    """Save a model with its adapter merged, in fp32, and leave it as it is."""
    base: PreTrainedModel = model.get_base_model()
    weights = {name: w.float() if w.is_floating_point() else w for name, w in weights_with(model).items()}
    base.save_pretrained(folder, state_dict=dict(weights))  # which it takes apart
    ends = [weights[f"{name}.weight"] for name in ends_of(base)]
    parted = {"tie_word_embeddings": False} if len(ends) > 1 and not torch.equal(ends[0], ends[-1]) else {}
    file = folder / "config.json"
    file.write_text(json.dumps(read_json(file) | {"dtype": "float32"} | parted, indent=2, sort_keys=True), "utf-8")


def as_readable_as_others(folder: Path) -> None:
    """Give weights, which safetensors writes for their owner's eyes only, the mode of the other files beside them."""
    for file in folder.rglob("*.safetensors"):
        shutil.copymode(next(one for one in file.parent.iterdir() if one.suffix == ".json"), file)


def _compare(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, kind: Any, folder: Path) -> None:
    """Open what was saved, and compare its weights and its outputs with the model's; raises RuntimeError.

    It is opened on the processor, where its files are mapped and take no memory. What is computed of the model's own
    weights by its config and its code is compared where the model lies: no second model is put there.
    """
    ours = beneath(model)
    if getattr(ours, "is_quantized", False):
        return  # opening it again would take the very memory that quantising saved
    dtype = next(parameter.dtype for name, parameter in ours.named_parameters() if "lora_" not in name)
    more = {} if kind is AutoModelForCausalLM else {"num_labels": ours.config.num_labels}
    named = isinstance(model, PeftModel) and _base_named(model)
    merged = isinstance(model, PeftModel) and not named  # which is saved in fp32
    again: Any = open_full(
        kind, Path(named) if named else folder, Opening(torch.float32 if merged else dtype, None, more)
    )
    if named:
        again = worn(again, folder)
    again.config.get_text_config().pad_token_id = ours.config.get_text_config().pad_token_id
    live = weights_with(model) if isinstance(model, PeftModel) and merged else dict(model.named_parameters())
    _compare_weights(dict(again.named_parameters()), live, folder)
    buffers = {name: buffer.to(ours.device) for name, buffer in again.named_buffers()}
    own = {name: live[name].to(weight.dtype) for name, weight in again.named_parameters()}
    with evaluating(model):
        expected, found = (_probe(weights, m, tokenizer) for weights, m in (({}, model), (own | buffers, again.eval())))
    near = 1e-3 if named or dtype == torch.float32 else 3e-2  # what half precision itself makes of the same weights
    if not torch.allclose(expected, found, rtol=near, atol=near * float(expected.abs().max())):
        distance = float((expected - found).abs().max())
        raise RuntimeError(f"{folder}: the saved model's outputs differ from the trained one's by {distance:.3g}")


@torch.no_grad()
def _compare_weights(saved: Mapping[str, Tensor], live: Mapping[str, Tensor], folder: Path) -> None:
    for name, weight in saved.items():
        if ".original_module." in name:  # what PEFT's adapter has put a layer of its own in the place of
            continue
        ours = live[name].to("cpu", weight.dtype) if name in live else torch.empty(0)
        if ours.shape != weight.shape:
            problem = f"the saved model's {name} is {tuple(weight.shape)}, and the trained one's {tuple(ours.shape)}"
            raise RuntimeError(f"{folder}: {problem}")
        if not torch.equal(ours, weight):
            distance = float((ours - weight).abs().max())
            raise RuntimeError(f"{folder}: the saved model's {name} differs from the trained one's by {distance:.3g}")


@torch.no_grad()
def _probe(
    weights: Mapping[str, Tensor], model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """Return a model's outputs on two short rows of different tokens, one of them padded; `weights` replace its own."""
    ordinary = [i for i in range(min(len(tokenizer), 64)) if i != tokenizer.pad_token_id][:16]
    short = [*ordinary[8:], tokenizer.eos_token_id]
    device = next(iter(weights.values())).device if weights else model.device
    rows, mask = padded([ordinary, short], tokenizer.pad_token_id, device)
    inputs = {"input_ids": rows, "attention_mask": mask, "use_cache": False}
    output: Tensor = functional_call(model, dict(weights), kwargs=inputs).logits.float()
    return output if output.dim() == 2 else output[mask.bool()]


def unpack(gguf: Path, folder: Path) -> None:
    """Write the model of a .gguf file as a plain folder of full fp32 weights, with its tokenizer and chat template.

    Raises RecipeError where the package that reads the format is missing, DataError where the file cannot be read.
    """
    if importlib.util.find_spec("gguf") is None:
        raise RecipeError("reading .gguf files needs the package gguf", str(gguf), 'pip install "alignkit[gguf]"')
    where = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        with redirect_stderr(io.StringIO()):  # a bar of its own that no setting of transformers hides
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    except (OSError, ValueError, LookupError, RuntimeError, struct.error) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"the file cannot be unpacked ({reason})", str(gguf), "check that it is whole") from error
    # It says of itself that it is quantised, and would be saved as such.
    model.__dict__.pop("hf_quantizer", None)
    model.__dict__.pop("is_quantized", None)
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    as_readable_as_others(folder)
