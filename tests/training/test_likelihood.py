"""Rows and pairs that our own loop learns from: exact over any passes, resumed bit by bit, and TRL's losses."""

import copy
import hashlib

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, OpenAIGPTConfig, RobertaConfig
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from alignkit.contract.row_settings import TrainingSettings
from alignkit.contract.settings import LoRA, Optimisation
from alignkit.errors import NotFiniteError
from alignkit.testing import Left, RecordingStage
from alignkit.training import packing
from alignkit.training.encoding import NOT_LEARNT, LabelledTokens, TokenPair
from alignkit.training.likelihood import learnt_tokens, parted_labels, summed, train_language_model
from alignkit.training.miniature import miniature
from alignkit.training.models import load_for_reward_training, load_policy, without_deprecations
from alignkit.training.pair_scores import parted_pair, train_scores
from alignkit.training.row_order import rows_of_step

SETTINGS = TrainingSettings(learning_rate=1e-3, batch=4, epochs=2, precision="fp32", optimisation=Optimisation())


def even(count):
    rows = [[(i * 7 + j) % 300 + 3 for j in range(10)] for i in range(count)]
    return [LabelledTokens(ids, ids) for ids in rows]


def ragged(count):
    """Rows of several lengths, of which runs in the middle and at the end are learnt."""
    rows = [[(i * 7 + j) % 300 + 3 for j in range(4 + i * 5 % 40)] for i in range(count)]
    return [LabelledTokens(ids, [token if j % 7 > 2 else NOT_LEARNT for j, token in enumerate(ids)]) for ids in rows]


def pairs(count):
    return [TokenPair([5 + i, 6, 7, 8 + i], [5 + i, *[9 + i] * (1 + i % 5), 4], {}) for i in range(count)]


def digest(model):
    weights = b"".join(t.detach().float().numpy().tobytes() for t in model.state_dict().values())
    return hashlib.sha256(weights).hexdigest()


def trained(policy, stage, rows, lora=None, **settings):
    torch.manual_seed(1)
    model, _ = load_policy(policy, lora=lora)
    train_language_model(model, rows, stage, SETTINGS.model_copy(update=settings))
    return model


def scored(policy, stage, rows, lora=None, centre=0.0, **settings):
    torch.manual_seed(1)
    model, _ = load_for_reward_training(policy, lora)
    train_scores(model, rows, stage, SETTINGS.model_copy(update=settings), centre)
    return model


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.1)], ids=["full", "lora"])
@pytest.mark.parametrize("stop", [3, 8], ids=["in the first epoch", "in the second"])
def test_an_interrupted_stage_ends_with_the_same_weights(policy, tmp_path, lora, stop):
    whole = digest(trained(policy, RecordingStage(tmp_path / "whole"), ragged(22), lora))

    stage = RecordingStage(tmp_path / "parts", stop_at=stop)
    with pytest.raises(Left):
        trained(policy, stage, ragged(22), lora)

    assert digest(trained(policy, stage.again(), ragged(22), lora)) == whole


def test_an_interrupted_reward_stage_ends_with_the_same_weights(policy, tmp_path):
    whole = digest(scored(policy, RecordingStage(tmp_path / "whole"), pairs(22), LoRA(rank=2)))

    stage = RecordingStage(tmp_path / "parts", stop_at=4)
    with pytest.raises(Left):
        scored(policy, stage, pairs(22), LoRA(rank=2))

    assert digest(scored(policy, stage.again(), pairs(22), LoRA(rank=2))) == whole


def test_the_same_seed_gives_the_same_weights_and_another_one_another_order(policy, tmp_path):
    seeds = {"a": 1, "b": 1, "c": 2}
    a, b, c = (digest(trained(policy, RecordingStage(tmp_path / name, seed=seeds[name]), ragged(9))) for name in seeds)

    assert a == b != c


@pytest.mark.parametrize("train", [trained, scored])
def test_how_much_goes_through_at_once_changes_nothing(policy, tmp_path, monkeypatch, train):
    rows = pairs(14) if train is scored else ragged(14)
    whole = train(policy, RecordingStage(tmp_path / "whole"), rows, batch=8)
    monkeypatch.setattr(packing, "TOKENS_IN_A_PACK", 16)
    parts = train(policy, RecordingStage(tmp_path / "parts"), rows, batch=8)

    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], weight, rtol=0, atol=2e-5)


def test_dropout_is_on_while_rows_are_learnt(policy, tmp_path):
    with_it, without = (
        digest(trained(policy, RecordingStage(tmp_path / str(share)), even(8), LoRA(rank=2, dropout=share)))
        for share in (0.5, 0.0)
    )

    assert with_it != without


def test_each_step_is_told_with_its_figures(policy, stage, tmp_path):
    trained(policy, stage, even(8))
    scored(policy, other := RecordingStage(tmp_path / "pairs"), pairs(8))

    speed = {"learning_rate", "grad_norm", "rows_per_second", "tokens_per_second"}
    assert [(step, of) for step, of, _ in stage.logs] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert set(stage.logs[0][2]) == {"loss", "entropy", "token_accuracy", *speed}
    assert set(other.logs[0][2]) == {"loss", "accuracy", "margin", "mean_reward", *speed}


