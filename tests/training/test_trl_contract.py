"""What we rely on in TRL and transformers: a release that changes it fails here, not in somebody's model."""

import math
import socket

import pytest
import torch
from datasets import Dataset
from transformers import GraniteConfig, RecurrentGemmaConfig, RobertaConfig
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from alignkit.contract.settings import LoRA, Optimisation, Precision, Settings
from alignkit.training.arithmetic import padded
from alignkit.training.classifiers import score_tokens
from alignkit.training.encoding import (
    NOT_LEARNT,
    LabelledTokens,
    TokenPair,
    answered,
    demonstration,
    demonstrations,
    preferences,
)
from alignkit.training.likelihood import train_language_model
from alignkit.training.measures import perplexity
from alignkit.training.miniature import miniature
from alignkit.training.models import (
    adapted_model,
    load_for_reward_training,
    load_policy,
    score_head,
    without_deprecations,
)
from alignkit.training.pair_scores import train_scores

CHAT = [
    {"role": "user", "content": "how are you?"},
    {"role": "assistant", "content": "fine thanks"},
]
STRINGS = [{"prompt": " how are you?", "completion": " fine" * n} for n in (1, 3, 9)] + [
    {"prompt": " how" * 12, "completion": " fine"}
]
PAIRS = [{"prompt": " how", "chosen": " fine", "rejected": " bad" * n} for n in (1, 3, 9)]


class Once(Settings):
    """One step over all rows that leaves the weights as they were."""

    learning_rate: float = 1e-12
    batch: int = 64
    epochs: float = 1.0
    precision: Precision = "fp32"
    optimisation: Optimisation = Optimisation()


def sft_trainer(model, tokenizer, rows, tmp_path, **options):
    with without_deprecations():
        args = SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, **options
        )
        return SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def reward_trainer(model, tokenizer, rows, tmp_path, **options):
    with without_deprecations():
        args = RewardConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, **options
        )
        return RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def test_the_loss_is_the_mean_cross_entropy_of_all_learnt_tokens(policy, stage):
    model, tokenizer = load_policy(policy)
    rows, _ = demonstrations(STRINGS, tokenizer, 64)
    expected = math.log(perplexity(model, rows, tokenizer).value)

    train_language_model(model, rows, stage, Once())

    assert stage.logs[0][2]["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        RobertaConfig(is_decoder=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        RecurrentGemmaConfig(),
        GraniteConfig(logits_scaling=8.0),
    ],
)
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_the_loss_is_that_of_the_models_own_logits(config, lora, policy, stage):
    model, (_, tokenizer) = miniature(config), load_policy(policy)
    rows = [
        LabelledTokens(ids, [NOT_LEARNT, *ids[1:]]) for ids in (list(range(3, 3 + length)) for length in (4, 9, 17))
    ]
    expected = math.log(perplexity(model, rows, tokenizer).value)
    model = adapted_model(model, lora, "CAUSAL_LM", None) if lora else model

    train_language_model(model, rows, stage, Once())

    assert stage.logs[0][2]["loss"] == pytest.approx(expected, abs=1e-4)
    assert stage.logs[0][2]["tokens_per_second"] > 0


