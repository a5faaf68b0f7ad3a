"""Losses of methods that compare the answers to a prompt: worked by hand, equal to TRL's, and laws."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from alignkit.training.losses import (
    LOG_RATIO_LIMIT,
    Count,
    GRPOLoss,
    PolicyLoss,
    average,
    group_advantages,
    grpo_loss,
    leave_one_out_advantages,
    most_uncertain,
    rloo_loss,
    share_of_equal_groups,
)
from alignkit.training.models import load_policy, without_deprecations
from alignkit.training.rollouts import answer_logprobs, answer_logprobs_and_entropy, answer_mask
from alignkit.training.surrogates import Surrogate

JUNK = 9.0
SCORES = torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0, 4.0], dtype=torch.float64)


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def assert_equal(given: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(given, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("scale", "wanted"),
    [
        # The means are 2 and 4; the deviations of the samples 1 and 0; that of all six, whose mean is 3 and whose
        # squares sum to 4 + 1 + 0 + 1 + 1 + 1 = 8, is sqrt(8 / 5).
        ("none", [-1, 0, 1, 0, 0, 0]),
        ("group", [-1 / 1.0001, 0, 1 / 1.0001, 0, 0, 0]),
        ("batch", [-1 / (math.sqrt(8 / 5) + 1e-4), 0, 1 / (math.sqrt(8 / 5) + 1e-4), 0, 0, 0]),
    ],
)
def test_golden_advantages_of_groups(scale, wanted) -> None:
    assert_equal(group_advantages(SCORES, 3, scale), table(wanted)[0])


def test_advantages_are_divided_by_the_deviation_of_the_group_unless_told_otherwise() -> None:
    assert_equal(group_advantages(SCORES, 3), group_advantages(SCORES, 3, "group"))


def test_two_answers_are_a_group() -> None:
    assert_equal(leave_one_out_advantages(SCORES, 2), table([-1, 1, -1, 1, 0, 0])[0])


def test_golden_leave_one_out_advantages() -> None:
    # 1 - (2 + 3) / 2, 2 - (1 + 3) / 2, 3 - (1 + 2) / 2
    assert_equal(leave_one_out_advantages(SCORES, 3), table([-1.5, 0, 1.5, 0, 0, 0])[0])


def test_a_mean_with_the_score_itself_in_it_shrinks_advantages_by_one_answer() -> None:
    assert_equal(group_advantages(SCORES, 3, "none"), (1 - 1 / 3) * leave_one_out_advantages(SCORES, 3))


def test_a_group_of_one_score_teaches_nothing_and_is_counted() -> None:
    assert share_of_equal_groups(SCORES, 3) == 0.5


@pytest.mark.parametrize(("scores", "answers"), [(torch.zeros(6), 4), (torch.zeros(6), 1), (torch.zeros(2, 3), 3)])
def test_scores_that_are_no_groups_are_refused(scores, answers) -> None:
    with pytest.raises(ValueError) as refusal:
        leave_one_out_advantages(scores, answers)

    assert str(refusal.value) == (
        f"scores {tuple(scores.shape)} are no whole number of groups of {answers}, two at least"
    )


VALUES = table([1, 2, 3, 6], [4, 8, JUNK, JUNK])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
COUNT = Count(tokens=6, answers=2, longest=5)


@pytest.mark.parametrize(
    ("how", "wanted"),
    # the sums of the answers are 12 and 12, their means 3 and 6
    [("answer", (3 + 6) / 2), ("token", 24 / 6), ("fixed", 24 / (2 * 5))],
)
def test_golden_averages(how, wanted) -> None:
    assert average(VALUES, MASK, how, COUNT).item() == pytest.approx(wanted)
    parts = [average(VALUES[[row]], MASK[[row]], how, COUNT) for row in range(2)]
    assert sum(parts).item() == pytest.approx(wanted)


def test_the_mean_of_an_answer_of_one_token_is_that_of_the_token() -> None:
    mask = torch.tensor([[True, False], [False, False]])

    assert average(table([3, JUNK], [JUNK, JUNK]), mask, "answer", Count(tokens=1, answers=2, longest=2)).item() == 1.5


def test_golden_grpo_loss() -> None:
    ratio, advantages = table([1.3, 0.7], [0.9, 1.5]), table([1, -1])[0]
    mask, count = torch.ones(2, 2).bool(), Count(4, 2, 2)

    result = grpo_loss(ratio.log(), torch.zeros(2, 2), advantages, mask, count, surrogate=Surrogate(low=0.2, high=0.28))

    # clipped at 1.28; 0.7 is free to rise; 0.9 and 1.5 of a bad answer are free to fall
    assert result.loss.item() == pytest.approx((-1.28 - 0.7 + 0.9 + 1.5) / 4)
    assert result.clip_fraction.item() == pytest.approx(1 / 4)


@pytest.mark.parametrize(("corrected", "gradient"), [(True, math.log(2)), (False, 1 - 1 / 2)])
def test_the_pull_has_the_gradient_of_the_kl_that_is_asked_for(corrected, gradient) -> None:
    # At the sampling policy, and with pi / pi_ref = 2: d = log 2 per token is the gradient of KL(pi || pi_ref), and
    # 1 - pi_ref / pi that of KL(pi_ref || pi).
    logprobs, mask = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True), torch.ones(1, 1).bool()

    result = grpo_loss(
        logprobs,
        logprobs.detach(),
        torch.zeros(1),
        mask,
        Count(1, 1, 1),
        reference=torch.full((1, 1), -math.log(2)),
        kl_coef=1.0,
        corrected=corrected,
    )
    result.loss.backward()

    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(gradient)
    assert result.pull.item() == pytest.approx(1 / 2 - 1 + math.log(2))


def test_grpo_clips_at_20_percent_averages_over_tokens_and_is_not_pulled_unless_told_otherwise() -> None:
    ratio, advantages = table([1.3, 0.7, 0.9, 1.5], [0.5, 1.6, JUNK, JUNK]), table([1, -1])[0]
    old, mask, count = torch.zeros_like(ratio), MASK, Count(6, 2, 4)

    plain = grpo_loss(ratio.log(), old, advantages, mask, count, reference=old - 0.1)

    assert_equal(
        plain.loss,
        grpo_loss(ratio.log(), old, advantages, mask, count, surrogate=Surrogate(high=0.2), how="token").loss,
    )
    assert plain.pull.item() == 0


def test_the_pull_is_corrected_unless_told_otherwise() -> None:
    old, advantages, count = torch.zeros(2, 4, dtype=torch.float64), table([1, -1])[0], Count(6, 2, 4)

    plain, corrected = (
        grpo_loss(old + 0.3, old, advantages, MASK, count, reference=old - 0.1, kl_coef=0.5, **options)
        for options in ({}, {"corrected": True})
    )

    assert_equal(plain.loss, corrected.loss)
    # d = 0.4 everywhere
    assert plain.pull.item() == pytest.approx(0.5 * (math.exp(-0.4) - 1 + 0.4) * math.exp(0.3))


def test_nothing_pulls_where_there_is_no_reference() -> None:
    old = torch.zeros(2, 4)

    assert grpo_loss(old, old, torch.ones(2), MASK, Count(6, 2, 4), kl_coef=0.5).pull.item() == 0


@pytest.mark.parametrize("how", ["answer", "token", "fixed"])
def test_the_pull_is_averaged_as_the_loss_is(how) -> None:
    logprobs, old = VALUES.log(), torch.zeros_like(VALUES)

    result = grpo_loss(logprobs, old, torch.zeros(2), MASK, COUNT, reference=old, kl_coef=0.5, how=how)

    assert result.pull.item() == pytest.approx(result.loss.item())
    assert result.pull.item() > 0


def test_golden_rloo_loss() -> None:
    # The answers' ratios are 1.1 * 1.2 = 1.32, clipped at 1.2, and 0.9, of which one token is padding.
    ratio, advantages = table([1.1, 1.2], [0.9, JUNK]), table([2, -1])[0]
    mask = torch.tensor([[1, 1], [1, 0]]).bool()

    result = rloo_loss(ratio.log(), torch.zeros(2, 2), advantages, mask, Count(3, 2, 2), clip=0.2)

    assert result.loss.item() == pytest.approx((-1.2 * 2 + 0.9) / 2)
    assert result.clip_fraction.item() == 0.5


def test_at_the_sampling_policy_rloo_has_the_gradient_of_reinforce() -> None:
    logprobs = table([-1, -2, -3], [-1, JUNK, JUNK]).requires_grad_()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()

    rloo_loss(logprobs, logprobs.detach(), table([2, -1])[0], mask, Count(4, 2, 3)).loss.backward()

    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-1, -1, -1], [0.5, 0, 0]]


def pulled(logprobs: Tensor, mask: Tensor) -> Tensor:
    old, count = torch.zeros_like(logprobs), Count(6, 2, 4)
    return grpo_loss(logprobs, old, table([1, -1])[0], mask, count, reference=old - 0.1, kl_coef=0.1).loss


def as_whole(logprobs: Tensor, mask: Tensor) -> Tensor:
    return rloo_loss(logprobs, torch.zeros_like(logprobs), table([1, -1])[0], mask, Count(6, 2, 4)).loss


RATIOS = table([1.3, 0.7, 0.9, 1.5], [0.5, 1.6, JUNK, JUNK])
GroupLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Count], GRPOLoss | PolicyLoss]


@pytest.mark.parametrize("loss", [grpo_loss, rloo_loss])
def test_what_losses_of_micro_batches_tell_adds_up_to_that_of_the_step(loss: GroupLoss) -> None:
    advantages, count = table([1, -1])[0], Count(6, 2, 4)

    whole, *parts = (
        loss(RATIOS[rows].log(), torch.zeros_like(RATIOS[rows]), advantages[rows], MASK[rows], count)
        for rows in ([0, 1], [0], [1])
    )

    for name in set(whole._fields) - {"ratio"}:
        assert_equal(sum((getattr(part, name) for part in parts), table([0])[0, 0]), getattr(whole, name))


@pytest.mark.parametrize("loss", [grpo_loss, rloo_loss])
def test_the_kl_that_a_loss_tells_is_half_the_mean_of_the_squared_logarithms_of_ratios(loss: GroupLoss) -> None:
    # Of the micro-batch, that is, divided by the tokens of the step.
    logprobs = RATIOS[[1]].log().requires_grad_()

    result = loss(logprobs, torch.zeros(1, 4), torch.ones(1), MASK[[1]], Count(6, 2, 4))

    assert result.approximate_kl.item() == pytest.approx((math.log(0.5) ** 2 + math.log(1.6) ** 2) / 2 / 6)
    assert not result.approximate_kl.requires_grad


@pytest.mark.parametrize(
    ("loss", "wanted"), [(grpo_loss, table([0.5, 1.6, 1, 1])), (rloo_loss, table([0.5 * 1.6])[0])], ids=["grpo", "rloo"]
)
def test_a_loss_tells_the_ratios_of_what_it_clips(loss: GroupLoss, wanted: Tensor) -> None:
    logprobs = RATIOS[[1]].log().requires_grad_()

    result = loss(logprobs, torch.zeros(1, 4), torch.ones(1), MASK[[1]], Count(2, 1, 4))

    assert_equal(result.ratio, wanted)
    assert not result.ratio.requires_grad


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("loss", [grpo_loss, rloo_loss])
def test_the_ratio_of_something_odd_is_bounded(loss: GroupLoss, side: int) -> None:
    result = loss(table([1e4 * side]), table([0]), torch.ones(1), torch.ones(1, 1).bool(), Count(1, 1, 1))

    assert result.ratio.item() == pytest.approx(math.exp(LOG_RATIO_LIMIT * side))


@pytest.mark.parametrize("loss", [pulled, as_whole], ids=["grpo", "rloo"])
def test_what_stands_outside_of_the_mask_changes_no_loss_and_no_gradient(loss) -> None:
    clean = torch.full((2, 4), 0.05, dtype=torch.float64).masked_fill(~MASK, 0).requires_grad_()
    junk = clean.detach().masked_fill(~MASK, float("nan")).requires_grad_()

    results = [loss(logprobs, MASK) for logprobs in (clean, junk)]
    for result in results:
        result.backward()

    assert results[0].item() == results[1].item()
    assert clean.grad is not None
    assert junk.grad is not None
    assert torch.equal(clean.grad, junk.grad)
    assert not junk.grad[~MASK].any()


PROMPT = [5, 6]
ANSWERS = [[7, 8, 9, 10], [11, 1], [12, 13, 1]]
LONGEST = 6


@dataclass
class Case:
    """The same answers for TRL and for us: far from what was sampled, so that clips bite."""

    trainer: Any
    inputs: dict[str, Tensor]
    logprobs: Tensor
    old: Tensor
    reference: Tensor
    advantages: Tensor
    mask: Tensor
    count: Count = field(default_factory=lambda: Count(sum(map(len, ANSWERS)), len(ANSWERS), LONGEST))

    def theirs(self) -> tuple[float, Tensor]:
        """Give TRL's loss and the gradient of the output layer's weights."""
        loss = self.trainer.compute_loss(self.trainer.model, self.inputs)
        return loss.item(), self.gradient(loss)

    def gradient(self, loss: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(loss, self.trainer.model.get_output_embeddings().weight)
        return found


def case(policy, tmp_path, config: Any, trainer: Any, **options: Any) -> Case:
    model, tokenizer = load_policy(policy, precision="fp32")
    with without_deprecations():
        args = config(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            num_generations=3,
            per_device_train_batch_size=3,
            max_completion_length=LONGEST,
            gradient_checkpointing=False,
            **options,
        )
        rows = Dataset.from_list([{"prompt": "hello"}] * 3)
        made = trainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
        )
    made.model.eval()
    mask = answer_mask(ANSWERS)
    ids = torch.tensor([answer + [0] * (4 - len(answer)) for answer in ANSWERS])
    logprobs = answer_logprobs(made.model, [PROMPT] * 3, ANSWERS)
    chance = torch.Generator().manual_seed(1)
    old, reference = (logprobs.detach() + 0.5 * torch.randn(ids.shape, generator=chance) for _ in range(2))
    advantages = torch.tensor([1.0, -2.0, 0.5])
    inputs = {
        "prompt_ids": torch.tensor([PROMPT] * 3),
        "prompt_mask": torch.ones(3, 2, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "old_logps": (old * mask).sum(dim=1),
        "num_items_in_batch": mask.sum(),
    }
    return Case(made, inputs, logprobs, old, reference, advantages, mask)


@pytest.mark.parametrize(("how", "theirs"), [("answer", "grpo"), ("token", "dapo"), ("fixed", "dr_grpo")])
@pytest.mark.parametrize("corrected", [True, False])
def test_the_loss_of_grpo_is_that_of_trl(policy, tmp_path, how, theirs, corrected) -> None:
    options = {"loss_type": theirs, "beta": 0.3, "epsilon_high": 0.28, "use_bias_correction_kl": corrected}
    some = case(policy, tmp_path, GRPOConfig, GRPOTrainer, **options)

    ours = grpo_loss(
        some.logprobs,
        some.old,
        some.advantages,
        some.mask,
        some.count,
        reference=some.reference,
        kl_coef=0.3,
        corrected=corrected,
        surrogate=Surrogate(high=0.28),
        how=how,
    )

    loss, gradient = some.theirs()
    assert 0 < ours.clip_fraction < 1
    assert ours.loss.item() == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(some.gradient(ours.loss), gradient, atol=1e-6, rtol=1e-5)


VARIANTS: dict[str, tuple[dict[str, Any], Surrogate, Any, float]] = {
    # TRL's options, ours, and what TRL's loss is multiplied by
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
        Surrogate(ratio="sequence", low=0.03, high=0.04),
        "answer",
        1,
    ),
    "luspo": ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, Surrogate(ratio="sequence"), "fixed", 6),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, Surrogate("weights", low=1.0, high=0.2), "token", 1),
    "sapo": ({"loss_type": "sapo"}, Surrogate("gate"), "answer", 1),
    "dual clip": ({"loss_type": "dapo", "delta": 1.3}, Surrogate(dual=1.3), "token", 1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_losses_of_variants_are_those_of_trl(policy, tmp_path, name) -> None:
    options, surrogate, how, factor = VARIANTS[name]
    some = case(policy, tmp_path, GRPOConfig, GRPOTrainer, beta=0.3, use_bias_correction_kl=False, **options)

    ours = grpo_loss(
        some.logprobs,
        some.old,
        some.advantages,
        some.mask,
        some.count,
        surrogate=surrogate,
        reference=some.reference,
        kl_coef=0.3,
        corrected=False,
        how=how,
    )

    loss, gradient = some.theirs()
    assert (ours.clip_fraction > 0) == (name != "sapo")
    assert ours.loss.item() * factor == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(some.gradient(ours.loss) * factor, gradient, atol=1e-6, rtol=1e-5)


def test_the_most_uncertain_tokens_are_those_that_trl_learns_from(policy, tmp_path) -> None:
    options = {"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": False, "top_entropy_quantile": 0.4}
    some = case(policy, tmp_path, GRPOConfig, GRPOTrainer, **options)
    entropy = answer_logprobs_and_entropy(some.trainer.model, [PROMPT] * 3, ANSWERS)[..., 1].detach()

    kept = most_uncertain(entropy, some.mask, 0.4)
    ours = grpo_loss(
        some.logprobs,
        some.old,
        some.advantages[:, None] * kept,
        some.mask,
        some.count,
        reference=some.reference,
        kl_coef=0.3,
        corrected=False,
    )

    loss, gradient = some.theirs()
    assert kept.sum() == 4  # of 9
    assert ours.loss.item() == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(some.gradient(ours.loss), gradient, atol=1e-6, rtol=1e-5)


def test_the_loss_of_rloo_is_that_of_trl(policy, tmp_path) -> None:
    some = case(policy, tmp_path, RLOOConfig, RLOOTrainer)

    ours = rloo_loss(some.logprobs, some.old, some.advantages, some.mask, some.count)

    loss, gradient = some.theirs()
    assert 0 < ours.clip_fraction < 1
    assert ours.loss.item() == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(some.gradient(ours.loss), gradient, atol=1e-6, rtol=1e-5)
