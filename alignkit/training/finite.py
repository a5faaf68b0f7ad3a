"""Weights that are no numbers are noticed before they are saved."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from alignkit.errors import NotFiniteError


def check_finite(model: PreTrainedModel | PeftModel) -> None:
    """Raise NotFiniteError where a weight is NaN or infinite, as the last step may leave it: no further loss tells."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise NotFiniteError(
                f"after the last step {name} holds what is not a finite number",
                remedy="lower the learning rate, or look at the data of the last steps",
            )
