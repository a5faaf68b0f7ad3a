"""What models say of all tokens at each place of the same answers: read in parts, and as each would say it alone."""

import pytest
import torch
from tiny_models import gpt2, llama
from torch import Tensor

from alignkit.training import distributions
from alignkit.training.distributions import Readers

PROMPTS = [[3, 4, 5], [6, 7], [3, 4, 5], [8]]
ANSWERS = [[9, 2], [10, 11, 12, 2], [13, 14, 2], [15, 2]]


def alone(model, prompt: list[int], answer: list[int], temperature: float) -> Tensor:
    """Return what a model says before each token of an answer, by its own forward pass."""
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(dim=-1)


def whole(tables, tokens, _) -> Tensor:
    return tables[0]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_it_is_what_the_model_says_of_each_row_alone(make) -> None:
    model = make(20)

    table = Readers([model], 2.0, "fp32").each_token([PROMPTS], ANSWERS, whole)

    assert table.shape == (4, 4, 20)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        expected = alone(model, prompt, answer, 2.0)
        assert torch.allclose(table[row, : len(answer)], expected, atol=1e-5)
        assert not table[row, len(answer) :].any()


def product(tables, tokens, beside) -> Tensor:
    chosen = tables[0].gather(-1, tokens[:, None]).squeeze(-1)
    return chosen * (tables[1].exp() * beside[0][:, None]).square().sum(dim=-1)


def test_in_parts_that_are_computed_again_it_is_the_same_with_the_same_gradient(monkeypatch) -> None:
    model, other = llama(20), gpt2(20, seed=3).requires_grad_(False)
    readers = Readers([model, other], 1.0, "fp32")
    weigh = torch.arange(16.0).view(4, 4)

    def read() -> tuple[Tensor, Tensor]:
        model.zero_grad()
        table = readers.each_token([PROMPTS, PROMPTS], ANSWERS, product, [weigh])
        table.sum().backward()
        return table.detach(), model.lm_head.weight.grad.clone()

    once = read()
    monkeypatch.setattr(distributions, "logits_in_a_chunk", lambda device: 40)
    monkeypatch.setattr(distributions, "logits_kept", lambda device: 0)
    again = read()

    assert torch.allclose(once[0], again[0], atol=1e-6)
    assert torch.allclose(once[1], again[1], atol=1e-6)


def test_without_gradient_it_is_the_same_for_any_number_of_answers() -> None:
    model, other = llama(20), llama(20, seed=3)
    readers = Readers([model, other], 1.0, "fp32")
    weigh = torch.arange(16.0).view(4, 4)

    read = readers.every_answer([PROMPTS, PROMPTS], ANSWERS, product, [weigh])

    assert not read.requires_grad
    assert torch.allclose(read, readers.each_token([PROMPTS, PROMPTS], ANSWERS, product, [weigh]), atol=1e-6)


def test_tokens_that_one_has_not_are_looked_at_in_none() -> None:
    small, large = llama(20), llama(24)

    def both(tables, tokens, _) -> Tensor:
        width = torch.full((len(tokens),), float(tables[1].shape[1]))
        return torch.stack([*(table.exp().sum(dim=-1) for table in tables), width], dim=-1)

    table = Readers([small, large], 1.0, "fp32").each_token([PROMPTS, PROMPTS], ANSWERS, both)

    assert torch.allclose(table[0, :2], torch.tensor([1.0, 1.0, 20.0]))


def test_each_reads_behind_a_prompt_of_its_own() -> None:
    model = llama(20)
    hinted = [[16, 17, *prompt] for prompt in PROMPTS]

    table = Readers([model, model], 1.0, "fp32").each_token([PROMPTS, hinted], ANSWERS, lambda tables, *_: tables[1])

    assert torch.allclose(table[1], alone(model, hinted[1], ANSWERS[1], 1.0), atol=1e-5)
