"""A score on any decoder: trained, saved, opened again, and read at an answer's last token."""

import pytest
import torch
from peft import PeftModel
from tiny_models import llama_config
from transformers import AutoModelForCausalLM, BambaConfig, BartConfig, GraniteConfig, LlamaConfig, MambaConfig

from alignkit.contract.kinds import Policy, RewardModel
from alignkit.contract.settings import LoRA
from alignkit.testing import write_tiny_policy
from alignkit.training.classifiers import score_tokens
from alignkit.training.configs import open_config
from alignkit.training.models import load_critic, load_for_reward_training, load_policy, load_reward_model, score_head
from alignkit.training.packing import decoder_of
from alignkit.training.saving import save_policy, save_reward
from alignkit.training.scorer import scorer_for, scorer_named_by
from alignkit.training.weight_files import ScoreScale

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "granite": lambda size: GraniteConfig(vocab_size=size, num_key_value_heads=2, **SMALL),
    "mamba": lambda size: MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=8),
    "bart's decoder": lambda size: BartConfig(
        vocab_size=size, num_labels=1, d_model=32, decoder_layers=2, decoder_attention_heads=2,
        decoder_ffn_dim=48,
    ),
    "bamba": lambda size: BambaConfig(
        vocab_size=size, num_key_value_heads=2, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16,
        mamba_d_state=8, mamba_chunk_size=8, **SMALL,
    ),
}  # fmt: skip
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

    save_reward(model, tokenizer, tmp_path / "saved", ScoreScale(0.5, 2.0))
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
    save_reward(model, tokenizer, tmp_path / "saved", ScoreScale(0.5, 2.0))

    critic, _ = load_critic(RewardModel(name="r", fingerprint="0", path=tmp_path / "saved"))

    torch.testing.assert_close(critic(input_ids=IDS).logits, (model(input_ids=IDS).logits - 0.5) / 2.0)


@pytest.mark.parametrize("policy", ["bart's decoder"], indirect=True)
def test_a_decoder_that_no_cache_fits_is_saved_and_scores_all_the_same(policy, tmp_path) -> None:
    config = BartConfig.from_pretrained(policy.path)
    config.encoder_layers = 1  # transformers makes the decoder's cache by this number
    AutoModelForCausalLM.from_config(config).save_pretrained(policy.path)
    model, tokenizer = load_policy(policy)
    scorer, _ = load_for_reward_training(policy)

    save_policy(model, tokenizer, tmp_path / "policy")
    save_reward(scorer, tokenizer, tmp_path / "saved", ScoreScale(0.0, 1.0))

    assert score_tokens(scorer, IDS.tolist(), tokenizer) == pytest.approx(
        scorer(input_ids=IDS, use_cache=False).logits.flatten().tolist()
    )


def test_classifiers_of_transformers_are_taken_where_they_are_decoders_with_a_score() -> None:
    ours = {name: scorer_for(make(100)).__name__ for name, make in CONFIGS.items()}

    assert ours == {
        "granite": "GraniteForSequenceClassification",
        "mamba": "MambaForSequenceClassification",
        "bart's decoder": "BartWithScore",
        "bamba": "BambaForSequenceClassification",
    }
    assert scorer_for(llama_config(100)).__name__ == "AutoModelForSequenceClassification"
    assert scorer_named_by(BartConfig(architectures=["BartForSequenceClassification"])).__name__ == (
        "AutoModelForSequenceClassification"
    )
    assert scorer_named_by(LlamaConfig()).__name__ == "AutoModelForSequenceClassification"
