"""Surrogates of GRPO's variants: equal to an independent library's, and laws that all of them keep."""

import math
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from alignkit.training.losses import Count, GRPOLoss, grpo_loss
from alignkit.training.surrogates import GATE_BAD, Form, Ratio, Surrogate

JUNK = float("nan")
OLD = torch.tensor([[-1, -2, -0.5, -3], [-0.7, -1.5, JUNK, JUNK], [-2.5, -0.2, -1, JUNK]], dtype=torch.float64)
RATIOS = torch.tensor([[1.5, 0.6, 1.1, 0.9], [0.5, 3.5, 1, 1], [1.25, 0.95, 0.7, 1]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
OF_ANSWERS = torch.tensor([1, -2, 0.5], dtype=torch.float64)
OF_TOKENS = torch.tensor([[1, 0.5, -1, 2], [-2, 1, 0, 0], [0.5, -0.5, 1, 0]], dtype=torch.float64)
COUNT = Count(tokens=9, answers=3, longest=5)

ALL = [
    Surrogate(form, ratio)
    for form, ratio in product(get_args(Form), get_args(Ratio))
    if form != "geometric" or ratio == "token"
]
every = pytest.mark.parametrize("surrogate", ALL, ids=lambda one: f"{one.form}, {one.ratio}")


def computed(
    surrogate: Surrogate, advantages: Tensor = OF_ANSWERS, how: Any = "token", ratios: Tensor = RATIOS
) -> tuple[GRPOLoss, Tensor]:
    """Give the loss of answers whose tokens have these ratios, and the gradient of their log-probabilities."""
    logprobs = (OLD + ratios.log()).requires_grad_()
    result = grpo_loss(logprobs, OLD, advantages, MASK, COUNT, surrogate=surrogate, how=how)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    return result, gradient


# What `policy_loss` of polgrad 0.2.1 gives for the same tables: its loss and its gradient, in float64.
POLGRAD: dict[str, tuple[Surrogate, Tensor, str, float, list[list[float]]]] = {
    # PolicyLossConfig(TOKEN, PG_CLIP, ClipConfig(0.2, 0.28, ratio_cap=3.0), TOKEN_MEAN)
    "dual clip": (
        Surrogate(high=0.28, dual=3.0),
        OF_ANSWERS,
        "token",
        0.252222,
        [[0, -0.066667, -0.122222, -0.1], [0, 0, 0, 0], [-0.069444, -0.052778, -0.038889, 0]],
    ),
    # (SEQUENCE, PG_CLIP, ClipConfig(0.03, 0.04), SEQ_MEAN_TOKEN_MEAN)
    "gspo": (
        Surrogate(ratio="sequence", low=0.03, high=0.04),
        OF_ANSWERS,
        "answer",
        0.401355,
        [[-0.080963] * 4, [0.440959, 0.440959, 0, 0], [-0.052236, -0.052236, -0.052236, 0]],
    ),
    # (SEQUENCE_TOKEN, PG_CLIP, ClipConfig(0.03, 0.04), SEQ_MEAN_TOKEN_MEAN), advantages of tokens
    "gspo-token": (
        Surrogate(ratio="sequence-token", low=0.03, high=0.04),
        OF_TOKENS,
        "answer",
        -0.037603,
        [[-0.080963, -0.040482, 0.080963, -0.161927], [0.440959, 0, 0, 0], [-0.052236, 0, -0.104472, 0]],
    ),
    # (TOKEN, CISPO, ClipConfig(0.3, 0.2), TOKEN_MEAN)
    "cispo": (
        Surrogate("weights", low=0.3, high=0.2),
        OF_ANSWERS,
        "token",
        0.569727,
        [[-0.133333, -0.077778, -0.122222, -0.1], [0.155556, 0.266667, 0, 0], [-0.066667, -0.052778, -0.038889, 0]],
    ),
    # (SEQUENCE, CISPO, ClipConfig(None, 0.1), TOKEN_MEAN)
    "cispo of answers": (
        Surrogate("weights", "sequence", low=1.0, high=0.1),
        OF_ANSWERS,
        "token",
        0.516086,
        [[-0.107951] * 4, [0.244444, 0.244444, 0, 0], [-0.052236, -0.052236, -0.052236, 0]],
    ),
    # (TOKEN, PG_CLIP, ClipConfig(0.2, 0.2), TOKEN_SUM_NORM, norm_len=5), advantages of tokens
    "advantages of tokens": (
        Surrogate(),
        OF_TOKENS,
        "fixed",
        -0.175,
        [[0, -0.02, 0.073333, -0.12], [0, 0, 0, 0], [0, 0.031667, -0.046667, 0]],
    ),
}


@pytest.mark.parametrize("name", POLGRAD)
def test_golden_losses_of_another_library(name: str) -> None:
    surrogate, advantages, how, loss, gradient = POLGRAD[name]

    result, ours = computed(surrogate, advantages, how)

    assert result.loss.item() == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(ours, torch.tensor(gradient, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_geometric_mean_is_that_of_ratios_each_clipped_to_the_side_that_helps() -> None:
    result, _ = computed(Surrogate("geometric", low=0.3, high=0.2), how="answer")

    good = (min(1.5, 1.2) * 0.6 * 1.1 * 0.9) ** (1 / 4)
    bad = (max(0.5, 0.7) * 3.5) ** (1 / 2)
    fair = (min(1.25, 1.2) * 0.95 * 0.7) ** (1 / 3)
    assert result.loss.item() == pytest.approx((-good + 2 * bad - 0.5 * fair) / 3)
    assert result.clip_fraction.item() == pytest.approx(3 / 9)


def test_tapered_weights_are_1_in_good_answers_and_at_most_1_in_bad_ones() -> None:
    _, gradient = computed(Surrogate("tapered"))

    wanted = torch.tensor([[-1, -1, -1, -1], [2 * 0.5, 2, 0, 0], [-0.5, -0.5, -0.5, 0]], dtype=torch.float64) / 9
    torch.testing.assert_close(gradient, wanted)


def test_the_gate_closes_slowly_and_sooner_in_bad_answers() -> None:
    # The derivative of sigmoid(tau (r - 1)) 4 / tau is 4 p (1 - p), and that of r is r.
    _, gradient = computed(Surrogate("gate"))

    good, bad = (1 / (1 + math.exp(-speed * (ratio - 1))) for speed, ratio in ((1.0, 1.5), (GATE_BAD, 3.5)))
    assert gradient[0, 0].item() == pytest.approx(-4 * good * (1 - good) * 1.5 / 9)
    assert gradient[1, 1].item() == pytest.approx(2 * 4 * bad * (1 - bad) * 3.5 / 9)


@every
@pytest.mark.parametrize("how", ["answer", "token", "fixed"])
def test_at_the_sampling_policy_all_have_the_gradient_of_reinforce(surrogate: Surrogate, how: str) -> None:
    _, gradient = computed(surrogate, how=how, ratios=torch.ones_like(RATIOS))

    lengths = MASK.sum(dim=1, keepdim=True)
    divisor = {"answer": 3 * lengths, "token": 9, "fixed": 3 * 5}[how]
    torch.testing.assert_close(gradient, -OF_ANSWERS[:, None] * MASK / divisor)


@every
def test_the_ratio_of_an_answer_of_one_token_is_that_of_the_token(surrogate: Surrogate) -> None:
    one = torch.ones(3, 1).bool()

    def loss(what: Surrogate) -> Tensor:
        logprobs = OLD[:, :1] + RATIOS[:, :1].log()
        return grpo_loss(logprobs, OLD[:, :1], OF_ANSWERS, one, Count(3, 3, 1), surrogate=what).loss

    torch.testing.assert_close(loss(surrogate), loss(replace(surrogate, ratio="token")))


@pytest.mark.parametrize("form", ["clip", "gate"])
def test_an_answers_ratio_has_one_gradient_whoever_carries_it_where_its_tokens_are_worth_the_same(form: Any) -> None:
    # as the paper of GSPO says of its two versions
    whole, tokens = (computed(Surrogate(form, ratio), how="answer") for ratio in ("sequence", "sequence-token"))

    torch.testing.assert_close(whole[0].loss, tokens[0].loss)
    torch.testing.assert_close(whole[1], tokens[1])


@every
def test_what_stands_outside_of_the_mask_has_no_gradient(surrogate: Surrogate) -> None:
    _, gradient = computed(surrogate)

    assert gradient.isfinite().all()
    assert not gradient[~MASK].any()
    assert gradient[MASK].any()


@every
def test_losses_of_micro_batches_add_up_to_that_of_the_step(surrogate: Surrogate) -> None:
    logprobs = OLD + RATIOS.log()

    def of(rows: list[int]) -> GRPOLoss:
        return grpo_loss(logprobs[rows], OLD[rows], OF_ANSWERS[rows], MASK[rows], COUNT, surrogate=surrogate)

    whole, parts = of([0, 1, 2]), [of([0, 2]), of([1])]
    for name in ("loss", "clip_fraction", "approximate_kl"):
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))


@every
def test_the_ratio_of_something_odd_is_bounded(surrogate: Surrogate) -> None:
    logprobs = torch.full((1, 1), 1e4, dtype=torch.float64)

    result = grpo_loss(
        logprobs, logprobs * 0, -torch.ones(1), torch.ones(1, 1).bool(), Count(1, 1, 1), surrogate=surrogate
    )

    assert result.loss.isfinite()


@pytest.mark.parametrize(("estimator", "gradient"), [("k1", 1.5 * (0.4 + 1)), ("k2", 1.5 * 0.4), ("k3", 1.5 * 0.4)])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_a_corrected_pull_has_the_gradient_of_the_kl_to_the_start(estimator: Any, gradient: float, ratio: Any) -> None:
    # r d, where d = log pi - log pi_ref; k1's has r beside it, whose expectation is constant
    logprobs = torch.full((1, 1), math.log(1.5), dtype=torch.float64, requires_grad=True)
    given = {"reference": logprobs.detach() - 0.4, "kl_coef": 1.0, "estimator": estimator}
    result = grpo_loss(
        logprobs,
        torch.zeros(1, 1),
        torch.zeros(1),
        torch.ones(1, 1).bool(),
        Count(1, 1, 1),
        surrogate=Surrogate(ratio=ratio),
        **given,
    )

    assert torch.autograd.grad(result.loss, logprobs)[0].item() == pytest.approx(gradient)


def test_the_second_estimator_uncorrected_has_that_gradient_at_the_sampling_policy() -> None:
    # as in REINFORCE++
    logprobs = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    given = {"reference": logprobs.detach() - 0.4, "kl_coef": 1.0, "estimator": "k2", "corrected": False}

    result = grpo_loss(logprobs, logprobs.detach(), torch.zeros(1), torch.ones(1, 1).bool(), Count(1, 1, 1), **given)

    assert torch.autograd.grad(result.loss, logprobs)[0].item() == pytest.approx(0.4)
    assert result.pull.item() == pytest.approx(0.4**2 / 2)
