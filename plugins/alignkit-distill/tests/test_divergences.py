"""Losses of distillation: beside TRL's, by laws, and by examples that are worked out by hand."""

import math

import pytest
import torch
from alignkit_distill.divergences import (
    add_rest,
    discounted,
    generalised_jsd,
    kl,
    on_the_way,
    skewed_kl,
    total_variation,
    with_rest,
)

HALF = torch.tensor([[0.5, 0.5]]).log()
SURE = torch.tensor([[0.9, 0.1]]).log()


def tables(rows: int = 6, tokens: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(3)
    policy, teacher = (3 * torch.randn(rows, tokens, generator=chance) for _ in range(2))
    return policy.log_softmax(dim=-1).requires_grad_(), teacher.log_softmax(dim=-1)


@pytest.mark.filterwarnings("ignore")  # of what TRL calls experimental
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_and_its_gradient_are_those_of_trl(beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    chance = torch.Generator().manual_seed(5)
    ours, theirs = (torch.randn(2, 5, 13, generator=chance, requires_grad=True) for _ in range(2))
    labels = torch.tensor([[1, 2, 3, -100, -100], [1, 2, 3, 4, 5]])

    expected = GKDTrainer.generalized_jsd_loss(ours, theirs, labels, beta, temperature)
    found = generalised_jsd(*((table / temperature).log_softmax(dim=-1) for table in (ours, theirs)), beta)
    loss = found[labels != -100].mean()

    assert float(loss) == pytest.approx(float(expected), abs=1e-6)
    (wanted,) = torch.autograd.grad(expected, ours, retain_graph=True)
    made, none = torch.autograd.grad(loss, (ours, theirs), allow_unused=True)
    assert torch.allclose(made, wanted, atol=1e-6)
    assert none is None


def test_the_ends_are_the_two_kls_by_hand() -> None:
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)

    assert float(generalised_jsd(HALF, SURE, 0.0)) == pytest.approx(forward)
    assert float(generalised_jsd(HALF, SURE, 1.0)) == pytest.approx(reverse)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_between_them_it_tends_to_the_ends(end: float) -> None:
    policy, teacher = ((table.double() / 4).log_softmax(dim=-1) for table in tables())
    near = abs(end - 1e-8)

    scaled = generalised_jsd(policy, teacher, near) / (near * (1 - near))

    assert torch.allclose(scaled, generalised_jsd(policy, teacher, end), rtol=1e-3)


def test_the_middle_is_symmetric_and_at_most_ln_2() -> None:
    policy, teacher = tables()

    one = generalised_jsd(policy, teacher, 0.5)

    assert torch.allclose(one, generalised_jsd(teacher, policy, 0.5), atol=1e-6)
    assert bool((one <= math.log(2)).all())


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_equal_distributions_are_at_0_with_no_gradient(beta: float) -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), requires_grad=True)
    policy = logits.log_softmax(dim=-1)

    apart = generalised_jsd(policy, policy.detach(), beta)
    (gradient,) = torch.autograd.grad(apart.sum(), logits)

    assert torch.allclose(apart, torch.zeros(4), atol=1e-6)
    assert torch.allclose(gradient, torch.zeros(4, 7), atol=1e-6)


def test_a_token_that_one_never_says_counts_nothing_where_it_has_no_share() -> None:
    never = torch.tensor([[1.0, 0.0]]).log()

    assert float(kl(never, HALF)) == pytest.approx(math.log(2))
    assert float(generalised_jsd(never, HALF, 1.0)) == pytest.approx(math.log(2))


@pytest.mark.parametrize(("beta", "sides"), [(0.0, ("teacher", "policy")), (1.0, ("policy", "teacher"))])
def test_the_skew_is_a_kl_against_a_mixture(beta: float, sides: tuple[str, str]) -> None:
    chances = {"policy": torch.tensor([0.5, 0.5]), "teacher": torch.tensor([0.9, 0.1])}
    one, other = (chances[side] for side in sides)
    mixed = 0.1 * one + 0.9 * other

    expected = float((one * (one / mixed).log()).sum())

    assert float(skewed_kl(HALF, SURE, beta, 0.1)) == pytest.approx(expected)


def test_total_variation_by_hand() -> None:
    assert float(total_variation(HALF, SURE)) == pytest.approx(0.4)


def test_all_the_way_is_the_teacher_and_none_is_the_policy() -> None:
    policy, teacher = tables()

    assert torch.allclose(on_the_way(policy, teacher, 1.0), teacher, atol=1e-6)
    assert torch.allclose(on_the_way(policy, teacher, 0.0), policy, atol=1e-6)
    assert not on_the_way(policy, teacher, 0.5).requires_grad


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_fewer_tokens_told_apart_are_never_further_from_each_other(beta: float) -> None:
    policy, teacher = tables()
    whole = generalised_jsd(policy, teacher, beta)

    likeliest = teacher.argsort(dim=-1, descending=True)
    coarse = [
        generalised_jsd(with_rest(policy, likeliest[:, :k]), with_rest(teacher, likeliest[:, :k]), beta)
        for k in (1, 3, 10)
    ]

    assert all(bool((less <= more + 1e-5).all()) for less, more in zip(coarse, [*coarse[1:], whole], strict=True))


def test_what_is_left_is_one_more_token() -> None:
    assert add_rest(torch.tensor([[0.5, 0.2]]).log()).exp()[0].tolist() == pytest.approx([0.5, 0.2, 0.3])


def test_later_rewards_are_discounted_and_tokens_that_are_not_learnt_passed_over() -> None:
    rewards = torch.tensor([[1.0, 5.0, 2.0, 4.0], [1.0, 1.0, 0.0, 0.0]])
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])

    assert discounted(rewards, mask, 0.5).tolist() == [[1 + 0.5 * (2 + 0.5 * 4), 0, 2 + 0.5 * 4, 4], [1.5, 1, 0, 0]]
    assert torch.equal(discounted(rewards, mask, 0.0), rewards * mask)


def test_tables_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        generalised_jsd(HALF, SURE[:, :1], 0.0)


def test_the_sampled_reward_has_the_gradient_of_the_reverse_kl() -> None:
    logits = torch.randn(5, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    teacher = torch.randn(5, generator=torch.Generator().manual_seed(4)).double().log_softmax(dim=-1)
    policy = logits.log_softmax(dim=-1)
    chances = policy.exp().detach()

    rewards = teacher - policy.detach()
    (by_samples,) = torch.autograd.grad(-(chances * rewards * policy).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad(generalised_jsd(policy[None], teacher[None], 1.0).sum(), logits)

    assert torch.allclose(by_samples, exact)
