"""However the models are laid out, they compute what the plain padded passes compute."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_models import STOP, llama_config
from transformers import (
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaForCausalLM,
    MambaConfig,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    PhiConfig,
    StableLmConfig,
)

from alignkit.errors import RecipeError
from alignkit.training.layouts import Models, ValueHead, logprobs_and_values, policy_logprobs, read
from alignkit.training.miniature import miniature
from alignkit.training.packing import LAID_OUT, packs, padded
from alignkit.training.rollouts import Rollout, answer_mask
from alignkit.training.trunk import Trunk
from alignkit.training.ways import form_of

VOCABULARY = 30
ROLLOUT = Rollout(
    rows=[0, 1, 0, 2],
    prompts=[[1, 2, 3], [4], [1, 2, 3], [5, 6, 7, 8]],
    answers=[[9, 0], [3, 4, 5, 6], [7, 8, 9], [0]],
    finished=[True, False, False, True],
)
MASK = answer_mask(ROLLOUT.answers)


def policy(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = llama_config(VOCABULARY)
    config.num_hidden_layers = 3
    return LlamaForCausalLM(config).eval()


def frozen_models(trained: int = 1) -> Models:
    model = policy()
    assert packs(model)
    trunk = Trunk.cut(model, trained)
    torch.manual_seed(5)
    head = ValueHead(32, model.device)
    torch.nn.init.normal_(head.score.weight)
    return Models(model, None, head, frozenset([STOP]), form="packed", trunk=trunk)


def shared_models() -> Models:
    model, start = policy(), policy().requires_grad_(False)
    assert packs(model)
    assert packs(start)
    head = ValueHead(32, model.device)
    return Models(model, start, head, frozenset([STOP]), form="packed")


def moved(models: Models) -> Models:
    """Change every weight that is trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in models.policy.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn_like(weight)
    return models


@pytest.mark.parametrize("make", [shared_models, frozen_models])
def test_reading_gives_the_log_probabilities_of_policy_and_start(make) -> None:
    models = moved(make())
    plain = Models(copy.deepcopy(models.policy), policy(), None, models.stop_tokens)

    expected, found = read(plain, ROLLOUT), read(models, ROLLOUT)

    torch.testing.assert_close(found.logprobs, expected.logprobs)
    torch.testing.assert_close(found.entropy, expected.entropy)
    torch.testing.assert_close(found.reference, expected.reference)
    assert not torch.allclose(found.logprobs, found.reference)


def test_a_pass_over_kept_states_gives_what_reading_gave() -> None:
    models = moved(frozen_models(trained=2))
    reading = read(models, ROLLOUT)
    chosen = [2, 1]
    prompts, answers = [ROLLOUT.prompts[row] for row in chosen], [ROLLOUT.answers[row] for row in chosen]

    logprobs, values = logprobs_and_values(models, prompts, answers, [reading.states[row] for row in chosen])

    width = logprobs.shape[1]
    torch.testing.assert_close(logprobs.detach(), reading.logprobs[chosen, :width])
    torch.testing.assert_close(values.detach(), reading.values[chosen, :width])
    torch.testing.assert_close(policy_logprobs(models, prompts, answers).detach(), logprobs.detach())


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(),
        GPTNeoXConfig(),
        OPTConfig(word_embed_proj_dim=32),
        PhiConfig(),
        Gemma2Config(final_logit_softcapping=5.0),
        Gemma3TextConfig(),
        BloomConfig(),
        FalconConfig(alibi=True),
        GPTJConfig(),
        StableLmConfig(),
        GraniteConfig(logits_scaling=8.0, embedding_multiplier=12.0),
        CohereConfig(),
        Lfm2Config(num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2),
        MambaConfig(),
    ],
    ids=lambda config: config.model_type,
)
@torch.no_grad()
def test_a_body_that_is_shared_or_cut_computes_what_each_row_alone_does_in_any_architecture(config) -> None:
    model, plain = miniature(config), miniature(config)
    form = form_of(model)
    trunk = Trunk.cut(model, 1, LAID_OUT[form])
    for weight in trunk.upper.layers.parameters():
        weight += 0.05  # as if it had learnt
    moved = dict(model.named_parameters())
    models = Models(model, None, None, frozenset([STOP]), form=form, trunk=trunk)

    found = read(models, ROLLOUT)

    for row, (prompt, answer) in enumerate(zip(ROLLOUT.prompts, ROLLOUT.answers, strict=True)):
        ids, taken = torch.tensor([prompt + answer]), torch.tensor(answer)[:, None]
        for name, weights, logprobs in (("start", None, found.reference), ("policy", moved, found.logprobs)):
            logits = torch.func.functional_call(plain, weights or {}, (), {"input_ids": ids, "use_cache": False}).logits
            expected = logits[0].log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, taken)[:, 0]
            torch.testing.assert_close(logprobs[row, : len(answer)], expected, atol=2e-5, rtol=0, msg=name)
    assert not torch.allclose(found.logprobs, found.reference)


def test_frozen_layers_get_no_gradient_and_the_start_stays() -> None:
    models = frozen_models(trained=1)
    start = {name: weight.clone() for name, weight in models.trunk.start.layers.named_parameters()}

    logprobs, values = logprobs_and_values(models, ROLLOUT.prompts, ROLLOUT.answers, None)
    (logprobs.sum() + values.sum()).backward()

    taught = {name.split(".")[2] for name, weight in models.policy.named_parameters() if weight.grad is not None}
    assert taught == {"2", "weight"}  # the last layer, and the norm
    moved(models)
    assert all(torch.equal(weight, start[name]) for name, weight in models.trunk.start.layers.named_parameters())


def test_the_head_alone_leaves_the_body_without_a_gradient() -> None:
    models = shared_models()

    _, values = logprobs_and_values(models, ROLLOUT.prompts, ROLLOUT.answers, None, head_alone=True)
    values.sum().backward()

    assert all(weight.grad is None for weight in models.policy.parameters())
    assert models.critic.score.bias.grad == MASK.sum()


def test_groups_of_rows_change_nothing() -> None:
    models = moved(frozen_models())
    together = read(models, ROLLOUT)

    apart = read(replace(models, rows_at_once=1), ROLLOUT)

    for one, other in zip(together[:4], apart[:4], strict=True):
        torch.testing.assert_close(one, other)


def test_more_trained_layers_than_there_are_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        Trunk.cut(policy(), 3)

    assert str(caught.value) == (
        "trained_layers: the model has 3 layers, so 3 trained ones leave none frozen; set it below 3, or let all "
        "weights learn"
    )


def test_a_model_that_cannot_be_cut_is_refused() -> None:
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    model = OpenAIGPTLMHeadModel(config).eval()  # its layers are called in a way of their own

    with pytest.raises(RecipeError) as caught:
        Trunk.cut(model, 1, padded)

    assert str(caught.value) == (
        "trained_layers: an OpenAIGPTLMHeadModel cannot be cut into frozen and trained layers; let all weights learn"
    )
