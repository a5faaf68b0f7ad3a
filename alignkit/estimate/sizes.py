"""How large a model is, told by its config alone: it is built on the meta device, which holds no numbers."""

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from alignkit.contract.settings import LoRA
from alignkit.training.models import adapted_model
from alignkit.training.room import numbers_cached
from alignkit.training.scorer import made_scorer


class Sizes(NamedTuple):
    """What counts for memory and time; weights are counted, not bytes."""

    weights: int
    trained: int
    layers: int
    width: int
    vocabulary: int
    cache: int
    """Numbers that a token leaves in the cache of decoding."""


def sizes_of(config: Any, lora: LoRA | None = None, upper: int | None = None, scores: bool = False) -> Sizes:
    """Count a model's weights, all of them trained, or an adapter's, or those of so many upper layers.

    `scores`: it has one score for a head instead of logits.
    """
    text = config.get_text_config()
    with torch.device("meta"):
        model = built(config, scores)
        if lora:
            model = adapted_model(model, lora, "SEQ_CLS" if scores else "CAUSAL_LM", None)
    weights = sum(weight.numel() for weight in model.parameters())
    trained = [weight.numel() for weight in model.parameters() if weight.requires_grad]
    layers = int(text.num_hidden_layers)
    if upper and not lora:
        inside = weights - _outside(model)
        trained = [inside * min(upper, layers) // layers]
    return Sizes(weights, sum(trained), layers, int(text.hidden_size), int(text.vocab_size), numbers_cached(config))


def built(config: Any, scores: bool = False) -> Any:
    """Build a model with no weights of anybody's, in fp32."""
    config, language_model = copy.deepcopy(config), cast("Any", AutoModelForCausalLM)
    if not scores:
        return language_model.from_config(config, trust_remote_code=False, dtype=torch.float32)
    config.num_labels = 1
    return made_scorer(config)


def _outside(model: nn.Module) -> int:
    """Count the weights of embeddings and head, each matrix once."""
    ends: Any = model
    found = {
        id(part.weight): part.weight.numel()
        for part in (ends.get_input_embeddings(), ends.get_output_embeddings())
        if part
    }
    return sum(found.values())
