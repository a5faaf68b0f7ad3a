"""Sampling, and log-probabilities and values of what was sampled: exact, and blind to padding."""

import pytest
import torch
from tiny_models import STOP, gpt2, llama, llama_critic

from alignkit.training.rollouts import (
    Beside,
    answer_logprobs,
    answer_logprobs_and_entropy,
    answer_mask,
    answer_values,
    by_length,
    generator_for,
    in_groups,
    sample_answers,
)

VOCABULARY = 12
PROMPTS = [[3], [4, 5, 6, 7, 8], [9, 10], [5, 5, 5]]
ANSWERS = [[1, 2, STOP], [7], [3, 3, 3, 3, 3, 3], [8, STOP]]

makers = pytest.mark.parametrize("make", [llama, gpt2])


def sampled(model, prompts=PROMPTS, longest=6, temperature=1.0, seed=5, stop=frozenset([STOP])):
    chance = generator_for(seed, "test")
    return sample_answers(model, prompts, max_new_tokens=longest, stop=stop, generator=chance, temperature=temperature)


@makers
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_two_models_answer_by_their_geometric_mixture(make, share) -> None:
    one, other = make(VOCABULARY, 1), make(VOCABULARY, 2)
    for model in (one, other):
        torch.nn.init.normal_(model.get_output_embeddings().weight, generator=torch.Generator().manual_seed(3))
    chance = generator_for(5, "test")

    found = sample_answers(
        one, PROMPTS, max_new_tokens=6, stop=frozenset([STOP]), generator=chance, beside=Beside(other, share)
    )

    for prompt, answer, logprobs in zip(PROMPTS, found.answers, found.logprobs, strict=True):
        rows = torch.tensor([[*prompt, *answer]])
        logits = [model(input_ids=rows).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for model in (one, other)]
        mixture = ((1 - share) * logits[0] + share * logits[1]).log_softmax(-1)
        expected = mixture[torch.arange(len(answer)), torch.tensor(answer)]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=0)


def alone(model, prompt, answer, temperature=1.0):
    """Compute the log-probabilities the plain way: one row, no padding, one log_softmax."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]


@makers
def test_logprobs_of_a_padded_batch_are_those_of_each_row_alone(make) -> None:
    model = make(VOCABULARY)

    together = answer_logprobs(model, PROMPTS, ANSWERS, temperature=0.7)

    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        torch.testing.assert_close(together[row, : len(answer)], alone(model, prompt, answer, 0.7), atol=1e-5, rtol=0)


@makers
def test_a_wider_batch_changes_no_logprob_and_no_gradient(make) -> None:
    model = make(VOCABULARY)
    mask = answer_mask(ANSWERS)

    def gradients(prompts, answers):
        model.zero_grad()
        table = answer_logprobs(model, prompts, answers)[: len(PROMPTS), : mask.shape[1]]
        table.masked_fill(~mask, 0).sum().backward()
        return table.detach().masked_fill(~mask, 0), [w.grad.clone() for w in model.parameters()]

    narrow = gradients(PROMPTS, ANSWERS)
    wide = gradients([*PROMPTS, [1] * 9], [*ANSWERS, [2] * 11])

    torch.testing.assert_close(wide[0], narrow[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(wide[1], narrow[1], atol=1e-5, rtol=1e-4)


@makers
def test_what_follows_the_end_of_an_answer_changes_nothing(make) -> None:
    model = make(VOCABULARY)

    plain = answer_logprobs(model, PROMPTS, ANSWERS)
    longer = answer_logprobs(model, PROMPTS, [*ANSWERS[:3], [*ANSWERS[3], 6, 7, 9]])

    torch.testing.assert_close(longer[3, :2], plain[3, :2], atol=1e-5, rtol=0)


def test_values_of_a_padded_batch_are_those_of_each_row_alone() -> None:
    critic = llama_critic(VOCABULARY)
    torch.nn.init.normal_(critic.model.score.weight)

    together = answer_values(critic, PROMPTS, ANSWERS)

    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        by_itself = answer_values(critic, [prompt], [answer])[0]
        torch.testing.assert_close(together[row, : len(answer)], by_itself, atol=1e-5, rtol=0)


def test_a_value_does_not_see_the_token_that_it_is_before() -> None:
    critic = llama_critic(VOCABULARY)
    torch.nn.init.normal_(critic.model.score.weight)

    values = answer_values(critic, [[3, 4], [3, 4]], [[5, 6], [7, 6]])

    assert values[0, 0].item() == pytest.approx(values[1, 0].item(), abs=1e-6)
    assert values[0, 1].item() != pytest.approx(values[1, 1].item(), abs=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_groups_of_any_size_give_one_table(rows) -> None:
    model = llama(VOCABULARY)

    table = in_groups(lambda p, a: answer_logprobs(model, p, a), PROMPTS, ANSWERS, by_length(PROMPTS, ANSWERS, rows))

    whole = answer_logprobs(model, PROMPTS, ANSWERS).masked_fill(~answer_mask(ANSWERS), 0)
    torch.testing.assert_close(table, whole, atol=1e-5, rtol=0)


def test_the_entropy_is_that_of_the_sampled_distribution() -> None:
    model = llama(VOCABULARY)

    table = answer_logprobs_and_entropy(model, PROMPTS[:1], ANSWERS[:1], temperature=0.5)

    logits = model(input_ids=torch.tensor([[*PROMPTS[0], *ANSWERS[0]]])).logits[0, :3] / 0.5
    wanted = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(table[0, :, 1], wanted, atol=1e-5, rtol=0)


@makers
def test_tokens_are_drawn_as_often_as_their_logprobs_say(make) -> None:
    model = make(VOCABULARY)
    model.get_output_embeddings().weight.data *= 20  # far from uniform
    many = 4000

    answers, *_ = sampled(model, [[4, 5]] * many + [[3]], longest=2, temperature=0.8, stop=frozenset())

    pairs = {(a, b): 0 for a in range(VOCABULARY) for b in range(VOCABULARY)}
    for a, b in answers[:many]:
        pairs[a, b] += 1
    wanted = answer_logprobs(model, [[4, 5]] * len(pairs), list(pairs), 0.8).sum(1).exp()
    found = torch.tensor(list(pairs.values())) / many
    assert (found - wanted).abs().sum() / 2 < 0.1  # total variation
    assert wanted.max() > 0.03


def test_an_answer_ends_with_its_first_stop_token_or_at_the_limit() -> None:
    answers, _, finished = sampled(llama(VOCABULARY), PROMPTS * 20, longest=6, stop=frozenset([STOP, 1]))

    for answer, done in zip(answers, finished, strict=True):
        stops = [token in (STOP, 1) for token in answer]
        assert not any(stops[:-1])
        assert stops[-1] == done
        assert done or len(answer) == 6
    assert 0 < sum(finished) < len(finished)


def test_an_answer_does_not_depend_on_who_is_asked_beside() -> None:
    model = llama(VOCABULARY)

    together, *_ = sampled(model, PROMPTS)
    first_two, *_ = sampled(model, PROMPTS[:2])

    assert together[:2] == first_two
