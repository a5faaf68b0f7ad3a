"""GRPO's variants: what makes no sense together, what a setting changes in the loop, and that every preset learns."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import STOP, llama, updated

from alignkit.errors import StageError
from alignkit.methods.grpo import GRPOSettings, advantages_of, grpo, train
from alignkit.testing import Left, RecordingStage, run_method, weights_of, write_inputs
from alignkit.testing.recording import settings_of_recipe
from alignkit.training.layouts import Models
from alignkit.training.losses import whiten
from alignkit.training.mixed_rows import OrderedRows
from alignkit.training.rollouts import Rollout
from alignkit.training.row_order import RowOrder
from alignkit.training.scoring import Scored
from alignkit.training.seen import Seen

PROMPTS = [[1], [2, 3], [4, 5, 6], [7, 1]]
PLAIN: dict[str, Any] = {
    "learning_rate": 1e-2,
    "updates": 2,
    "batch": 8,
    "answers": 4,
    "epochs": 2,
    "minibatches": 2,
    "generation": {"max_new_tokens": 4, "unfinished": "subtract", "penalty": 0.0},
}


def settings(**given: Any) -> GRPOSettings:
    made = settings_of_recipe(GRPOSettings, PLAIN | given)
    assert isinstance(made, GRPOSettings)
    return made


def models() -> Models:
    policy, reference = (llama(8) for _ in range(2))
    return Models(policy, reference.requires_grad_(False), None, frozenset([STOP]))


def shares(rollout: Rollout) -> Scored:
    """Score answers between 0 and 1."""
    scores = torch.tensor([answer.count(1) / len(answer) for answer in rollout.answers])
    return Scored(scores, {"ones": scores})


def run(given: GRPOSettings, some: Models | None = None, score: Any = shares) -> list[dict[str, float]]:
    return updated(train, some or models(), given, PROMPTS, score, 5)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"kl": {"coef": 0.0, "term": "k2"}}, 'term = "k2" counts a pull that coef = 0 switches off; leave it out'),
        (
            {"kl": {"term": "reward", "corrected": False}, "scale": "none"},
            'term = "reward" has the gradient of KL(policy || start) always; leave corrected out',
        ),
        (
            {"kl": {"term": "k1", "corrected": False}},
            'term = "k1" pulls nowhere on average unless it is corrected; leave corrected out',
        ),
        (
            {"surrogate": "weights", "dual_clip": 3.0},
            'dual_clip bounds the surrogate "clip", and surrogate is "weights"; leave dual_clip out',
        ),
        ({"surrogate": "gate", "clip_high": 0.3}, 'surrogate = "gate" clips nothing; leave clip and clip_high out'),
        ({"surrogate": "tapered", "clip": 0.3}, 'surrogate = "tapered" clips nothing; leave clip and clip_high out'),
        (
            {"surrogate": "geometric", "ratio": "sequence"},
            'surrogate = "geometric" takes the mean of ratios of tokens; leave ratio out',
        ),
        (
            {"surrogate": "geometric", "clip": 1.0},
            'surrogate = "geometric" takes logarithms of what clip leaves, so clip must be below 1',
        ),
        (
            {"surrogate": "weights", "ratio": "sequence-token"},
            'surrogate = "weights" has the gradient of each token always; set ratio = "sequence"',
        ),
        (
            {"ratio": "sequence", "uncertain": 0.2},
            "uncertain tells tokens of an answer apart, and one ratio stands for all; "
            'set ratio = "sequence-token"',
        ),
        (
            {"ratio": "sequence", "kl": {"term": "reward"}, "scale": "tokens"},
            'kl.term = "reward" tells tokens of an answer apart, and one ratio stands for all; '
            'set ratio = "sequence-token"',
        ),
        (
            {"best_of": 4},
            "teams of 4 of 4 answers cannot be compared; set best_of below answers",
        ),
        (
            {"best_of": 2, "scale": "batch"},
            'best_of has a baseline of its own; leave baseline out, and set scale to "group", "tokens" or "none"',
        ),
        (
            {"best_of": 2, "kl": {"term": "reward"}, "scale": "none"},
            'best_of judges whole answers, and kl.term = "reward" their tokens; set another term',
        ),
        (
            {"kl": {"term": "reward"}},
            'kl.term = "reward" rewards tokens, which scale = "group" does not; set "tokens" or "none"',
        ),
        (
            {"baseline": "none"},
            'baseline = "none" compares nothing within a group; set another scale than "group"',
        ),
        (
            {"generation": {"unfinished": "mask", "penalty": 2.0}},
            'unfinished = "mask" lets a cut answer pay nothing, so leave penalty out',
        ),
        (
            {"generation": {"overlong": 0.2}},
            'overlong spreads a penalty that is taken off: set unfinished = "subtract" and a penalty',
        ),
    ],
)  # fmt: skip
def test_settings_that_do_nothing_together_are_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        settings(**given)

    assert str(refusal.value.errors()[0]["ctx"]["error"]) == problem


@pytest.mark.parametrize("name", grpo.presets)
def test_a_preset_learns(name: str) -> None:
    given = settings(**{"answers": 8, "batch": 16, **grpo.presets[name].settings, "updates": 1})
    given = given.model_copy(update={"generation": given.generation.model_copy(update={"max_new_tokens": 4})})
    some = models()

    (figures,) = run(given, some)

    assert figures["policy/grad_norm"] > 0
    assert not all(map(torch.equal, some.policy.parameters(), models().policy.parameters()))


def answered(scores: list[float], finished: list[bool] | None = None) -> Seen:
    """Make what is seen of two answers a prompt, of which the second lacks its last token."""
    rows = len(scores)
    mask = torch.tensor([[True, True, True], [True, True, False]] * (rows // 2))
    rollout = Rollout(list(range(rows)), [[1]] * rows, [[1] * 3, [1] * 2] * (rows // 2), finished or [True] * rows)
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -1.5, 0.0]] * (rows // 2))
    reference = logprobs - torch.tensor([[0.1, 0.2, 0.3], [0.4, -0.5, 0.0]] * (rows // 2))
    entropy = torch.tensor([[0.1, 0.9, 0.2], [0.8, 0.3, 9.0]] * (rows // 2))
    return Seen(rollout, mask, torch.tensor(scores), logprobs, reference, None, None, {}, entropy)


def advantages(seen: Seen, kl_coef: float = 0.0, **given: Any) -> torch.Tensor:
    return advantages_of(settings(answers=2, **given), seen, kl_coef)


def test_the_pull_in_the_reward_is_paid_by_the_tokens_before() -> None:
    # REINFORCE++, equations 8 and 9: the score less what is still to be paid
    seen = answered([3.0, 5.0])

    found = advantages(seen, 2.0, kl={"term": "reward"}, baseline="none", scale="none")

    wanted = torch.tensor([[3 - 1.2, 3 - 1.0, 3 - 0.6], [5 + 0.2, 5 + 1.0, 0.0]])
    torch.testing.assert_close(found * seen.mask, wanted)
    whitened = advantages(seen, 2.0, kl={"term": "reward"}, baseline="none", scale="tokens")
    torch.testing.assert_close(whitened, whiten(wanted, seen.mask))


def test_with_the_pull_in_the_reward_whole_answers_are_compared() -> None:
    seen = answered([3.0, 5.0])

    found = advantages(seen, 2.0, kl={"term": "reward"}, scale="none")

    # 3 - 1.2 and 5 + 0.2, whose mean is 3.5
    torch.testing.assert_close(
        found * seen.mask, torch.tensor([[1.8, 2.0, 2.4], [5.2, 6.0, 3.5]]) * seen.mask - 3.5 * seen.mask
    )


def test_whitened_advantages_have_mean_0_and_variance_1_over_the_tokens() -> None:
    seen = answered([3.0, 5.0, 1.0, 9.0])

    found = advantages(seen, scale="tokens")

    under = found[seen.mask]
    assert under.mean().item() == pytest.approx(0, abs=1e-6)
    assert under.var(unbiased=False).item() == pytest.approx(1, abs=1e-5)


def test_only_the_most_uncertain_tokens_have_an_advantage() -> None:
    found = advantages(answered([3.0, 5.0]), scale="none", uncertain=0.4)

    assert found.tolist() == [[0, -1, 0], [1, 0, 0]]


def test_scores_that_are_no_shares_are_refused_where_their_means_are_taken_for_some() -> None:
    with pytest.raises(StageError) as refusal:
        advantages(answered([0.5, 1.5]), scale="beta")

    told = 'scale = "beta" needs scores from 0 to 1, and scores lie between 0.5 and 1.5; choose another scale'
    assert str(refusal.value) == told


def test_from_cut_answers_that_are_masked_nothing_is_learnt() -> None:
    generation = {"max_new_tokens": 1, "unfinished": "mask"}
    some, told = models(), []

    def unfinished(rollout: Rollout) -> Scored:
        told.append([*rollout.finished])
        return Scored(torch.arange(8.0), {"place": torch.arange(8.0)})

    log = run(settings(generation=generation, updates=1, kl={"coef": 0.0}), some, unfinished)

    assert not all(told[0])
    assert log[0]["objective/scores"] == 3.5  # what they score counts
    assert log[0]["length"] == 1
    everything_cut = Models(llama(8), llama(8).requires_grad_(False), None, frozenset([99]))
    before = [weight.clone() for weight in everything_cut.policy.parameters()]
    run(settings(generation=generation, updates=1, kl={"coef": 0.0}), everything_cut, unfinished)
    assert all(map(torch.equal, before, everything_cut.policy.parameters()))


def test_answers_that_were_nearly_cut_pay_a_part_of_the_penalty() -> None:
    generation = {"max_new_tokens": 4, "unfinished": "subtract", "penalty": 2.0, "overlong": 0.5}
    lengths: list[int] = []

    def nothing(rollout: Rollout) -> Scored:
        lengths.extend(map(len, rollout.answers))
        return Scored(torch.zeros(8), {"nothing": torch.zeros(8)})

    log = run(settings(generation=generation, updates=1, patience=0), score=nothing)

    assert {3, 4} <= {*lengths}
    wanted = [-2.0 * max(0.0, (length - 2) / 2) for length in lengths]
    assert log[0]["objective/scores"] == pytest.approx(sum(wanted) / 8)


class Hard:
    """A reward that tells answers apart for the prompts at some places alone, and writes down what it is asked."""

    def __init__(self, telling: set[int]) -> None:
        self.telling = telling
        self.asked: list[list[int]] = []

    def __call__(self, rollout: Rollout) -> Scored:
        self.asked.append(rollout.rows[::4])
        scores = torch.tensor([place % 4 * float(row in self.telling) for place, row in enumerate(rollout.rows)])
        return Scored(scores, {"hard": scores})


def test_prompts_whose_answers_score_the_same_are_exchanged_until_the_batch_is_whole() -> None:
    reward = Hard({0, 1, 2})

    log = run(settings(updates=4, dynamic_sampling=10), score=reward)

    first, *others = ([asked for asked in reward.asked if len(asked) == size] for size in (2, 1))
    assert len(first) == 4
    assert sum(map(len, others)) == sum(3 in asked for asked in reward.asked)
    assert [figures["val/groups_without_signal"] for figures in log] == [0] * 4
    assert sum(figures["val/groups_exchanged"] for figures in log) == sum(map(len, others)) / 2
    assert [figures["episode"] for figures in log] == [8, 16, 24, 32]


def test_prompts_are_exchanged_in_so_many_rounds_at_most() -> None:
    reward = Hard(set())

    log = run(settings(updates=1, dynamic_sampling=3), score=reward)

    assert [len(asked) for asked in reward.asked] == [2, 2, 2, 2]
    assert log[0]["val/groups_exchanged"] == 3
    assert log[0]["val/groups_without_signal"] == 1


def test_where_sources_are_mixed_prompts_are_exchanged_for_those_of_the_mix() -> None:
    reward = Hard(set())
    mixed = OrderedRows(PROMPTS, RowOrder([2, 2], [2, 0]))

    updated(train, models(), settings(updates=1, dynamic_sampling=3), mixed, reward, 5)

    assert [sorted(asked) for asked in reward.asked] == [[0, 1]] * 4


def test_where_every_prompt_teaches_nothing_is_exchanged_and_nothing_changes() -> None:
    one, other = models(), models()
    run(settings(), one, Hard({0, 1, 2, 3}))
    log = run(settings(dynamic_sampling=3), other, Hard({0, 1, 2, 3}))

    assert log[-1]["val/groups_exchanged"] == 0
    assert all(map(torch.equal, one.policy.parameters(), other.policy.parameters()))


EXCHANGING: dict[str, Any] = PLAIN | {
    "updates": 3,
    "precision": "fp32",
    "measured": 4,
    "dynamic_sampling": 2,
    "uncertain": 0.5,
    "reward": {"clip": 1e-3},  # so that many answers score the same
    "kl": {"term": "k2"},
}


def figures(stage: RecordingStage) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "per_second" not in k} for _, _, row in stage.logs]


def test_an_interrupted_stage_exchanges_the_same_prompts(tmp_path) -> None:
    inputs = write_inputs(grpo, tmp_path / "inputs", {})
    one, parts = RecordingStage(tmp_path / "one"), RecordingStage(tmp_path / "parts", stop_at=2)
    whole = run_method(grpo, EXCHANGING, one, **inputs)

    with pytest.raises(Left):
        run_method(grpo, EXCHANGING, parts, **inputs)
    parts = parts.again()
    again = run_method(grpo, EXCHANGING, parts, **inputs)

    assert any(row["val/groups_exchanged"] for row in figures(one))
    assert figures(parts) == figures(one)
    ours, theirs = weights_of(whole), weights_of(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
