"""Adapters of PEFT, anybody's: which can be merged into their base, how large that base must be, and merging them.

An adapter's folder may hold more than low-rank matrices: whole modules (`modules_to_save`), an embedding that has
grown, single rows of it (`trainable_token_indices`), magnitudes (DoRA), biases. All of it is opened as PEFT opens it.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from alignkit.data.adapter_folder import ADAPTER
from alignkit.errors import DataError
from alignkit.training.weight_files import PREFIX, read_json, root_of, shapes_in

MERGED = "merge it with its base into one folder of full weights"
OPENED = {"CAUSAL_LM", "SEQ_CLS", None}
"""Tasks of adapters that a policy or a reward model may have."""
MISFIT = re.compile(
    r"size mismatch for (\S+): .*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)", re.DOTALL
)
"""How torch tells of a tensor that does not fit: its name, its shape in the file, and that in the model."""
TABLES = ("weight", "base_layer.weight", "modules_to_save.weight", "lora_B.weight")
"""Tensors of an adapter on an embedding or a language head that have a row for each token."""
AROUND = ("base_layer", "original_module")
"""What PEFT calls a layer inside one of its own."""
TURNED = ("lora_embedding_A",)
"""Those that have a column for each."""

UNMERGED = (AttributeError, RuntimeError, TypeError, ValueError)
"""What PEFT and torch raise at an adapter that cannot be merged."""


def task_of(adapter: Path) -> str | None:
    """Return what kind of model an adapter belongs to, in PEFT's words."""
    task = read_json(adapter / ADAPTER).get("task_type")
    return str(task) if task else None


def check_adapter(adapter: Path) -> None:
    """Refuse an adapter that can never be merged, told by its files alone. Raises DataError."""
    config = config_of(adapter)
    kind = str(read_json(adapter / ADAPTER).get("peft_type"))
    if config.is_prompt_learning or config.is_adaption_prompt:
        problem = f"an adapter of the kind {kind} has no weights that can be merged into its base"
        raise DataError(problem, str(adapter), "take an adapter that changes weights, such as LoRA")
    if task_of(adapter) not in OPENED:
        problem = f"the adapter was trained for {task_of(adapter)}, and neither answers nor scores"
        raise DataError(problem, str(adapter), "take one for CAUSAL_LM (a policy) or SEQ_CLS (a reward model)")
    quantised = read_json(root_of(adapter) / "config.json").get("quantization_config")
    if isinstance(quantised, dict):
        method = quantised.get("quant_method", "an unknown method")
        problem = f"the weights of the adapter's base are quantised ({method}), so it cannot be merged into them"
        raise DataError(problem, str(root_of(adapter)), "name the folder of its full weights as the adapter's base")


def config_of(adapter: Path) -> PeftConfig:
    """Read an adapter's config. Raises DataError where PEFT does not know it."""
    try:
        with quiet():
            found: PeftConfig = PeftConfig.from_pretrained(str(adapter), local_files_only=True)
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f"the adapter's config cannot be read ({reason})"
        raise DataError(problem, str(adapter / ADAPTER), "save the adapter again with the installed peft") from error
    return found


def vocabulary_of(adapter: Path, model: PreTrainedModel, tokens: int) -> int:
    """Return how many tokens an adapter's base must have rows for; `tokens`: how many its tokenizer has.

    That is what the adapter's own weights of the embedding and the head have, else what the base has. Where it has
    trained single rows beyond those, it is the tokenizer's size, as for PEFT.
    """
    known = int(getattr(model.get_input_embeddings(), "num_embeddings", 0))
    shapes = shapes_in(adapter)
    for name in ends_of(model):
        for tensor in (*TABLES, *TURNED):
            shape = shapes.get(f"{name}.{tensor}")
            if shape is not None and len(shape) == 2 and known:
                return shape[1] if tensor in TURNED else shape[0]
    single = read_json(adapter / ADAPTER).get("trainable_token_indices") or []
    rows = [row for some in (single.values() if isinstance(single, dict) else [single]) for row in some]
    return max(tokens, max(rows) + 1) if rows and max(rows) >= known else known


def ends_of(model: PreTrainedModel) -> list[str]:
    """Name a model's embedding and its language head."""
    both: Any = model
    ends = [end for end in (both.get_input_embeddings(), both.get_output_embeddings()) if end is not None]
    return [name for name, module in model.named_modules() if any(module is end for end in ends)]


def resized(model: PreTrainedModel, size: int) -> bool:
    """Return the embedding and the language head so many rows; say whether that changed them.

    New rows are the mean of the others, always the same: with random ones a policy and its reference, opened one
    after the other, would differ.
    """
    table: Any = model.get_input_embeddings()
    known = int(table.num_embeddings)
    if size == known:
        return False
    model.resize_token_embeddings(size, mean_resizing=False)
    ends: Any = model
    with torch.no_grad():
        for end in (ends.get_input_embeddings(), ends.get_output_embeddings()):
            if end is not None and size > known:
                end.weight[known:] = end.weight[:known].mean(dim=0)
    return True


def worn(base: PreTrainedModel, adapter: Path, tokens: int = 0) -> PeftModel:
    """Put a saved adapter on its base, which is resized for it. Raises DataError where it does not fit."""
    check_adapter(adapter)
    resized(base, vocabulary_of(adapter, base, tokens))
    try:
        with quiet():
            found: PeftModel = PeftModel.from_pretrained(base, str(adapter), local_files_only=True)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise _does_not_fit(adapter, str(error)) from error
    return found


