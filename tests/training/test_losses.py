"""Golden vectors (computed once in double precision, equal to OpenRLHF's, verl's and torchrl's) and laws."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from alignkit.training.losses import (
    LOG_RATIO_LIMIT,
    PolicyLoss,
    ValueLoss,
    adapt_kl_coef,
    clipped_policy_loss,
    clipped_value_loss,
    dual_ascent,
    estimate_advantages,
    estimate_kl,
    explained_variance,
    lagrangian_scores,
    leave_one_out_advantages,
    masked_mean,
    penalise_unfinished,
    token_rewards,
    whiten,
)

EXPLODED = math.exp(LOG_RATIO_LIMIT)
JUNK = 9.0


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def everywhere(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def assert_equal(given: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(given, wanted, atol=1e-6, rtol=0)


RAGGED_REWARDS = table([0, 0, 0, 1], [0, -1, JUNK, JUNK])
RAGGED_VALUES = table([0.1, 0.2, 0.3, 0.4], [0.5, 0.25, JUNK, JUNK])
RAGGED_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()


def test_golden_rewards_of_one_answer() -> None:
    kl = table([0, 0.1, -0.2, 0.3])

    rewards = token_rewards(torch.ones(1, dtype=torch.float64), kl, everywhere(kl), kl_coef=0.05)

    assert_equal(rewards, table([0, -0.005, 0.01, 0.985]))


def test_golden_advantages_of_one_answer() -> None:
    rewards, values = table([0, -0.005, 0.01, 0.985]), table([0.5, 0.4, 0.3, 0.2])

    advantages, returns = estimate_advantages(rewards, values, everywhere(values), gamma=1, lam=0.95)

    assert_equal(advantages, table([0.392064, 0.517962, 0.655750, 0.785000]))
    assert_equal(returns, table([0.892064, 0.917962, 0.955750, 0.985000]))


def test_golden_advantages_of_ragged_answers() -> None:
    advantages, returns = estimate_advantages(RAGGED_REWARDS, RAGGED_VALUES, RAGGED_MASK, gamma=1, lam=0.95)

    assert_equal(advantages, table([0.799675, 0.7365, 0.67, 0.6], [-1.4375, -1.25, 0, 0]))
    assert_equal(returns, table([0.899675, 0.9365, 0.97, 1], [-0.9375, -1, 0, 0]))


def test_golden_advantages_with_discount() -> None:
    advantages, _ = estimate_advantages(RAGGED_REWARDS, RAGGED_VALUES, RAGGED_MASK, gamma=0.9, lam=0.8)

    assert_equal(advantages, table([0.385453, 0.424240, 0.492, 0.6], [-1.175, -1.25, 0, 0]))


def test_golden_whitened_advantages() -> None:
    advantages, _ = estimate_advantages(RAGGED_REWARDS, RAGGED_VALUES, RAGGED_MASK, gamma=1, lam=0.95)

    whitened = whiten(advantages, RAGGED_MASK)

    assert_equal(whitened, table([0.806020, 0.740729, 0.672001, 0.599656], [-1.506093, -1.312312, 0, 0]))


@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [("k1", [0.2, -0.5, 0]), ("k2", [0.02, 0.125, 0]), ("k3", [0.018731, 0.148721, 0])],
)
def test_golden_kl_estimates(estimator, wanted) -> None:
    estimate = estimate_kl(table([-1, -2, -0.5]), table([-1.2, -1.5, -0.5]), estimator)

    assert_equal(estimate, table(wanted))


def test_the_kl_estimate_is_k1_unless_another_is_asked_for() -> None:
    assert_equal(estimate_kl(table([-1, -2]), table([-1.2, -1.5])), table([0.2, -0.5]))


@pytest.mark.parametrize(("difference", "wanted"), [(30.0, 1 / EXPLODED + 29), (-30.0, EXPLODED - 31)])
def test_k3_of_an_odd_token_is_bounded(difference, wanted) -> None:
    assert estimate_kl(table([difference]), table([0]), "k3").item() == pytest.approx(wanted, abs=1e-12)


def test_golden_policy_loss() -> None:
    advantages, ratio = table([1, -1, 2, -0.5]), table([1.3, 0.7, 0.9, 1.5])

    result = clipped_policy_loss(ratio.log(), torch.zeros_like(ratio), advantages, everywhere(ratio), clip=0.2)

    assert_equal(result.loss, torch.tensor(-0.3625, dtype=torch.float64))
    assert_equal(result.clip_fraction, torch.tensor(0.5, dtype=torch.float64))


def test_a_policy_loss_tells_the_ratios_and_half_the_mean_of_their_squared_logarithms() -> None:
    ratio = table([1.3, 0.7]).requires_grad_()

    result = clipped_policy_loss(ratio.log(), table([0, 0]), table([1, -1]), everywhere(ratio))

    assert_equal(result.ratio, table([1.3, 0.7]))
    assert_equal(result.approximate_kl, torch.tensor((math.log(1.3) ** 2 + math.log(0.7) ** 2) / 4).double())
    assert not result.ratio.requires_grad
    assert not result.approximate_kl.requires_grad


def test_golden_policy_loss_of_each_token() -> None:
    advantages, ratio = table([1, -1, 2, -0.5]), table([1.3, 0.7, 0.9, 1.5])

    losses = [
        clipped_policy_loss(ratio[:, [i]].log(), table([0]), advantages[:, [i]], torch.tensor([[True]])).loss
        for i in range(4)
    ]

    assert_equal(torch.stack(losses), table([-1.2, 0.8, -1.8, 0.75])[0])


def test_golden_value_loss() -> None:
    values, old = table([0.9, 0.1, 0.35, 0]), table([0.5, 0.4, 0.3, 0.2])
    returns = table([0.892064, 0.917962, 0.955750, 0.985000])

    result = clipped_value_loss(values, old, returns, everywhere(values), clip=0.2)

    assert_equal(result.loss, torch.tensor(0.255389, dtype=torch.float64))
    assert_equal(result.clip_fraction, torch.tensor(0.25, dtype=torch.float64))


@pytest.mark.parametrize(("kl", "wanted"), [(0, 0.148464), (6, 0.15), (12, 0.151536), (30, 0.151536)])
def test_golden_kl_controller(kl, wanted) -> None:
    assert adapt_kl_coef(0.15, kl, target=6, horizon=10_000, episodes=512) == pytest.approx(wanted, abs=1e-9)


def ragged() -> st.SearchStrategy[tuple[Tensor, Tensor, Tensor]]:
    """Rewards, values and a mask of ragged answers."""

    def build(seed: int, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(lengths), max(lengths))
        mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
        numbers = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        return numbers[0], numbers[1], mask

    return st.builds(build, st.integers(0, 10_000), st.lists(st.integers(1, 6), min_size=2, max_size=5))


@given(ragged())
def test_advantages_without_discount_are_return_minus_value(case) -> None:
    rewards, values, mask = case

    advantages, returns = estimate_advantages(rewards, values, mask, gamma=1, lam=1)

    to_go = rewards.masked_fill(~mask, 0).flip(1).cumsum(1).flip(1).masked_fill(~mask, 0)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values.masked_fill(~mask, 0))


@given(ragged())
def test_junk_outside_of_the_mask_changes_no_advantage(case) -> None:
    rewards, values, mask = case

    clean = estimate_advantages(rewards, values, mask)
    junk = estimate_advantages(rewards.masked_fill(~mask, JUNK), values.masked_fill(~mask, float("nan")), mask)

    assert torch.equal(clean.advantages, junk.advantages)
    assert torch.equal(clean.returns, junk.returns)


@given(ragged())
def test_advantages_are_estimated_without_discount_and_with_a_lambda_of_95_percent(case) -> None:
    assert torch.equal(
        estimate_advantages(*case).advantages, estimate_advantages(*case, gamma=1.0, lam=0.95).advantages
    )


def test_answers_without_any_token_have_no_advantages() -> None:
    nothing = torch.zeros(2, 0)

    advantages, returns = estimate_advantages(nothing, nothing, nothing.bool())

    assert advantages.shape == returns.shape == (2, 0)


@given(ragged())
def test_more_padding_changes_no_advantage(case) -> None:
    rewards, values, mask = case
    wide = torch.nn.functional.pad

    narrow = estimate_advantages(rewards, values, mask).advantages
    padded = estimate_advantages(wide(rewards, (0, 3)), wide(values, (0, 3)), wide(mask, (0, 3))).advantages

    assert torch.equal(padded[:, : mask.shape[1]], narrow)
    assert not padded[:, mask.shape[1] :].any()


@given(ragged())
def test_whitened_values_have_mean_0_and_variance_1(case) -> None:
    values, _, mask = case

    whitened = whiten(values, mask)

    assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-6)
    spread = values[mask].var(unbiased=False).item()
    assert whitened[mask].var(unbiased=False).item() == pytest.approx(spread / (spread + 1e-8), abs=1e-3)
    assert not whitened[~mask].any()


def test_equal_values_are_whitened_to_0() -> None:
    assert whiten(table([3, 3, 3]), torch.tensor([[True, True, False]])).tolist() == [[0, 0, 0]]


@given(ragged())
def test_whitening_without_shift_keeps_the_mean(case) -> None:
    values, _, mask = case

    whitened = whiten(values, mask, shift_mean=False)

    torch.testing.assert_close(whitened[mask].mean(), values[mask].mean())


@given(ragged())
def test_rewards_add_up_to_score_minus_kl_penalty(case) -> None:
    kl, scores, mask = case

    rewards = token_rewards(scores[:, 0], kl, mask, kl_coef=0.1)

    torch.testing.assert_close(rewards.sum(1), scores[:, 0] - 0.1 * kl.masked_fill(~mask, 0).sum(1))


def test_the_score_stands_on_the_last_token_of_each_answer() -> None:
    rewards = token_rewards(torch.tensor([1.0, 2.0]), torch.zeros(2, 4), RAGGED_MASK, kl_coef=0.1)

    assert rewards.tolist() == [[0, 0, 0, 1], [0, 2, 0, 0]]


def test_rewards_are_made_on_the_device_of_their_mask() -> None:
    with torch.device("meta"):
        scores, kl, mask = torch.zeros(2), torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool)

    assert token_rewards(scores, kl, mask, kl_coef=0.1).device.type == "meta"


def test_an_unfinished_answer_gets_the_penalty_instead_of_its_score() -> None:
    scores = penalise_unfinished(torch.tensor([3.0, 5.0]), torch.tensor([True, False]), 1.0, "replace")

    assert scores.tolist() == [3, -1]


def test_an_unfinished_answer_loses_the_penalty() -> None:
    scores = penalise_unfinished(torch.tensor([3.0, 5.0]), torch.tensor([True, False]), 1.0, "subtract")

    assert scores.tolist() == [3, 4]


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 1.3), (-1.0, 0.7)])
def test_a_clipped_ratio_has_no_gradient(advantage, ratio) -> None:
    logprobs = table([ratio]).log().requires_grad_()

    clipped_policy_loss(logprobs, table([0]), table([advantage]), torch.tensor([[True]])).loss.backward()

    assert logprobs.grad is not None
    assert logprobs.grad.item() == 0


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 0.7), (-1.0, 1.3)])
def test_a_ratio_outside_the_clip_range_on_the_wrong_side_is_pulled_back(advantage, ratio) -> None:
    logprobs = table([ratio]).log().requires_grad_()

    clipped_policy_loss(logprobs, table([0]), table([advantage]), torch.tensor([[True]])).loss.backward()

    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(-advantage * ratio)


def test_a_masked_token_has_no_gradient() -> None:
    logprobs = torch.zeros(2, 4, requires_grad=True)
    values = torch.zeros(2, 4, requires_grad=True)
    advantages = torch.ones(2, 4)

    policy = clipped_policy_loss(logprobs, torch.zeros(2, 4), advantages, RAGGED_MASK).loss
    (policy + clipped_value_loss(values, torch.zeros(2, 4), advantages, RAGGED_MASK).loss).backward()

    assert logprobs.grad is not None
    assert values.grad is not None
    assert not logprobs.grad[~RAGGED_MASK].any()
    assert not values.grad[~RAGGED_MASK].any()
    assert logprobs.grad[RAGGED_MASK].all()
    assert values.grad[RAGGED_MASK].all()


def test_an_impossible_token_makes_no_nan() -> None:
    logprobs, advantages = table([-1e4]).requires_grad_(), table([1.0])

    result = clipped_policy_loss(logprobs, table([-1]), advantages, torch.tensor([[True]]))
    result.loss.backward()

    assert torch.isfinite(result.loss)
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()


@pytest.mark.parametrize(("logprob", "ratio"), [(1e4, EXPLODED), (-1e4, 1 / EXPLODED)])
def test_the_ratio_of_an_odd_token_is_bounded(logprob, ratio) -> None:
    result = clipped_policy_loss(table([logprob]), table([0]), table([1]), torch.tensor([[True]]))

    assert result.ratio.item() == pytest.approx(ratio)


def policy_part(rows: list[int], count: Tensor | None) -> PolicyLoss:
    ratio = table([1.3, 0.7, 0.9, 1.5], [0.5, 1.6, JUNK, JUNK])[rows]
    advantages = table([1, -1, 2, -0.5], [-1, 1, JUNK, JUNK])[rows]
    return clipped_policy_loss(ratio.log(), torch.zeros_like(ratio), advantages, RAGGED_MASK[rows], count=count)


def value_part(rows: list[int], count: Tensor | None, clip: float | None) -> ValueLoss:
    values, returns = RAGGED_VALUES[rows], torch.ones_like(RAGGED_VALUES[rows])
    return clipped_value_loss(values, torch.zeros_like(values), returns, RAGGED_MASK[rows], clip, count)


@pytest.mark.parametrize(
    "part",
    [policy_part, partial(value_part, clip=0.2), partial(value_part, clip=None)],
    ids=["policy", "value", "value without a clip"],
)
def test_what_losses_of_micro_batches_tell_adds_up_to_that_of_the_step(
    part: Callable[[list[int], Tensor | None], PolicyLoss | ValueLoss],
) -> None:
    whole, parts = part([0, 1], None), [part([row], RAGGED_MASK.sum()) for row in range(2)]

    for name in set(whole._fields) - {"ratio"}:
        assert_equal(sum((getattr(one, name) for one in parts), table([0])[0, 0]), getattr(whole, name))


def test_micro_batches_with_the_count_of_the_step_add_up_to_its_mean() -> None:
    values = table([1, 2, 3, 4], [5, 6, JUNK, JUNK])
    count = RAGGED_MASK.sum()

    parts = [masked_mean(values[[i]], RAGGED_MASK[[i]], count) for i in range(2)]

    assert_equal(parts[0] + parts[1], masked_mean(values, RAGGED_MASK))
    assert_equal(masked_mean(values, RAGGED_MASK), torch.tensor(3.5, dtype=torch.float64))


def test_a_batch_that_is_all_padding_has_loss_0() -> None:
    values = torch.full((2, 3), float("nan"))
    nothing = torch.zeros(2, 3, dtype=torch.bool)

    assert masked_mean(values, nothing).item() == 0
    assert clipped_policy_loss(values, values, values, nothing).loss.item() == 0


@pytest.mark.parametrize("side", [1, -1])
def test_a_value_that_moved_too_far_has_no_gradient(side) -> None:
    values = table([0.5 * side]).requires_grad_()

    # it may have come 0.2 of the way to 1, and what is left is 0.8
    result = clipped_value_loss(values, table([0]), table([side]), torch.tensor([[True]]))
    result.loss.backward()

    assert result.loss.item() == pytest.approx(0.8**2 / 2)
    assert result.clip_fraction.item() == 1
    assert values.grad is not None
    assert values.grad.item() == 0


def test_without_a_clip_the_value_loss_is_half_the_squared_error() -> None:
    result = clipped_value_loss(table([0.5]), table([0]), table([1]), torch.tensor([[True]]), clip=None)

    assert result.loss.item() == pytest.approx(0.125)
    assert result.clip_fraction.item() == 0


@given(ragged())
def test_k3_is_never_negative(case) -> None:
    logprobs, reference, _ = case

    assert (estimate_kl(logprobs, reference, "k3") >= 0).all()


def test_perfect_values_explain_all_and_a_constant_nothing() -> None:
    returns = table([1, 2, 3, 4])

    assert explained_variance(returns, returns, everywhere(returns)).item() == 1
    assert explained_variance(torch.ones_like(returns), returns, everywhere(returns)).item() == pytest.approx(0)


def test_the_share_that_values_explain_does_not_depend_on_their_scale() -> None:
    returns, values = table([1, 2, 3, 4]), table([1, 2, 3, 3])

    shares = [explained_variance(values * scale, returns * scale, everywhere(returns)).item() for scale in (1, 0.01)]

    # the errors 0, 0, 0, 1 have the variance 3 / 16, the returns 5 / 4
    assert shares == pytest.approx([1 - 3 / 20, 1 - 3 / 20])


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError) as refusal:
        masked_mean(torch.zeros(2, 1), torch.ones(2, 3, dtype=torch.bool))

    assert str(refusal.value) == "shapes (2, 1) and (2, 3) must be equal"


def test_scores_that_are_not_one_a_row_are_refused() -> None:
    with pytest.raises(ValueError) as refusal:
        token_rewards(torch.zeros(3), torch.zeros(2, 4), RAGGED_MASK, kl_coef=0.1)

    assert str(refusal.value) == "scores (3,) must be one for each row of the mask (2, 4)"


def test_golden_lagrangian_of_scores() -> None:
    """Two answers and two costs, by hand: (2 - 0.5 * 1 - 1.5 * 0) / 3 and (1 - 0.5 * -2 - 1.5 * 0.4) / 3."""
    excess = torch.tensor([[1.0, -2.0], [0.0, 0.4]])

    surrogate = lagrangian_scores(torch.tensor([2.0, 1.0]), excess, torch.tensor([0.5, 1.5]))

    assert surrogate.tolist() == pytest.approx([0.5, 1.4 / 3])


def test_the_advantage_of_a_lagrangian_is_that_of_reward_less_those_of_costs() -> None:
    """(A_r - l A_c) / (1 + l), as Safe RLHF has it, whatever the bound."""
    scores, costs, multiplier = torch.rand(8), torch.rand(1, 8), torch.tensor([0.7])
    reward, cost = (leave_one_out_advantages(values, 4) for values in (scores, costs[0]))

    surrogate = lagrangian_scores(scores, costs - 0.3, multiplier)

    advantages = leave_one_out_advantages(surrogate, 4)
    assert torch.allclose(advantages, (reward - 0.7 * cost) / 1.7, atol=1e-6)


def test_costs_that_are_none_of_the_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 multipliers and 2 scores do not fit"):
        lagrangian_scores(torch.zeros(2), torch.zeros(1, 3), torch.zeros(1))


@pytest.mark.parametrize(
    ("excess", "cap", "after"), [(2.0, math.inf, 0.7), (-2.0, math.inf, 0.3), (-9.0, math.inf, 0.0), (9.0, 0.6, 0.6)]
)
def test_a_multiplier_follows_the_excess_and_stays_in_its_bounds(excess, cap, after) -> None:
    assert dual_ascent(0.5, excess, 0.1, cap) == pytest.approx(after)
