"""Answers that another policy drew: what a token counts for makes the gradient that of the policy's own answers."""

import pytest
import torch

from alignkit.contract.sampling_settings import Engine
from alignkit.errors import StageError
from alignkit.training import losses, off_policy


def test_weighted_gradients_are_those_of_own_answers() -> None:
    """One token, four to choose from: sum mu (pi / mu) A grad log pi = sum pi A grad log pi = grad E_pi[A]."""
    logits = torch.tensor([0.3, -0.2, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    mu = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    worth = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    expected = torch.autograd.grad((logits.softmax(0) * worth).sum(), logits)[0]

    logprobs = logits.log_softmax(0)[:, None]  # every token once, (n, t)
    apart = off_policy.compare(logprobs.detach(), mu.log()[:, None], torch.ones(4, 1, dtype=torch.bool))
    counted = losses.weighted(logprobs, apart.ratio)
    found = torch.autograd.grad((mu[:, None] * worth[:, None] * counted).sum(), logits)[0]

    assert torch.allclose(found, expected)
    assert torch.equal(counted, logprobs)


def test_the_divergence_is_that_of_what_answered_from_the_policy() -> None:
    """pi = (3/4, 1/4), mu = (1/2, 1/2), each token drawn as often: KL(mu || pi) = log(4/3) / 2 ... = 0.1438."""
    pi, mu = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()

    apart = off_policy.compare(pi, mu, torch.ones(1, 2, dtype=torch.bool))

    assert apart.kl == pytest.approx(0.5 * torch.log(torch.tensor(4 / 3)).item(), abs=1e-6)
    assert apart.ratio_max == pytest.approx(2.0)


def test_what_stands_behind_an_answer_counts_nothing() -> None:
    mask = torch.tensor([[True, False]])

    apart = off_policy.compare(torch.tensor([[-1.0, -9.0]]), torch.tensor([[-1.0, 0.0]]), mask)

    assert (apart.kl, apart.ratio_max, apart.ratio.tolist()) == (0.0, 1.0, [[1.0, 1.0]])


def test_answers_of_an_update_ago_may_be_further_off() -> None:
    off_policy.check(0.4, 1, Engine())

    with pytest.raises(StageError) as now:
        off_policy.check(0.4, 0, Engine())
    with pytest.raises(StageError) as then:
        off_policy.check(0.6, 1, Engine())

    assert now.value.problem == "what answered is 0.4 nats a token from the policy, and 0.05 are allowed"
    assert then.value.remedy == "lower learning_rate, set engine.ahead = 0, or raise engine.most_kl"