def test_the_loss_of_pairs_is_that_of_bradley_and_terry(policy, stage):
    model, tokenizer = load_for_reward_training(policy)
    pairs, _ = preferences(PAIRS, tokenizer, 64)
    chosen, rejected = (
        torch.tensor(score_tokens(model, [getattr(pair, side) for pair in pairs], tokenizer))
        for side in ("chosen", "rejected")
    )

    train_scores(model, pairs, stage, Once())

    expected = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    assert stage.logs[0][2]["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_our_tokens_are_those_of_sft_trainer(policy, tmp_path):
    model, tokenizer = load_policy(policy)
    chats = [{"prompt": CHAT[:1], "completion": CHAT[1:]}]

    for rows in (STRINGS, chats):
        theirs = sft_trainer(model, tokenizer, rows, tmp_path, max_length=None).train_dataset
        ours = [answered(row["prompt"], row["completion"], tokenizer) for row in rows]
        assert [list(row) for row in zip(theirs["input_ids"], theirs["labels"], strict=True)] == [
            list(tokens) for tokens in ours
        ]


def test_our_tokens_are_those_of_reward_trainer(policy, tmp_path):
    model, tokenizer = load_for_reward_training(policy)
    chats = [{"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "bad"}]}]

    for rows in (PAIRS, chats):
        theirs = reward_trainer(model, tokenizer, rows, tmp_path, max_length=None).train_dataset
        ours, _ = preferences(rows, tokenizer, 64)
        assert theirs["chosen_ids"] == [pair.chosen for pair in ours]
        assert theirs["rejected_ids"] == [pair.rejected for pair in ours]


def test_we_count_what_sft_trainer_would_cut_and_drop(policy, tmp_path):
    model, tokenizer = load_policy(policy)

    theirs = sft_trainer(model, tokenizer, STRINGS, tmp_path, max_length=8).train_dataset
    ours, lengths = demonstrations(STRINGS, tokenizer, 8)

    assert len(theirs) == len(STRINGS) - lengths.dropped == 3
    assert theirs["input_ids"] == [tokens.ids for tokens in ours]
    assert theirs["labels"] == [tokens.labels for tokens in ours]
    assert lengths.cut == 1


def test_we_count_what_reward_trainer_would_drop(policy, tmp_path):
    model, tokenizer = load_for_reward_training(policy)

    theirs = reward_trainer(model, tokenizer, PAIRS, tmp_path, max_length=8).train_dataset
    _, lengths = preferences(PAIRS, tokenizer, 8)

    assert len(theirs) == len(PAIRS) - lengths.dropped == 2


def test_a_trained_model_is_in_evaluation_mode_without_gradients(policy, stage):
    model, _ = load_policy(policy)

    train_language_model(model, [LabelledTokens([5, 6, 7], [5, 6, 7])], stage, Once())

    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
def test_a_score_is_read_at_the_token_that_ends_the_answer(policy, left):
    model, tokenizer = load_for_reward_training(policy)
    row = [7, 8, 9, tokenizer.eos_token_id]
    ids, mask = padded([row, row + row], tokenizer.pad_token_id)
    if left:
        ids[0], mask[0] = ids[0].roll(4), mask[0].roll(4)

    with torch.no_grad():
        scores = model(input_ids=ids, attention_mask=mask).logits[:, 0]
        hidden = model.base_model(input_ids=torch.tensor([row])).last_hidden_state
        expected = score_head(model)(hidden)[0, -1, 0]

    torch.testing.assert_close(scores[0], expected, rtol=0, atol=1e-5)


def test_the_head_of_an_adapted_reward_model_is_trained(policy, stage):
    model, _ = load_for_reward_training(policy, LoRA(rank=2))
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}

    train_scores(model, [TokenPair([5, 6, 1], [5, 7, 1], {})], stage, Once(learning_rate=1e-2))

    head = "base_model.model.score.modules_to_save.default.weight"
    assert not torch.equal(dict(model.named_parameters())[head], before[head])


def test_no_socket_is_opened(policy, stage, monkeypatch):
    def refuse(*args):
        raise AssertionError(f"a socket was connected: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("CI", raising=False)
    model, tokenizer = load_policy(policy, lora=LoRA(rank=2))

    train_language_model(model, [LabelledTokens([5, 6, 7], [5, 6, 7])], stage, Once())

    assert stage.save_policy(model, tokenizer).path.is_dir()


def test_what_is_learnt_of_a_chat_is_what_it_says_itself(policy):
    _, tokenizer = load_policy(policy)

    tokens = demonstration({"messages": CHAT}, tokenizer)

    assert tokens == answered(CHAT[:1], CHAT[1:], tokenizer)
