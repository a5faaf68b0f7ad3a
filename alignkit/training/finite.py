"""Weights that are no numbers are noticed before they are saved."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from alignkit.errors import NotFiniteError
from alignkit.training import parallel, sharding


def check_finite(model: PreTrainedModel | PeftModel) -> None:
    """Raise NotFiniteError where a weight is NaN or infinite, as the last step may leave it: no further loss tells."""
    weights = {name: weight for name, weight in sharding.weights_of(model).items() if weight.is_floating_point()}
    odd = [not bool(torch.isfinite(sharding.own_part(weight)).all()) for weight in weights.values()]
    for name, is_odd in zip(weights, parallel.any_of_each(odd), strict=True):
        if is_odd:
            raise NotFiniteError(
                f"after the last step {name} holds what is not a finite number",
                remedy="lower the learning rate, or look at the data of the last steps",
            )
