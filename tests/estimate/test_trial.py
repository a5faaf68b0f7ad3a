"""What a stage will do is done with a miniature of its model first: what fails there is refused, with what to do."""

from pathlib import Path

import pytest
from transformers import (
    BertConfig,
    Gemma4TextConfig,
    GraniteConfig,
    GraniteMoeConfig,
    GraniteMoeHybridConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
    RobertaConfig,
    RwkvConfig,
    T5Config,
)

from alignkit.contract.settings import LoRA
from alignkit.estimate import trial
from alignkit.estimate.trial import Trial, Uses, tried
from alignkit.methods.grpo import GRPOSettings, grpo
from alignkit.methods.ppo import PPOSettings, ppo
from alignkit.methods.reward import RewardSettings, reward
from alignkit.methods.sft import SFTSettings, sft
from alignkit.training.miniature import miniature

FOLDER = Path("model")
CONFIGS = {
    "llama": LlamaConfig,
    "granite": lambda: GraniteConfig(logits_scaling=8.0),
    "qwen3-moe": Qwen3MoeConfig,
    "lfm2": lambda: Lfm2Config(num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2),
    "mamba": MambaConfig,
    "granite-moe": GraniteMoeConfig,
    "granite 4, dense": lambda: GraniteMoeHybridConfig(
        num_local_experts=0, num_hidden_layers=2, layer_types=["mamba", "attention"]
    ),
}
USES = {
    "sft": Uses.of(sft.needs(SFTSettings())),
    "sft with LoRA": Uses.of(sft.needs(SFTSettings(lora=LoRA()))),
    "reward": Uses.of(reward.needs(RewardSettings())),
    "reward with LoRA": Uses.of(reward.needs(RewardSettings(lora=LoRA()))),
    "dpo": Uses(reads=True, learns=True),
    "ppo": Uses.of(ppo.needs(PPOSettings())),
    "ppo, shared": Uses.of(ppo.needs(PPOSettings(layout="shared"))),
    "ppo, frozen": Uses.of(ppo.needs(PPOSettings(layout="frozen"))),
    "grpo": Uses.of(grpo.needs(GRPOSettings(trained_layers=1))),
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_known", {})


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("use", USES)
def test_what_works_is_not_refused(config, use) -> None:
    assert tried(CONFIGS[config](), USES[use], FOLDER).problems == ()


def problems(config: PreTrainedConfig, use: str) -> list[str]:
    return [str(problem) for problem in tried(config, USES[use], FOLDER).problems]


def test_a_model_whose_tokens_see_what_follows_is_refused() -> None:
    assert problems(BertConfig(), "dpo") == [
        "model: the model (bert) is no causal language model: its tokens see what follows them; give a decoder as "
        "policy; an encoder can score answers, as a reward"
    ]


def test_an_architecture_without_a_causal_language_model_is_refused() -> None:
    assert problems(T5Config(), "sft") == [
        "model: transformers has no causal language model of the architecture 't5'; give a decoder as policy; an "
        "encoder can score answers, as a reward"
    ]


def test_a_layout_that_does_not_fit_is_refused_with_one_that_does() -> None:
    assert problems(OpenAIGPTConfig(), "ppo, frozen") == [
        "trained_layers: an OpenAIGPTLMHeadModel cannot be cut into frozen and trained layers; let all weights learn"
    ]
    assert problems(OpenAIGPTConfig(), "ppo") == []
    assert problems(RobertaConfig(is_decoder=True), "ppo, shared") == [
        "the logits of a RobertaForCausalLM are not made by a linear layer, which a shared body needs; let all weights "
        "learn, and the critic have a body of its own"
    ]


def test_a_layout_that_cuts_off_layers_from_keys_that_they_share_is_refused() -> None:
    config = Gemma4TextConfig(num_hidden_layers=30, num_kv_shared_layers=20)

    assert problems(config, "ppo, frozen") == [
        "trained_layers: a Gemma4ForCausalLM cannot be cut into frozen and trained layers; let all weights learn"
    ]
    assert problems(config, "ppo, shared") == []


def test_what_fails_in_a_step_is_refused_by_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("it has no such thing\nand more")

    monkeypatch.setattr(trial, "train_language_model", broken)

    assert problems(LlamaConfig(), "sft") == [
        "a small model of the architecture 'llama' fails at what this stage does (AttributeError: it has no such "
        "thing); take another method or another model"
    ]


def test_logits_that_a_trainer_would_make_otherwise_are_refused_where_it_makes_them() -> None:
    config = RobertaConfig(is_decoder=True)

    found = tried(config, Uses(reads=True, learns=True, head=True), FOLDER)

    assert [str(problem) for problem in found.problems] == [
        "the logits of a RobertaForCausalLM are not made as TRL's trainer makes them; take a method that compares "
        "pairs, or another model"
    ]


def test_slower_ways_are_told_and_nothing_else() -> None:
    told = {
        name: [str(remark) for remark in tried(config, USES["grpo"], FOLDER).remarks]
        for name, config in {"llama": LlamaConfig(), "mamba": MambaConfig(), "rwkv": RwkvConfig()}.items()
    }

    rest = "nothing need be done: the result is the same, it takes longer"
    slow = "model: a model of the architecture '{}' is exact in slower ways only: rows are padded; {}; " + rest
    assert told == {
        "llama": [],
        "mamba": [slow.format("mamba", "only prompts of one length are answered together")],
        "rwkv": [slow.format("rwkv", "for each token of an answer all those before it are read anew")],
    }


def test_an_architecture_that_cannot_be_made_small_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "ways_of_config", lambda config: None)

    found = tried(LlamaConfig(), USES["sft"], FOLDER)

    assert [str(remark) for remark in found.remarks] == [
        "model: of the architecture 'llama' no small model can be made, so nothing of it is tried; --smoke tries every "
        "stage on the model itself"
    ]


def test_a_config_is_tried_once_for_each_use(monkeypatch: pytest.MonkeyPatch) -> None:
    first = tried(LlamaConfig(), USES["dpo"], FOLDER)
    monkeypatch.setattr(trial, "miniature", lambda config: pytest.fail("it is made anew"))

    assert tried(LlamaConfig(), USES["dpo"], FOLDER) is first
    assert isinstance(first, Trial)


def test_nothing_of_the_whole_model_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(trial, "miniature", lambda config: made.append(miniature(config)) or made[-1])

    tried(LlamaConfig(hidden_size=16_384, num_hidden_layers=126), USES["ppo, frozen"], FOLDER)

    assert all(sum(weight.numel() for weight in model.parameters()) < 500_000 for model in made)
