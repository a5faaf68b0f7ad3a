"""Losses of pairs against TRL's formulas and by their laws.

Golden numbers are what `XPOTrainer._compute_losses` and `NashMDTrainer._compute_losses` of TRL 0.22.2 (`pip install
--no-deps trl==0.22.2`) give for the tensors below in double precision, and their gradients by autograd. Nash-MD's is at
beta 0: TRL lets each token pay for its own departure from the start alone, the paper an answer's for all.
"""

import math
from dataclasses import replace

import pytest
import torch
from alignkit_online.online_dpo import OnlineDPOSettings, best_and_worst
from alignkit_online.preferring import chance_of, labelled, pair_loss, preference_loss
from alignkit_online.xpo import XPOSettings, exploring_loss

from alignkit.kit import Count, Experience, whole_answer_loss

OWN = torch.tensor([[-1.0, -2.0, -0.5], [-0.3, -1.2, 0.0]], dtype=torch.float64)
OWN_START = torch.tensor([[-1.5, -1.0, -0.4], [-0.8, -1.1, 0.0]], dtype=torch.float64)
OTHER = torch.tensor([[-2.0, -0.4, 0.0], [-1.0, -0.6, -2.2]], dtype=torch.float64)
OTHER_START = torch.tensor([[-1.2, -0.9, 0.0], [-1.4, -0.5, -1.9]], dtype=torch.float64)
LENGTHS = ([3, 2], [2, 3])
COUNT = Count(tokens=10, answers=4, longest=3)
WON = torch.tensor([1.0, 0.0], dtype=torch.float64)


def experience(logprobs, reference, lengths, advantages) -> Experience:
    answers = [[7] * length for length in lengths]
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]
    return Experience([[1]] * len(lengths), answers, mask, logprobs, advantages, reference)


def pairs(labels=WON) -> tuple[Experience, torch.Tensor]:
    """Return the answers of both sides, alternating, and their log-probabilities with gradient."""
    own = experience(OWN, OWN_START, LENGTHS[0], labels)
    part = own.alternating(experience(OTHER, OTHER_START, LENGTHS[1], 1 - labels))
    return part, part.logprobs.clone().requires_grad_()


GOLDEN = {
    "sigmoid": (
        0.5920527203106118,
        [[-0.23511817115631006, 0.23848382329405732], [0.31011817115631, -0.1634838232940573]],
    ),
    "ipo": (3.914444444444446, [[-5.9, 6.2], [5.975, -6.125]]),
}


@pytest.mark.parametrize("loss", GOLDEN)
def test_xpo_has_the_loss_and_the_gradient_of_trl(loss) -> None:
    part, logprobs = pairs()

    found, _ = exploring_loss(XPOSettings(loss=loss, alpha=0.05), 0.3, part, logprobs, COUNT)
    (gradient,) = torch.autograd.grad(found, logprobs)

    expected, (own, other) = GOLDEN[loss]
    assert found.item() == pytest.approx(expected, abs=1e-12)
    # TRL sums over padding, too, whose gradient is nobody's: of an answer each token has the same third.
    expected_rows = [row for two in zip(own, other, strict=True) for row in two]
    by_token = torch.tensor([[row / 3] * 3 for row in expected_rows], dtype=torch.float64) * part.mask
    torch.testing.assert_close(gradient, by_token)


def test_xpo_without_exploring_is_online_dpo() -> None:
    part, logprobs = pairs()

    exploring, _ = exploring_loss(XPOSettings(alpha=0.0), 0.3, part, logprobs, COUNT)
    plain, _ = pair_loss(OnlineDPOSettings(), 0.3, part, logprobs, COUNT)

    assert exploring.item() == plain.item()


def test_exploring_pushes_the_answers_of_the_start_down_and_nothing_else() -> None:
    part, logprobs = pairs()

    with_it, _ = exploring_loss(XPOSettings(alpha=0.5), 0.3, part, logprobs, COUNT)
    without, _ = exploring_loss(XPOSettings(alpha=0.0), 0.3, part, logprobs, COUNT)
    (gradient,) = torch.autograd.grad(with_it - without, logprobs)

    expected = torch.zeros(4, 3, dtype=torch.float64)
    expected[1, :2] = expected[3, :3] = 0.25
    torch.testing.assert_close(gradient, expected)


