"""Run our passes on tensors of a device that is not there: where each lies is checked op by op, nothing is computed.

A script of its own, since it gives the whole process a backend. It prints, as JSON, what each pass failed with.
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from alignkit.contract.settings import Optimisation
from alignkit.training import losses, output_layer, packing, rollouts
from alignkit.training.layouts import ValueHead
from alignkit.training.step import make_learner
from alignkit.training.trunk import Trunk

NAME = "absent"
PROMPTS, ANSWERS = [[1, 5, 9], [1, 7, 12, 13], [1, 5, 9]], [[30, 44, 60], [99, 100], [8, 9, 10, 11]]
SHAPE: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def moved(model: Any) -> Any:
    """Put a model's weights on the device."""
    for module in model.modules():
        for table, wrap in ((module._parameters, nn.Parameter), (module._buffers, Tensor)):
            for name, tensor in [one for one in table.items() if one[1] is not None]:
                table[name] = wrap(torch.empty(tensor.shape, device=NAME, dtype=tensor.dtype))
    return model.eval()


def absent(value: Any) -> Any:
    """Return a tensor of that shape on the device; anything else as it is."""
    return torch.empty(value.shape, dtype=value.dtype, device=NAME) if isinstance(value, Tensor) else value


def real_then_moved(lay: packing.Lay) -> packing.Lay:
    """Lay rows out with real numbers, as lengths must be known, and bring them to the device."""

    def laid(prompts: Any, answers: Any, device: torch.device) -> packing.Pack:
        with unset_fake_temporarily():
            made = lay(prompts, answers, torch.device("cpu"))
        return packing.Pack(**tree_map(absent, vars(made)))

    return laid


pack, padded = real_then_moved(packing.pack), real_then_moved(packing.padded)
plain_to, plain_tensor = Tensor.to, torch.tensor


def to(tensor: Tensor, *where: Any, **more: Any) -> Tensor:
    """Copy to the device, which has no kernel for it."""
    asked = more.get("device", next((one for one in where if isinstance(one, str | torch.device)), None))
    other = next((one for one in where if isinstance(one, Tensor)), None)
    device = other.device if other is not None else asked and torch.device(asked)
    if not device or device.type == tensor.device.type:
        return plain_to(tensor, *where, **more)
    return torch.empty(tensor.shape, device=device, dtype=tensor.dtype if other is None else other.dtype)


def tensor_of(data: Any, dtype: Any = None, device: Any = None, **more: Any) -> Tensor:
    """Make a tensor on the device."""
    if device is None or torch.device(device).type != NAME:
        return plain_tensor(data, dtype=dtype, device=device, **more)
    with unset_fake_temporarily():
        made = plain_tensor(data, dtype=dtype)
    return torch.empty(made.shape, dtype=made.dtype, device=device)


def passes(model: Any, scorer: Any, cut: Trunk) -> dict[str, Callable[[], Tensor]]:
    """Return what is tried, by name and in this order; each gives a tensor that must lie on the device."""

    def packed() -> Tensor:
        table = output_layer.logprobs_of(model, pack(PROMPTS, ANSWERS, model.device))
        table.sum().backward()
        return model.lm_head.weight.grad

    def right_padded() -> Tensor:
        table = output_layer.logprobs_of(model, padded(PROMPTS, ANSWERS, model.device))
        table.sum().backward()
        return table

    def reading() -> Tensor:
        rows = pack(PROMPTS, ANSWERS, model.device)
        hidden = packing.hidden_before_answers(model, rows)
        with torch.no_grad():
            said = output_layer.chosen_tokens(hidden, output_layer.head_of(model), rows.targets)
        return rows.as_table(said.logprobs + said.entropy)

    def own_logits() -> Tensor:
        return rollouts.answer_logprobs(model, PROMPTS, ANSWERS)

    def advantages() -> Tensor:
        mask = rollouts.answer_mask(ANSWERS, NAME)
        kl, values = torch.zeros(3, 4, device=NAME), torch.zeros(3, 4, device=NAME)
        rewards = losses.token_rewards(torch.zeros(3, device=NAME), kl, mask, 0.1)
        return losses.whiten(losses.estimate_advantages(rewards, values, mask, 1.0, 0.95)[0], mask)

    def of_groups() -> Tensor:
        scores = torch.zeros(8, device=NAME)
        return losses.group_advantages(scores, 4, "group") + losses.share_of_equal_groups(scores, 4)

    def drawing() -> Tensor:
        tokens, logprobs = rollouts.draw(torch.zeros(3, 50, device=NAME), 1.0, torch.rand(3))
        return tokens + logprobs

    def step() -> Tensor:
        learner = make_learner(model, 1e-3, Optimisation())
        assert learner.optimizer.defaults["fused"]
        learner.optimizer.step()
        return learner.optimizer.state[model.lm_head.weight]["exp_avg"]

    def critic() -> Tensor:
        return rollouts.answer_values(rollouts.Critic(scorer), PROMPTS, ANSWERS)

    def value_head() -> Tensor:
        return ValueHead(32, torch.device(NAME))(torch.zeros(3, 32, device=NAME))

    def trunk() -> Tensor:
        rows = pack(PROMPTS, ANSWERS, model.device)
        return cut.hidden(rows, cut.states(rows), cut.upper)

    def mixed() -> Tensor:
        """Do what must fail."""
        return torch.zeros(3, device=NAME) + torch.zeros(3)

    tried = (packed, right_padded, reading, own_logits, advantages, of_groups, drawing, step, critic, value_head, trunk)
    return {one.__name__: one for one in (*tried, mixed)}


def failure(attempt: Callable[[], Tensor]) -> str:
    """Return what went wrong; empty where the result lies on the device."""
    try:
        made = attempt()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "" if made.device.type == NAME else f"it lies on {made.device}"


def main() -> None:
    _setup_privateuseone_for_python_backend(NAME)
    models = LlamaForCausalLM(LlamaConfig(**SHAPE)), LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1))
    models[0].set_attn_implementation(packing.PACKED)
    cut = Trunk.cut(models[0].eval(), 1, packing.pack)
    output_layer.head_of(models[0])  # it compares numbers, and remembers
    rollouts.padded = padded
    Tensor.to, torch.tensor, torch.autocast = to, tensor_of, lambda *_, **__: nullcontext()
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(total_memory=2**36)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, scorer = map(moved, models)
        found = {name: failure(one) for name, one in passes(model, scorer, cut).items()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