def _does_not_fit(adapter: Path, told: str) -> DataError:
    if misfit := MISFIT.search(told):
        name, theirs, ours = misfit.groups()
        return _misfit(adapter, name, f"({theirs})", f"({ours})")
    reason = (told.strip() or "PEFT gives no reason").splitlines()[0]
    return DataError(f"the adapter cannot be put on its base ({reason})", str(adapter), MERGED)


def _misfit(adapter: Path, name: str, theirs: str, ours: str) -> DataError:
    plain = name.removeprefix(PREFIX).replace(".default", "")
    problem = f"the adapter does not fit its base: {plain} is {theirs} in the adapter, and {ours} in the base"
    return DataError(problem, str(adapter), f"name the base that it was trained on, or {MERGED}")


def merged(base: PreTrainedModel, adapter: Path, tokens: int = 0) -> PreTrainedModel:
    """Merge a saved adapter into its base, which is resized for it, and is no more.

    Embedding and head of a tied model are two from then on where the adapter changes one of them. Raises DataError.
    """
    model: Any = worn(base, adapter, tokens)
    tied = _part(model)
    try:
        with quiet():
            found: PreTrainedModel = model.merge_and_unload()
    except UNMERGED as error:
        raise _cannot_merge(adapter, error) from error
    _tie(found, tied)
    return found


def _cannot_merge(adapter: Path, error: Exception) -> DataError:
    kind = read_json(adapter / ADAPTER).get("peft_type")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    problem = f"this adapter of the kind {kind} cannot be merged into its base ({reason})"
    return DataError(problem, str(adapter), "train one that can, such as LoRA")


def _part(model: Any) -> bool:
    """Give the head of a tied model weights of its own; return whether it is tied: merging must not change both."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    beneath = [end.base_layer if isinstance(end, BaseTunerLayer) else end for end in (first, last)]
    shared = all(hasattr(end, "weight") for end in beneath) and beneath[0].weight is beneath[1].weight
    if shared and any(isinstance(end, BaseTunerLayer) for end in (first, last)):
        beneath[1].weight = nn.Parameter(beneath[1].weight.detach().clone())
    return bool(model.config.get_text_config().tie_word_embeddings or model.config.tie_word_embeddings)


def _tie(model: PreTrainedModel, tied: bool) -> None:
    """Make embedding and head of a model that was tied one matrix again, or note that they no longer are.

    Saving would make them one without a word, and opening likewise.
    """
    ends: Any = model
    first, last = ends.get_input_embeddings(), ends.get_output_embeddings()
    if not tied or last is None:
        return
    same = first.weight is last.weight or torch.equal(first.weight, last.weight)
    if same:
        last.weight = first.weight
    else:
        ends.all_tied_weights_keys = {}
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = same


def check_fit(adapter: Path, model: PreTrainedModel, tokens: int) -> None:
    """Try an adapter on its base on the meta device, which `model` is: does it fit, and can it be merged?

    Raises DataError with the two sizes of a tensor that does not fit, or with the reason why it cannot be merged.
    """
    check_adapter(adapter)
    config: Any = config_of(adapter)
    if "init_lora_weights" in config.to_dict():
        config.init_lora_weights = False  # some beginnings are computed from the base's weights
    with torch.device("meta"):
        resized(model, vocabulary_of(adapter, model, tokens))
        try:
            with quiet():
                tried: Any = get_peft_model(model, config)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            if _needs_numbers(error):
                return
            raise _does_not_fit(adapter, str(error)) from error
        wanted = _shapes(tried)
        theirs = shapes_in(adapter)
        for name, shape in wanted.items():
            if theirs.get(name, shape) != shape:
                raise _misfit(adapter, name, str(theirs[name]), str(shape))
        if theirs and not theirs.keys() & wanted.keys():
            raise DataError("none of the adapter's weights belongs to a layer of its base", str(adapter), MERGED)
        try:
            with quiet():
                tried.merge_and_unload()
        except UNMERGED as error:
            if not _needs_numbers(error):
                raise _cannot_merge(adapter, error) from error


def _needs_numbers(error: Exception) -> bool:
    """Return whether something fails for being tried without numbers: it is then seen when it is opened."""
    return "meta" in str(error)


def _shapes(model: Any) -> Mapping[str, tuple[int, ...]]:
    with quiet():
        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name.removeprefix(PREFIX): tuple(weight.shape) for name, weight in weights.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to themselves what PEFT says of its own future, and what we see to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def weights_with(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the full weights of a model with its LoRA adapter merged, by the base's own names; it stays as it is.

    Weights that the adapter changes are fp32, since what it has learnt would be lost among the eight bits of bf16.
    """
    base: nn.Module = model.get_base_model()
    weights = weights_beneath(base)
    for name, module in base.named_modules():
        if hasattr(module, "get_delta_weight"):
            # The experts of a mixture are parameters, each of several under a wrapper of its own around the others'.
            inner = getattr(module, "parameter_name", "weight")
            under = getattr(module.get_base_layer(), inner).detach()
            changed = under.float() + module.get_delta_weight("default").detach().float()
            weights[own_name(f"{name}.{inner}")] = changed
        elif hasattr(module, "modules_to_save"):
            for inner, weight in module.modules_to_save["default"].state_dict().items():
                weights[f"{name}.{inner}"] = weight
    return weights


def weights_beneath(base: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's own weights by their own names, without the adapter's that stand among them."""
    weights = base.state_dict()
    own = (name for name in weights if "lora_" not in name and ".modules_to_save." not in name)
    return {own_name(name): weights[name] for name in own}


def own_name(name: str) -> str:
    """Return a weight the name that it has without an adapter around it, or several inside each other."""
    return ".".join(part for part in name.split(".") if part not in AROUND)
