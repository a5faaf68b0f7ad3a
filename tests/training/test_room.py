"""What goes through a GPU at once, and layers that are run otherwise where they learn."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from alignkit.contract.kinds import Policy
from alignkit.contract.settings import LoRA
from alignkit.testing import write_tiny_policy
from alignkit.training import room
from alignkit.training.answers import answer_logprobs
from alignkit.training.arithmetic import computing, rounded
from alignkit.training.models import load_policy
from alignkit.training.packing import beneath, last_hidden
from alignkit.training.room import Arrangement, arrange, fitting

PROMPTS, ANSWERS = [[5, 9, 20], [5, 9, 20], [7, 8, 30, 31]], [[40, 41, 42], [50, 51], [60, 61, 62, 63]]
GIB = 2**30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return write_tiny_policy(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    arrange(Arrangement())


def learnt(policy: Policy, precision: Any, lora: LoRA | None = None) -> tuple[float, dict[str, Tensor], int]:
    """Return a loss, the gradients of all weights, and how many bytes were kept for them."""
    torch.manual_seed(0)
    model, _ = load_policy(policy, precision=precision, lora=lora)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with computing(precision), saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = answer_logprobs(model, PROMPTS, ANSWERS).sum()
    loss.backward()
    return loss.item(), {n: w.grad for n, w in model.named_parameters() if w.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_layers_that_are_computed_again_learn_the_same_and_keep_less(
    tiny: Policy, precision: str, lora: LoRA | None
) -> None:
    loss, gradients, kept = learnt(tiny, precision, lora)
    arrange(Arrangement(again=True))
    again, same, less = learnt(tiny, precision, lora)

    assert again == loss
    assert gradients.keys() == same.keys()
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)
    assert less < 0.7 * kept


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("again", [False, True])
def test_layers_that_are_compiled_learn_the_same(tiny: Policy, again: bool) -> None:
    loss, gradients, _ = learnt(tiny, "fp32")
    arrange(Arrangement(again=again, compiles=True))
    found, same, _ = learnt(tiny, "fp32")

    assert found == pytest.approx(loss, abs=1e-4)
    assert all(torch.allclose(gradients[name], same[name], atol=1e-4) for name in gradients)


def test_layers_are_run_as_they_are_where_nothing_is_learnt(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    arrange(Arrangement(again=True))
    model, _ = load_policy(tiny)
    monkeypatch.setattr(room, "checkpoint", None)

    with torch.no_grad():
        answer_logprobs(model, PROMPTS, ANSWERS)


def test_weights_are_rounded_for_a_pass_and_gradients_arrive_in_full(tiny: Policy) -> None:
    model, _ = load_policy(tiny, precision="bf16")
    start, _ = load_policy(tiny, precision="bf16", trainable=False)
    ids = torch.tensor([PROMPTS[0]])

    with computing("bf16"):
        ours, theirs = (last_hidden(one, input_ids=ids, use_cache=False) for one in (model, start))
    ours.float().sum().backward()

    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert {w.grad.dtype for w in beneath(model).model.parameters() if w.grad is not None} == {torch.float32}


def test_nothing_is_rounded_in_fp32(tiny: Policy) -> None:
    model, _ = load_policy(tiny, precision="fp32")

    assert rounded(model, torch.device("cpu"), lambda: model.lm_head.weight) is model.lm_head.weight


@pytest.mark.parametrize(
    ("card", "taken", "kept", "tokens"),
    [
        (80 * GIB, 0, 1, room.MOST),
        (80 * GIB, 33 * GIB, 3e6, 2**13),
        (80 * GIB, 54 * GIB, 3e6, 2**12),
        (80 * GIB, 79 * GIB, 3e6, room.LEAST),
        (80 * GIB, 100 * GIB, 3e6, room.LEAST),
        (80 * GIB, 33 * GIB, 0, room.LEAST),
    ],
)
def test_a_pass_has_as_many_tokens_as_fit_a_card(card: float, taken: float, kept: float, tokens: int) -> None:
    assert fitting(card, taken, kept) == tokens


def test_on_a_processor_a_pass_has_a_fixed_size(tiny: Policy) -> None:
    model, _ = load_policy(tiny)

    assert room.tokens_in_a_pass(model) == 2**11
    assert room.tokens_decoded(model, 77) == 77


def test_a_layer_is_found_whatever_adapters_it_wears(tiny: Policy) -> None:
    plain, _ = load_policy(tiny)
    adapted, _ = load_policy(tiny, lora=LoRA(rank=2))

    assert len(room.layers_of(plain)) == len(room.layers_of(beneath(adapted))) == 2
