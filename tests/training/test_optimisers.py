"""AdamW with its moments in fp32, or in 8 bits."""

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignkit.contract.settings import Optimisation
from alignkit.errors import RecipeError, StageError
from alignkit.training import optimisers, room
from alignkit.training.optimisers import STATE_BYTES, States
from alignkit.training.room import AS_IT_IS, Arrangement, arrange
from alignkit.training.step import Learner, load_learner, make_learner, save_learner, take_step

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason='pip install "alignkit[8bit]"'
)
WIDTH = 128


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    arrange(AS_IT_IS)


def learner(states: States, seed: int = 0) -> Learner:
    """Make a learner of two weights of 16,384 numbers, and of two smaller ones that are kept in fp32."""
    arrange(Arrangement(states=states))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
    return make_learner(model, 1e-3, Optimisation())


def losses(taught: Learner, steps: range) -> list[float]:
    def error(batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (taught.model(batch) - batch.roll(1, dims=1)).square().mean(), {}

    batches = (torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(step)) for step in steps)
    return [take_step(taught, [batch], error)["loss"] for batch in batches]


def test_states_in_8_bits_without_bitsandbytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(RecipeError) as refusal:
        optimisers.check("8bit")

    assert str(refusal.value) == (
        'optimiser_states = "8bit": the package bitsandbytes is missing; pip install "alignkit[8bit]"'
    )


def test_states_in_fp32_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    optimisers.check("fp32")


@needs_bitsandbytes
def test_states_in_8_bits_are_a_quarter_and_learn_the_same_to_a_hundredth() -> None:
    full, small = learner("fp32"), learner("8bit")
    theirs, ours = losses(full, range(20)), losses(small, range(20))
    weight = small.model[0].weight  # type: ignore[index]
    kept = optimisers.state_of(small.optimizer, weight)

    assert theirs[-1] < theirs[0] * 0.99
    assert ours == pytest.approx(theirs, rel=0.01)
    assert ours != theirs
    sized = sum(tensor.nbytes for kind, tensor in kept.items() if kind not in ("step", *optimisers.TABLES))
    assert sized == STATE_BYTES["8bit"] * weight.numel()


@needs_bitsandbytes
def test_a_learner_with_8_bit_states_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    through, first, second = learner("8bit"), learner("8bit"), learner("8bit", seed=1)
    losses(first, range(4))
    save_learner(first, tmp_path / "policy.safetensors")
    load_learner(second, tmp_path / "policy.safetensors")

    losses(through, range(8))
    losses(second, range(4, 8))

    assert second.steps == 8
    for one, other in zip(through.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
        theirs = optimisers.state_of(second.optimizer, other)
        assert all(
            torch.equal(kept, theirs[kind]) for kind, kept in optimisers.state_of(through.optimizer, one).items()
        )


@needs_bitsandbytes
@pytest.mark.parametrize(("before", "now"), [("fp32", "8bit"), ("8bit", "fp32")])
def test_a_checkpoint_with_states_that_are_kept_otherwise_is_refused(
    tmp_path: Path, before: States, now: States
) -> None:
    taught, file = learner(before), tmp_path / "policy.safetensors"
    losses(taught, range(1))
    save_learner(taught, file)

    with pytest.raises(StageError) as refusal:
        load_learner(learner(now), file)

    assert (refusal.value.problem, refusal.value.remedy) == (
        f"the checkpoint has states of the optimiser in {before}, and this machine keeps them in {now}",
        f"go on with the optimiser_states of before, or remove the folder {tmp_path} to start over",
    )


@needs_bitsandbytes
def test_a_library_that_takes_no_step_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> None:
        raise NotImplementedError("no kernel")

    monkeypatch.setattr("bitsandbytes.optim.AdamW8bit.step", fails)
    with pytest.raises(RecipeError) as refusal:
        optimisers.check("8bit")

    version = importlib.metadata.version("bitsandbytes")
    assert str(refusal.value) == (
        f'optimiser_states = "8bit": bitsandbytes {version} takes no step on this machine\'s cpu (NotImplementedError: '
        'no kernel); upgrade it, or set optimiser_states = "fp32"'
    )


def test_a_pass_on_a_gpu_has_more_room_beside_8_bit_states() -> None:
    model = learner("fp32").model
    sizes = []
    for states in ("fp32", "8bit"):
        arrange(Arrangement(states=states))  # type: ignore[arg-type]
        sizes.append(room.taken_by_learning(model.parameters()))

    weights = sum(weight.numel() for weight in model.parameters())
    assert sizes == [12 * weights, (4 + STATE_BYTES["8bit"]) * weights]