def test_nash_md_has_the_gradient_of_trl_for_preferences() -> None:
    part = experience(OWN, OWN_START, [3, 3], torch.tensor([0.8, 0.3], dtype=torch.float64) - 0.5)
    logprobs = OWN.clone().requires_grad_()

    loss, _ = whole_answer_loss(0.2, part, logprobs, Count(6, 2, 3))
    (gradient,) = torch.autograd.grad(loss, logprobs)

    torch.testing.assert_close(gradient, torch.tensor([[-0.15] * 3, [0.1] * 3], dtype=torch.float64))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("sigmoid", lambda margin, beta: math.log1p(math.exp(-beta * margin))),
        ("ipo", lambda margin, beta: (margin - 0.5 / beta) ** 2),
        ("hinge", lambda margin, beta: max(0.0, 1 - beta * margin)),
    ],
)
def test_a_soft_label_weighs_both_orders(loss, expected) -> None:
    gains = torch.tensor([[0.5, -1.0], [-2.0, 0.25]], dtype=torch.float64)

    found = preference_loss(gains, torch.tensor([0.75, 0.1], dtype=torch.float64), 0.5, loss)

    by_hand = [0.75 * expected(1.5, 0.5) + 0.25 * expected(-1.5, 0.5), 0.1 * expected(-2.25, 0.5)]
    by_hand[1] += 0.9 * expected(2.25, 0.5)
    assert found.tolist() == pytest.approx(by_hand)


def test_sppo_draws_each_gain_to_its_win_rate() -> None:
    gains = torch.tensor([[2.0, -1.0]])

    assert preference_loss(gains, torch.tensor([1.0]), 0.5, "sppo").item() == pytest.approx(1.0 + 0.0)
    assert preference_loss(gains, torch.tensor([0.75]), 0.5, "sppo").item() == pytest.approx(1.5**2 + 0.5**2)


def test_a_certain_label_of_sigmoid_is_least_where_margins_are_scores() -> None:
    """The soft loss of every pair is least at beta * margin = score difference, so that gains become score / beta."""
    scores = torch.tensor([0.7, -0.4], dtype=torch.float64)
    gains = (scores / 0.2)[None].clone().requires_grad_()

    loss = preference_loss(gains, (scores[0] - scores[1]).sigmoid()[None], 0.2, "sigmoid")
    (gradient,) = torch.autograd.grad(loss.sum(), gains)

    torch.testing.assert_close(gradient, torch.zeros(1, 2, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "sppo"])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_two_equal_answers_teach_nothing(loss, labels) -> None:
    scores = torch.tensor([1.5, 2.0])
    given = labelled(scores, scores, labels, judged=False)
    part, logprobs = pairs()

    settings = OnlineDPOSettings(loss=loss, labels=labels)
    found, _ = pair_loss(settings, 0.3, replace(part, advantages=given.flatten()), logprobs, COUNT)
    (gradient,) = torch.autograd.grad(found, logprobs)

    assert (found.item(), gradient.abs().max().item()) == (0.0, 0.0)


def test_what_stands_behind_an_answer_counts_nothing() -> None:
    part, logprobs = pairs()
    junk = torch.where(part.mask, logprobs.detach(), torch.tensor(9.0, dtype=torch.float64))

    plain, junked = (pair_loss(OnlineDPOSettings(), 0.3, part, table, COUNT)[0] for table in (logprobs, junk))

    assert plain.item() == junked.item()


def test_labels_are_hard_or_the_chance_that_is_known() -> None:
    one, other = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 3.0, 1.0])

    assert labelled(one, other, "hard", judged=False).tolist() == [[1, 0], [0, 1], [0, 0]]
    soft = labelled(one, other, "soft", judged=False)
    assert soft[0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])


def test_a_judges_chance_is_half_the_difference_of_its_scores() -> None:
    """Its scores of two answers are p and 1 - p; one that was cut and scores minus 1 has lost."""
    one, other = torch.tensor([0.8, 0.3, -1.0]), torch.tensor([0.2, 0.7, 0.4])

    assert chance_of(one, other, judged=True).tolist() == pytest.approx([0.8, 0.3, 0.0])


def test_the_best_and_the_worst_of_each_group_are_chosen() -> None:
    assert best_and_worst(torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, 9.0]), 3).tolist() == [[1, 0], [5, 4]]


def test_gains_of_another_number_than_labels_are_refused() -> None:
    with pytest.raises(ValueError) as refusal:
        preference_loss(torch.zeros(2, 2), torch.zeros(3), 0.1, "sigmoid")

    assert str(refusal.value) == "gains (2, 2) must be two for each of p (3,)"
