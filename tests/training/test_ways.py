"""Ways of reading and sampling are tried on a miniature of the architecture, and only exact ones are taken."""

from dataclasses import replace

import pytest
import torch
from tiny_models import llama
from transformers import (
    AutoModelForCausalLM as Auto,
    BertConfig,
    GraniteConfig,
    Lfm2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2MoeConfig,
    RwkvConfig,
)

from alignkit.training import ways
from alignkit.training.answers import answer_logprobs, in_passes
from alignkit.training.decoding import Way
from alignkit.training.miniature import WINDOW, miniature
from alignkit.training.rollouts import apart_beyond, generator_for, sample_answers
from alignkit.training.ways import alone_beyond, form_of, rows_together, ways_of, ways_of_config

VOCABULARY = 60
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CONFIGS = {
    "mistral with a window": lambda: MistralConfig(**SMALL, sliding_window=5),
    "qwen2-moe with a window": lambda: Qwen2MoeConfig(
        **SMALL, **EXPERTS, shared_expert_intermediate_size=32, use_sliding_window=True, sliding_window=5,
        max_window_layers=1,
    ),
    "mixtral that asks for router logits": lambda: MixtralConfig(**SMALL, output_router_logits=True),
    "granite": lambda: GraniteConfig(**SMALL, logits_scaling=4.0, embedding_multiplier=6.0),
    "lfm2": lambda: Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    "mamba": lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8),
    "rwkv": lambda: RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=48
    ),
    "phi3 with two sets of frequencies": lambda: Phi3Config(
        **SMALL,
        max_position_embeddings=256,
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 16,
        },
    ),
}  # fmt: skip


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = Auto.from_config(CONFIGS[name](), dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and name != "rwkv":
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def rows() -> tuple[list[list[int]], list[list[int]]]:
    """Make rows longer than any window here, of many lengths, two of them to one prompt."""
    chance = torch.Generator().manual_seed(3)
    lengths = [(3, 9), (20, 4), (1, 30), (12, 2)]
    drawn = [torch.randint(3, VOCABULARY, (sum(both),), generator=chance).tolist() for both in lengths]
    prompts = [row[:asked] for row, (asked, _) in zip(drawn, lengths, strict=True)]
    answers = [row[asked:] for row, (asked, _) in zip(drawn, lengths, strict=True)]
    return [*prompts, prompts[0]], [*answers, answers[1]]


def alone(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_log_probabilities_are_those_of_each_row_alone(name) -> None:
    model = made(name)
    expected = [alone(model, prompt, answer) for prompt, answer in zip(*rows(), strict=True)]

    found = answer_logprobs(model, *rows())

    for row, values in enumerate(expected):
        torch.testing.assert_close(found[row, : len(values)], values, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_sampled_answers_are_those_of_each_prompt_alone(name) -> None:
    model, (prompts, _) = made(name), rows()
    stop = frozenset(range(10))  # some answers end early, others do not
    draws = torch.rand(len(prompts), 12, generator=generator_for(5))

    answers, _, _ = sample_answers(model, prompts, max_new_tokens=12, stop=stop, generator=generator_for(5))

    assert len(set(map(len, answers))) > 1
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        for place, token in enumerate(answer):
            ids = torch.tensor([[*prompt, *answer[:place]]])
            odds = model(input_ids=ids, use_cache=False).logits[0, -1].softmax(-1).cumsum(-1)
            below = odds[token - 1] if token else 0.0
            assert below - 1e-4 <= draws[row, place] * odds[-1] <= odds[token] + 1e-4


def test_a_window_that_attention_is_not_told_of_is_not_read_packed() -> None:
    assert form_of(made("mistral with a window")) == "packed"
    assert form_of(made("qwen2-moe with a window")) == "padded"


def test_logits_with_a_factor_are_known() -> None:
    assert form_of(made("granite")) == "packed"


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("mistral with a window", Way("padded", drops=True)),
        ("lfm2", Way("padded")),
        ("mamba", Way("level")),
        ("rwkv", Way("none")),
    ],
)
def test_the_fastest_way_of_decoding_that_is_exact_is_taken(name, way) -> None:
    assert ways_of(made(name)).decoding == way


def test_rows_beyond_the_length_at_which_frequencies_change_go_alone() -> None:
    prompts, answers = [[1], [2], [3] * 9, [4]], [[5], [6] * 20, [7] * 9, [8]]

    assert alone_beyond(made("phi3 with two sets of frequencies")) == 16
    assert alone_beyond(llama(VOCABULARY)) is None
    assert apart_beyond([[0, 1], [2, 3]], prompts, answers, 16) == [[0], [3], [1], [2]]
    assert apart_beyond([[0, 1], [2, 3]], prompts, answers, None) == [[0, 1], [2, 3]]


def test_a_model_that_padding_changes_is_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(VOCABULARY)
    known = replace(ways_of(llama(VOCABULARY)), packed=False, padded=False)
    monkeypatch.setattr(ways, "ways_of_config", lambda config: known)

    assert (form_of(model), rows_together(model)) == ("padded", 1)
    assert in_passes(model, *rows()) == [
        [row] for row in sorted(range(5), key=lambda r: sum(map(len, (rows()[0][r], rows()[1][r]))))
    ]
    expected = [alone(model, prompt, answer) for prompt, answer in zip(*rows(), strict=True)]
    found = answer_logprobs(model, *rows())
    assert all(torch.allclose(found[row, : len(one)], one, atol=1e-5) for row, one in enumerate(expected))


def test_a_model_whose_tokens_see_what_follows_is_found_out() -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

    assert not ways_of_config(BertConfig(vocab_size=VOCABULARY, **shape)).causal
    assert ways_of_config(BertConfig(vocab_size=VOCABULARY, **shape, is_decoder=True)).causal


def test_a_config_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MistralConfig(**SMALL, sliding_window=7)
    first = ways_of_config(config)
    monkeypatch.setattr(ways, "miniature", lambda config: pytest.fail("it is made anew"))

    assert ways_of_config(MistralConfig(**SMALL, sliding_window=7)) is first


def test_a_model_of_which_no_miniature_can_be_made_is_tried_itself_and_not_packed_beyond_its_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ways, "ways_of_config", lambda config: None)

    found = ways_of(made("mistral with a window"))

    assert (found.causal, found.packed, found.padded, found.tried_small) == (True, False, True, False)
    assert ways_of(llama(VOCABULARY)).packed


def test_a_miniature_has_the_architecture_and_nothing_of_the_size() -> None:
    config = MistralConfig(hidden_size=4096, num_hidden_layers=32, sliding_window=4096)

    small = miniature(config)

    assert type(small).__name__ == "MistralForCausalLM"
    assert small.config.sliding_window == WINDOW
    assert sum(weight.numel() for weight in small.parameters()) < 500_000
    assert config.hidden_size == 4096


def test_a_miniature_has_a_layer_of_each_kind_and_is_always_the_same() -> None:
    kinds = ["conv"] * 6 + ["full_attention"] + ["conv"] * 3
    config = Lfm2Config(num_hidden_layers=10, layer_types=kinds)

    one, two = miniature(config), miniature(config)

    assert sorted(set(one.config.layer_types)) == ["conv", "full_attention"]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
