"""Packed rows must give what padded ones give: values, gradients, for every kind of position and attention."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import gpt2, llama, llama_critic
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    PreTrainedModel,
    RobertaConfig,
)

from alignkit.training import output_layer, packing
from alignkit.training.miniature import miniature
from alignkit.training.models import without_deprecations
from alignkit.training.output_layer import OutputLayer, chosen_logprobs, chosen_tokens, find_head, head_of, logprobs_of
from alignkit.training.packing import by_prompt, hidden_before_answers, pack, packs, padded
from alignkit.training.rollouts import answer_logprobs, answer_logprobs_and_entropy, answer_mask, answer_values

VOCABULARY = 50


def mistral() -> MistralForCausalLM:
    """Make a model that sees no further back than four tokens."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
    )
    return MistralForCausalLM(config).eval()


MODELS = {"llama": lambda: llama(VOCABULARY), "gpt2": lambda: gpt2(VOCABULARY), "mistral": mistral}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


def rows() -> tuple[list[list[int]], list[list[int]]]:
    """Make prompts and answers of many lengths, three of them to one prompt."""
    chance = torch.Generator().manual_seed(3)

    def draw(length: int) -> list[int]:
        return torch.randint(VOCABULARY, (length,), generator=chance).tolist()

    prompts, answers = [draw(n) for n in (3, 7, 1, 12, 5)], [draw(n) for n in (6, 1, 9, 2, 4)]
    return [*prompts, prompts[1], prompts[1]], [*answers, draw(8), draw(3)]


def loss_and_gradients(model: PreTrainedModel, logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    mask = answer_mask(rows()[1])
    loss = logprobs.masked_fill(~mask, 0.0).square().sum() / 10
    loss.backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_packed_rows_give_the_log_probabilities_of_padded_ones(model) -> None:
    expected = answer_logprobs(model, *rows())

    assert packs(model)
    found = logprobs_of(model, pack(*rows()))

    assert torch.equal(found == 0, ~answer_mask(rows()[1]))
    assert (found - expected).masked_fill(~answer_mask(rows()[1]), 0.0).abs().max() < 1e-5


def test_packed_rows_give_the_gradients_of_padded_ones(model) -> None:
    expected = loss_and_gradients(model, answer_logprobs(model, *rows()))

    assert packs(model)
    found = loss_and_gradients(model, logprobs_of(model, pack(*rows())))

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_entropy_is_that_of_padded_rows(model) -> None:
    mask = answer_mask(rows()[1])
    expected = answer_logprobs_and_entropy(model, *rows(), temperature=0.7)

    assert packs(model)
    packed = pack(*rows())
    found = chosen_tokens(hidden_before_answers(model, packed), head_of(model), packed.targets, temperature=0.7)

    torch.testing.assert_close(torch.stack(found[:2], dim=-1), expected[mask], rtol=0, atol=1e-5)


def test_a_prompt_of_several_answers_is_computed_once() -> None:
    prompts, answers = rows()

    found = pack(prompts, answers)

    shared = 2 * len(prompts[1])
    tokens = sum(map(len, prompts)) + sum(len(answer) - 1 for answer in answers) - shared
    assert found.inputs["input_ids"].shape == (1, tokens)


def test_one_row_is_the_same_alone_and_among_others(model) -> None:
    assert packs(model)
    prompts, answers = rows()

    together = logprobs_of(model, pack(prompts, answers))
    alone = logprobs_of(model, pack(prompts[:1], answers[:1]))

    torch.testing.assert_close(together[:1, : alone.shape[1]], alone, rtol=0, atol=1e-5)


def test_adapters_are_packed_too() -> None:
    model = llama(VOCABULARY)
    with without_deprecations():
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    mask = answer_mask(rows()[1])
    expected = answer_logprobs(adapted, *rows())[mask]

    assert packs(adapted)
    torch.testing.assert_close(logprobs_of(adapted, pack(*rows()))[mask], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "foreign",
    [
        lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)),
        lambda: MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)),
    ],
    ids=["bloom, whose positions stand in the mask", "mamba, which has no attention"],
)
def test_a_model_that_would_mix_the_rows_is_found_out_and_left_as_it_was(foreign) -> None:
    torch.manual_seed(0)
    model = foreign().eval()
    before = answer_logprobs_if_it_can(model)

    assert not packs(model)
    assert torch.equal(answer_logprobs_if_it_can(model), before)


def answer_logprobs_if_it_can(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, 2, 3, 4]]), use_cache=False).logits


def test_packing_leaves_decoding_and_padded_passes_as_they_were(model) -> None:
    expected = answer_logprobs(model, *rows())

    assert packs(model)

    assert torch.equal(answer_logprobs(model, *rows()), expected)


@pytest.mark.parametrize("kept", [0, 2**20], ids=["computed again", "kept"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
def test_chunks_of_logits_change_nothing(frozen, kept, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(11, 8, requires_grad=True), torch.nn.Linear(8, VOCABULARY).requires_grad_(not frozen)
    learnt = [hidden] if frozen else [hidden, head.weight, head.bias]
    targets = torch.arange(11)
    straight = (head(hidden) / 0.5).log_softmax(dim=-1).gather(-1, targets[:, None]).squeeze(-1)
    expected = torch.autograd.grad(straight.square().sum(), learnt)
    monkeypatch.setattr(output_layer, "LOGITS_IN_A_CHUNK", 3 * VOCABULARY)
    monkeypatch.setattr(output_layer, "LOGITS_KEPT", kept)

    found = chosen_logprobs(hidden, OutputLayer(head), targets, temperature=0.5)

    torch.testing.assert_close(found, straight)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), learnt), expected)


