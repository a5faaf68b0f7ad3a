"""A trainer of TRL driven as a stage: figures, checkpoints, exact resumption, and what is not finite."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from trl import SFTConfig, SFTTrainer

from alignkit.contract.row_settings import TrainingSettings
from alignkit.contract.settings import LoRA, Optimisation
from alignkit.errors import NotFiniteError, RecipeError
from alignkit.testing import Left, RecordingStage, write_tiny_policy
from alignkit.training.models import load_policy
from alignkit.training.trainers import micro_batch, run_trainer, trainer_options

SETTINGS = TrainingSettings(learning_rate=1e-3, batch=4, epochs=2, precision="fp32", optimisation=Optimisation())


def even(count):
    return [[(i * 7 + j) % 300 + 3 for j in range(10)] for i in range(count)] * 2


def train(model, tokenizer, rows, stage):
    """Let TRL's trainer for SFT learn rows once each, as they stand."""
    options = trainer_options(model, stage, SETTINGS, len(rows), 10)
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})

    def make():
        args = SFTConfig(**options, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)

    run_trainer(make, stage)


def trained(policy, stage, rows, lora=None):
    torch.manual_seed(1)
    model, tokenizer = load_policy(policy, lora=lora)
    train(model, tokenizer, rows, stage)
    return model


def test_what_a_trainer_sets_in_a_config_is_taken_back(tmp_path):
    torch.manual_seed(0)
    tiny = write_tiny_policy(tmp_path / "tiny")
    config = Qwen3MoeConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    for file in tiny.path.glob("*.safetensors"):
        file.unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(tiny.path)
    model, tokenizer = load_policy(tiny)
    before = model.config.to_dict(), model.generation_config.to_dict()

    train(model, tokenizer, even(4), RecordingStage(tmp_path / "stage"))

    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    assert before[0]["output_router_logits"] is False


def test_a_checkpoint_holds_no_pickled_arguments(policy, stage):
    stage.stop_at = 1
    with pytest.raises(Left):
        trained(policy, stage, even(8))

    assert {file.name for file in stage.again().latest().iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    }


def test_nothing_is_left_in_the_scratch_folder(policy, stage):
    trained(policy, stage, even(4))

    assert list(stage.folder.iterdir()) == []


def test_a_signal_at_the_last_step_is_no_reason_to_leave(policy, stage):
    stage.stop_at = 4

    trained(policy, stage, even(8))

    assert len(stage.logs) == 4


def test_a_batch_that_processes_cannot_share_is_refused(policy, stage):
    stage.world = 3

    with pytest.raises(RecipeError) as caught:
        trained(policy, stage, even(8))

    assert str(caught.value) == "batch: 4 sequences cannot be shared by 3 processes; set it to a multiple of 3"


@pytest.mark.parametrize(
    ("batch", "longest", "tokens", "size"), [(32, 10, 10_000, 32), (32, 100, 1000, 8), (6, 100, 350, 3), (5, 9, 1, 1)]
)
def test_a_batch_is_cut_into_equal_parts_that_fit(batch, longest, tokens, size):
    assert micro_batch(batch, longest, tokens) == size


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.1)], ids=["full", "lora"])
def test_an_interrupted_stage_ends_with_the_same_weights(policy, tmp_path, lora):
    whole = trained(policy, RecordingStage(tmp_path / "whole"), even(11), lora)
    stage = RecordingStage(tmp_path / "parts", stop_at=3)
    with pytest.raises(Left):
        trained(policy, stage, even(11), lora)

    resumed = trained(policy, stage.again(), even(11), lora).state_dict()

    assert all(torch.equal(resumed[name], weight) for name, weight in whole.state_dict().items())


def test_each_step_is_told_with_its_figures(policy, stage):
    trained(policy, stage, even(8))

    assert [(step, of) for step, of, _ in stage.logs] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert set(stage.logs[0][2]) == {
        "loss",
        "learning_rate",
        "grad_norm",
        "entropy",
        "token_accuracy",
        "tokens_per_second",
    }


def test_a_gradient_that_is_not_finite_stops_before_the_weights_take_it(policy, stage):
    model, tokenizer = load_policy(policy)
    with torch.no_grad():
        model.lm_head.weight[5, 5] = torch.inf
    before = model.model.norm.weight.clone()

    with pytest.raises(NotFiniteError) as caught:
        train(model, tokenizer, even(8), stage)

    assert torch.equal(model.model.norm.weight, before)
    assert str(caught.value) == (
        "the gradient of optimiser step 1 is not a finite number; "
        "lower the learning rate, or look for odd rows in the data"
    )


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_a_trained_model_carries_no_patch_of_its_trainer(policy, stage, lora):
    model = trained(policy, stage, even(2), lora)

    assert [name for name, module in model.named_modules() if "forward" in vars(module)] == []


def test_a_copy_of_a_trained_model_runs_its_own_weights(policy, stage):
    model = trained(policy, stage, even(2))
    rows = torch.tensor([[5, 6, 7]])

    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.lm_head.weight)

    assert other(rows).logits.abs().max() == 0
    assert model(rows).logits.abs().max() > 0


def test_a_trained_model_is_in_evaluation_mode_without_gradients(policy, stage):
    model = trained(policy, stage, even(2))

    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())
