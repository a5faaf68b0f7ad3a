"""A score on any decoder: trained, saved, opened again, and read at an answer's last token."""

import pytest
import torch
from peft import PeftModel
from tiny_models import llama_config
from transformers import AutoModelForCausalLM, BartConfig, GraniteConfig, LlamaConfig, MambaConfig

from alignkit.contract.kinds import Policy, RewardModel
from alignkit.contract.settings import LoRA
from alignkit.learn.models import load_critic, load_for_reward_training, load_reward_model, open_config, score_head
from alignkit.learn.packing import decoder_of
from alignkit.learn.saving import save_reward
from alignkit.learn.scorer import scorer_for, scorer_named_by
from alignkit.testing import write_tiny_policy

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "granite": lambda size: GraniteConfig(vocab_size=size, num_key_value_heads=2, **SMALL),
    "mamba": lambda size: MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=8),
    "bart's decoder": lambda size: BartConfig(
        vocab_size=size, num_labels=1, d_model=32, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=48
    ),
}
IDS = torch.arange(5, 17)[None]


@pytest.fixture(params=CONFIGS)
def policy(request: pytest.FixtureRequest, tmp_path) -> Policy:
    """A policy of an architecture for which transformers has no classifier with a score, with the tiny tokenizer."""
    tiny = write_tiny_policy(tmp_path / "tiny")
    config = CONFIGS[request.param](open_config(tiny.path).vocab_size)
    config.bos_token_id = config.eos_token_id = 1
    config.pad_token_id = 0
    torch.manual_seed(0)
    for file in tiny.path.glob("*.safetensors"):
        file.unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(tiny.path)
    return tiny


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
@torch.no_grad()
def test_a_reward_model_is_saved_and_opened_as_it_was(policy, tmp_path, lora) -> None:
    model, tokenizer = load_for_reward_training(policy, lora)
    expected = model(input_ids=IDS).logits

    save_reward(model, tokenizer, tmp_path / "saved", 0.5, 2.0)
    again, _, mean, std = load_reward_model(RewardModel(name="r", fingerprint="0", path=tmp_path / "saved"))

    assert (mean, std, expected.shape) == (0.5, 2.0, (1, 1))
    torch.testing.assert_close(again(input_ids=IDS).logits, expected)
    assert isinstance(model, PeftModel) == (lora is not None)


@torch.no_grad()
def test_its_body_is_the_policy_and_its_score_that_of_the_last_token(policy) -> None:
    model, _ = load_for_reward_training(policy)
    plain = AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.float32).eval()
    hidden = decoder_of(plain)(input_ids=IDS, use_cache=False).last_hidden_state

    expected = score_head(model)(hidden)[:, -1]

    torch.testing.assert_close(model(input_ids=IDS).logits, expected)
    padded, mask = torch.nn.functional.pad(IDS, (0, 3)), torch.nn.functional.pad(torch.ones_like(IDS), (0, 3))
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits, expected)
    torch.testing.assert_close(model(input_ids=padded).logits, expected)  # the last token that is not pad


@torch.no_grad()
def test_a_critic_begins_with_the_scores_of_the_reward_model(policy, tmp_path) -> None:
    model, tokenizer = load_for_reward_training(policy)
    save_reward(model, tokenizer, tmp_path / "saved", 0.5, 2.0)

    critic, _ = load_critic(RewardModel(name="r", fingerprint="0", path=tmp_path / "saved"))

    torch.testing.assert_close(critic(input_ids=IDS).logits, (model(input_ids=IDS).logits - 0.5) / 2.0)


def test_classifiers_of_transformers_are_taken_where_they_are_decoders_with_a_score() -> None:
    ours = {name: scorer_for(make(100)).__name__ for name, make in CONFIGS.items()}

    assert ours == {
        "granite": "GraniteForSequenceClassification",
        "mamba": "MambaForSequenceClassification",
        "bart's decoder": "BartWithScore",
    }
    assert scorer_for(llama_config(100)).__name__ == "AutoModelForSequenceClassification"
    assert scorer_named_by(BartConfig(architectures=["BartForSequenceClassification"])).__name__ == (
        "AutoModelForSequenceClassification"
    )
    assert scorer_named_by(LlamaConfig()).__name__ == "AutoModelForSequenceClassification"