@pytest.mark.parametrize("kept", [0, 2**20], ids=["computed again", "kept"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
@pytest.mark.parametrize(("scale", "cap"), [(0.25, None), (1.0, 3.0), (2.0, 3.0)])
def test_a_factor_and_a_soft_cap_of_logits_have_their_gradient(scale, cap, frozen, kept, monkeypatch) -> None:
    torch.manual_seed(0)
    hidden, head = 3 * torch.randn(11, 8), torch.nn.Linear(8, VOCABULARY).requires_grad_(not frozen)
    learnt = [hidden.requires_grad_(), *(() if frozen else (head.weight, head.bias))]
    targets = torch.arange(11)
    logits = head(hidden) * scale
    logits = cap * torch.tanh(logits / cap) if cap else logits
    straight = (logits / 0.5).log_softmax(dim=-1).gather(-1, targets[:, None]).squeeze(-1)
    expected = torch.autograd.grad(straight.square().sum(), learnt)
    monkeypatch.setattr(output_layer, "LOGITS_IN_A_CHUNK", 3 * VOCABULARY)
    monkeypatch.setattr(output_layer, "LOGITS_KEPT", kept)

    found = chosen_logprobs(hidden, OutputLayer(head, scale, cap), targets, temperature=0.5)

    torch.testing.assert_close(found, straight)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), learnt), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        again, entropy, likeliest = chosen_tokens(hidden, OutputLayer(head, scale, cap), targets, temperature=0.5)
    odds = (logits / 0.5).softmax(-1)
    torch.testing.assert_close(again, straight.detach())
    torch.testing.assert_close(entropy, -(odds * odds.log()).sum(-1).detach())
    assert torch.equal(likeliest, (logits.argmax(-1) == targets).float())


@pytest.mark.parametrize(
    ("config", "scale", "cap"),
    [
        (GraniteConfig(logits_scaling=8.0), 0.125, None),
        (CohereConfig(logit_scale=0.25, tie_word_embeddings=False), 0.25, None),
        (Gemma2Config(final_logit_softcapping=5.0), 1.0, 5.0),
        (OPTConfig(word_embed_proj_dim=32), 1.0, None),
    ],
    ids=["granite", "cohere", "gemma2", "opt, projected"],
)
def test_what_a_model_does_to_its_logits_is_found(config, scale, cap) -> None:
    head = find_head(miniature(config))

    assert (round(head.scale, 4), head.cap) == (scale, cap)


def test_logits_that_are_made_otherwise_are_found_out() -> None:
    model = miniature(RobertaConfig(is_decoder=True))

    assert find_head(model) is None
    with pytest.raises(TypeError) as caught:
        head_of(model)
    assert str(caught.value) == "the logits of a RobertaForCausalLM are not made by a linear layer"


def test_padded_rows_give_what_packed_ones_give(model) -> None:
    expected = logprobs_of(model, padded(*rows()))

    assert packs(model)
    torch.testing.assert_close(logprobs_of(model, pack(*rows())), expected, rtol=0, atol=1e-5)
    first = padded(*rows())
    states = first.apart(first.inputs["input_ids"].flatten()[:, None].float())
    found = padded(rows()[0][2:4], rows()[1][2:4]).together(states[2:4])
    ids = padded(rows()[0][2:4], rows()[1][2:4]).inputs["input_ids"]
    assert found.view(ids.shape).tolist() == ids.tolist()


def test_values_of_a_critic_are_those_of_padded_rows() -> None:
    critic = llama_critic(VOCABULARY)
    torch.nn.init.normal_(critic.model.score.weight)
    prompts, answers = rows()
    mask = answer_mask(answers)

    assert packs(critic.model)
    rows_packed = pack(prompts, answers)
    found = rows_packed.as_table(critic.model.score(hidden_before_answers(critic.model, rows_packed)).squeeze(-1))

    torch.testing.assert_close(found[mask], answer_values(critic, prompts, answers)[mask], rtol=0, atol=1e-5)


def test_what_stands_for_the_tokens_of_rows_fits_into_any_other_pack() -> None:
    prompts, answers = rows()
    first = pack(prompts, answers)
    states = first.apart(first.inputs["input_ids"][0, :, None].float())

    chosen = [5, 0, 6]
    other = pack([prompts[row] for row in chosen], [answers[row] for row in chosen])

    assert other.together([states[row] for row in chosen])[:, 0].tolist() == other.inputs["input_ids"][0].tolist()


def test_groups_keep_the_answers_of_a_prompt_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, answers = [[1, 2], [3], [1, 2], [4] * 9], [[5] * 3, [6] * 3, [7] * 3, [8] * 9]
    monkeypatch.setattr(packing, "TOKENS_IN_A_PACK", 8)

    assert by_prompt(prompts, answers) == [[1, 0], [2], [3]]
    assert by_prompt(prompts, answers, most=1) == [[1], [0], [2], [3]]


def test_a_cap_is_found_where_logits_are_still_small() -> None:
    model = miniature(Gemma2Config(final_logit_softcapping=30.0))
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=1e-4)

    assert find_head(model).cap == 30.0