def test_weights_that_are_not_finite_stop_before_a_step(policy, stage):
    model, _ = load_policy(policy)
    with torch.no_grad():
        model.lm_head.weight[5, 5] = torch.inf
    before = model.model.norm.weight.clone()

    with pytest.raises(NotFiniteError):
        train_language_model(model, even(8), stage, SETTINGS)

    assert torch.equal(model.model.norm.weight, before)


def test_a_row_is_cut_around_what_is_learnt():
    row = LabelledTokens([1, 2, 3, 4, 5, 6], [NOT_LEARNT, NOT_LEARNT, 3, NOT_LEARNT, 5, NOT_LEARNT])
    whole = LabelledTokens([1, 2, 3], [1, 2, 3])

    assert parted_labels(row) == ([1, 2], [3, 4, 5], [True, False, True])
    assert parted_labels(whole) == ([1], [2, 3], [True, True])
    assert (learnt_tokens(row), learnt_tokens(whole)) == (2, 2)


def test_a_pair_is_cut_behind_what_its_sides_share():
    assert parted_pair(TokenPair([1, 2, 3], [1, 2, 4, 5], {})) == ([1, 2], [3], [4, 5])
    assert parted_pair(TokenPair([1, 2], [1, 2, 4], {})) == ([1, 2], [], [4])


@pytest.mark.parametrize(
    "config",
    [GPT2Config(), OpenAIGPTConfig(), RobertaConfig(is_decoder=True)],
    ids=["packed", "padded", "by its own logits"],
)
def test_what_is_said_of_a_row_is_what_the_model_says_of_it_alone(config):
    model = miniature(config).eval()
    rows = [LabelledTokens([token % 100 + 3 for token in row.ids], row.labels) for row in ragged(5)]

    with torch.no_grad():
        found = torch.stack(summed(model, rows))

        for place, row in enumerate(rows):
            logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, :-1]
            learnt = torch.tensor(row.labels)[1:] != NOT_LEARNT
            odds, targets = logits[learnt].log_softmax(-1), torch.tensor(row.ids)[1:][learnt]
            expected = [
                odds.gather(-1, targets[:, None]).sum(),
                -(odds.exp() * odds).sum(),
                (odds.argmax(-1) == targets).sum(),
            ]
            torch.testing.assert_close(found[:, place], torch.stack(expected).float(), rtol=1e-4, atol=1e-4)


def options(tmp_path, **more):
    return {
        "output_dir": str(tmp_path / "trl"),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": SETTINGS.learning_rate,
        "max_length": None,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }


def in_order(rows, seed):
    steps = -(-len(rows) // SETTINGS.batch)
    return [rows[place] for step in range(steps) for place in rows_of_step(len(rows), step, SETTINGS.batch, seed)]


def assert_same_steps(trainer, stage, names):
    with without_deprecations():
        trainer.train()
    theirs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(theirs) == len(stage.logs) > 3
    for their, (_, _, our) in zip(theirs, stage.logs, strict=True):
        for name, known_as in names.items():
            assert our[name] == pytest.approx(their[known_as], abs=1e-4), name


def test_the_steps_are_those_of_sft_trainer(policy, stage, tmp_path):
    model, tokenizer = load_policy(policy)
    rows, other = ragged(19), copy.deepcopy(model)
    columns = {name: [getattr(row, name) for row in in_order(rows, stage.seed)] for name in ("ids", "labels")}
    data = Dataset.from_dict({"input_ids": columns["ids"], "labels": columns["labels"]})
    with without_deprecations():
        args = SFTConfig(**options(tmp_path), dataset_kwargs={"skip_prepare_dataset": True})
        trainer = SFTTrainer(model=other, args=args, train_dataset=data, processing_class=tokenizer)

    train_language_model(model, rows, stage, SETTINGS.model_copy(update={"epochs": 1.0}))

    names = {"loss": "loss", "grad_norm": "grad_norm", "entropy": "entropy", "token_accuracy": "mean_token_accuracy"}
    assert_same_steps(trainer, stage, names | {"learning_rate": "learning_rate"})


@pytest.mark.parametrize("centre", [0.0, 0.1])
def test_the_steps_are_those_of_reward_trainer(policy, stage, tmp_path, centre):
    model, tokenizer = load_for_reward_training(policy)
    rows, other = pairs(20), copy.deepcopy(model)
    ordered = in_order(rows, stage.seed)
    data = Dataset.from_dict({"chosen_ids": [p.chosen for p in ordered], "rejected_ids": [p.rejected for p in ordered]})
    with without_deprecations():
        args = RewardConfig(**options(tmp_path), center_rewards_coefficient=centre or None)
        trainer = RewardTrainer(model=other, args=args, train_dataset=data, processing_class=tokenizer)

    train_scores(model, rows, stage, SETTINGS.model_copy(update={"epochs": 1.0}), centre)

    assert_same_steps(trainer, stage, {name: name for name in ("loss", "grad_norm", "accuracy", "margin")})
