"""A trainer driven as a stage: figures, checkpoints, exact resumption, and what is not finite."""

import hashlib

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from alignkit.contract.settings import LoRA, Optimisation, Precision, Settings
from alignkit.errors import NotFiniteError, RecipeError
from alignkit.testing import Left, RecordingStage, write_tiny_policy
from alignkit.training import trainers
from alignkit.training.encoding import LabelledTokens, TokenPair
from alignkit.training.models import load_for_reward_training, load_policy
from alignkit.training.trainers import micro_batch, order_of_rows, train_language_model, train_scores


class Training(Settings):
    learning_rate: float = 1e-3
    batch: int = 4
    epochs: float = 2.0
    precision: Precision = "fp32"
    optimisation: Optimisation = Optimisation()


def even(count):
    rows = [[(i * 7 + j) % 300 + 3 for j in range(10)] for i in range(count)]
    return [LabelledTokens(ids, ids) for ids in rows]


def ragged(count):
    rows = [[(i * 7 + j) % 300 + 3 for j in range(3 + i * 5 % 40)] for i in range(count)]
    return [LabelledTokens(ids, ids) for ids in rows]


def digest(model):
    weights = b"".join(t.detach().float().numpy().tobytes() for t in model.state_dict().values())
    return hashlib.sha256(weights).hexdigest()


def trained(policy, stage, rows, training=None, lora=None):
    torch.manual_seed(1)
    model, _ = load_policy(policy, lora=lora)
    train_language_model(model, rows, stage, training or Training())
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
    model, _ = load_policy(tiny)
    before = model.config.to_dict(), model.generation_config.to_dict()

    train_language_model(model, even(4), RecordingStage(tmp_path / "stage"), Training())

    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    assert before[0]["output_router_logits"] is False


@pytest.mark.parametrize(
    ("rows", "micro", "expected"),
    [(16, 4, (4, 2)), (14, 4, (2, 4)), (11, 4, (4, 2)), (13, 4, (1, 8)), (6, 8, (8, 1)), (22, 2, (2, 4))],
)
def test_the_last_batch_falls_into_equal_parts(rows, micro, expected):
    options = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 8 // micro}

    found = trainers._in_equal_parts(options, rows)

    assert tuple(found.values()) == expected


def test_a_reward_model_does_not_depend_on_how_many_pairs_go_at_once(policy, tmp_path, monkeypatch):
    rows = [TokenPair([5 + i, 6, 7, 8 + i], [9, 5 + i, 4], {}) for i in range(14)]
    found = []
    for name, tokens in (("whole", 10_000), ("parts", 35)):
        monkeypatch.setattr(trainers, "tokens_in_a_pass", lambda layers, width, tokens=tokens: tokens)
        torch.manual_seed(1)
        model, _ = load_for_reward_training(policy)
        train_scores(model, rows, RecordingStage(tmp_path / name), Training(batch=8, epochs=1.0))
        found.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))

    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [even(22), ragged(22)], ids=["random", "grouped by length"])
@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.1)], ids=["full", "lora"])
@pytest.mark.parametrize("stop", [3, 8], ids=["in the first epoch", "in the second"])
def test_an_interrupted_stage_ends_with_the_same_weights(policy, tmp_path, rows, lora, stop):
    whole = digest(trained(policy, RecordingStage(tmp_path / "whole"), rows, lora=lora))

    stage = RecordingStage(tmp_path / "parts", stop_at=stop)
    with pytest.raises(Left):
        trained(policy, stage, rows, lora=lora)
    resumed = digest(trained(policy, stage.again(), rows, lora=lora))

    assert resumed == whole


def test_an_interrupted_reward_stage_ends_with_the_same_weights(policy, tmp_path):
    pairs = [TokenPair(a.ids, b.ids, {}) for a, b in zip(ragged(22), even(22), strict=True)]

    def run(stage):
        torch.manual_seed(1)
        model, _ = load_for_reward_training(policy, LoRA(rank=2))
        train_scores(model, pairs, stage, Training())
        return digest(model)

    whole = run(RecordingStage(tmp_path / "whole"))
    stage = RecordingStage(tmp_path / "parts", stop_at=4)
    with pytest.raises(Left):
        run(stage)

    assert run(stage.again()) == whole


def test_the_same_seed_gives_the_same_weights(policy, tmp_path):
    first, second = (digest(trained(policy, RecordingStage(tmp_path / name), ragged(9))) for name in "ab")

    assert first == second


def test_another_seed_gives_another_order(policy, tmp_path):
    first, second = (digest(trained(policy, RecordingStage(tmp_path / str(s), seed=s), even(9))) for s in (1, 2))

    assert first != second


@pytest.mark.parametrize("rows", [even(16), ragged(16)], ids=["even", "ragged"])
def test_accumulation_changes_nothing(policy, tmp_path, rows, monkeypatch):
    whole = trained(policy, RecordingStage(tmp_path / "whole"), rows, Training(batch=8))
    monkeypatch.setattr(trainers, "ACTIVATIONS_ON_A_CPU", 0)
    parts = trained(policy, RecordingStage(tmp_path / "parts"), rows, Training(batch=8))

    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], weight, rtol=0, atol=2e-5)


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


def test_a_gradient_that_is_not_finite_stops_before_the_weights_take_it(policy, stage):
    model, _ = load_policy(policy)
    with torch.no_grad():
        model.lm_head.weight[5, 5] = torch.inf
    before = model.model.norm.weight.clone()

    with pytest.raises(NotFiniteError) as caught:
        train_language_model(model, even(8), stage, Training())

    assert torch.equal(model.model.norm.weight, before)
    assert str(caught.value) == (
        "the gradient of optimiser step 1 is not a finite number; "
        "lower the learning rate, or look for odd rows in the data"
    )


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


@pytest.mark.parametrize("lengths", [[5] * 30, [1 + i * 7 % 50 for i in range(30)]], ids=["even", "ragged"])
def test_each_epoch_takes_every_row_once(lengths):
    order = order_of_rows(lengths, 4, 2.0, 17)

    assert sorted(order[:30]) == sorted(order[30:]) == list(range(30))
    assert order[:30] != order[30:]


def test_ragged_rows_are_grouped_by_length():
    lengths = [1 + i * 37 % 100 for i in range(100)]

    order = order_of_rows(lengths, 10, 1.0, 17)

    groups = [[lengths[row] for row in order[i : i + 10]] for i in range(0, 100, 10)]
    assert all(max(group) - min(group) == 9 for group in groups)


def test_half_an_epoch_takes_half_of_the_rows():
    assert len(order_of_rows([3] * 10, 4, 0.5, 17)) == 5
