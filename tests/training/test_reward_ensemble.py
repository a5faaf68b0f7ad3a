"""Several heads on one body: taught by halves of the pairs, saved, opened as one reward, combined with doubt."""

import json
from pathlib import Path

import pytest
import torch
from opened import open_reward
from transformers import AutoModelForSequenceClassification

from alignkit.contract.kinds import Policy, RewardModel
from alignkit.contract.reward_function import Answer, HeadedScore
from alignkit.contract.sampling_settings import RewardShape, SamplingSettings
from alignkit.contract.settings import LoRA
from alignkit.errors import DataError, RecipeError
from alignkit.training.models import load_critic, load_for_reward_training, load_policy, score_head
from alignkit.training.pair_scores import taught_heads
from alignkit.training.reward_ensemble import Ensemble, agreement_of, doubts, spread_of
from alignkit.training.roles import check_members
from alignkit.training.rollouts import Rollout
from alignkit.training.saving import save_policy, save_reward
from alignkit.training.scoring import Scored, Weighted, score_answers
from alignkit.training.seen import shaped
from alignkit.training.weight_files import ScoreScale

ANSWERS = [Answer("how was the food?", text, finished=True) for text in (" good", " bad", " it was warm and good")]
SCALE = ScoreScale(0.2, 0.5, (0.1, 0.2, 0.3))
IDS = torch.arange(5, 17)[None]


def saved(policy: Policy, folder: Path, lora: LoRA | None = None, scale: ScoreScale = SCALE) -> RewardModel:
    torch.manual_seed(3)
    model, tokenizer = load_for_reward_training(policy, lora, heads=3)
    save_reward(model, tokenizer, folder, scale)
    return RewardModel(name="taste", fingerprint="0", path=folder)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora on lora"])
def test_heads_are_opened_as_one_reward_whose_score_is_their_mean(policy, tmp_path, lora) -> None:
    if lora:
        save_policy(*load_policy(policy, lora=lora), tmp_path / "adapter")
        policy = Policy(name="policy", fingerprint="0", path=tmp_path / "adapter")
    score = open_reward(saved(policy, tmp_path / "saved", lora))

    assert isinstance(score, HeadedScore)
    each = torch.tensor(score.heads(ANSWERS))
    assert each.shape == (3, score.count)
    assert each.std(dim=1).min() > 1e-3
    torch.testing.assert_close(torch.tensor(score(ANSWERS)), each.mean(dim=1))


@torch.no_grad()
def test_transformers_opens_them_and_each_is_less_its_own_mean(policy, tmp_path) -> None:
    reward = saved(policy, tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(reward.path, dtype=torch.float32)
    again, _ = load_critic(reward)

    expected = (plain(input_ids=IDS).logits - torch.tensor(SCALE.heads)) / SCALE.std

    assert plain.config.num_labels == 3
    assert json.loads((reward.path / "reward.json").read_text()) == {"mean": 0.2, "std": 0.5, "heads": [0.1, 0.2, 0.3]}
    torch.testing.assert_close(again(input_ids=IDS).logits, expected.mean(dim=1, keepdim=True))
    assert score_head(again).out_features == 1


def test_heads_are_no_classes(policy, tmp_path) -> None:
    reward = saved(policy, tmp_path / "saved")
    named = reward.model_copy(update={"label": "LABEL_1"})
    (tmp_path / "saved" / "reward.json").write_text(json.dumps({"mean": 0, "std": 1, "heads": [0, 0]}))

    with pytest.raises(DataError, match=r"reward.json tells of 2 heads, and the weights have 3"):
        open_reward(reward)
    with pytest.raises(RecipeError) as caught:
        open_reward(named)
    assert str(caught.value) == (
        "sources.taste.label: the reward model has 2 heads, of which the mean is the score, and no classes; "
        "leave label out"
    )


def test_each_head_is_taught_by_a_half_of_its_own() -> None:
    taught = taught_heads(1001, 3, seed=17)
    table = torch.tensor(taught)

    assert (table > 0).sum(dim=0).tolist() == [501, 501, 501]
    torch.testing.assert_close(table.sum(dim=0), torch.full((3,), 1001 / 3))
    assert 90 < int((table.sum(dim=1) == 0).sum()) < 160  # one in eight teaches none
    assert taught_heads(1001, 3, seed=17) == taught != taught_heads(1001, 3, seed=18)
    assert taught_heads(2, 1, seed=17) == [[1.0], [1.0]]


def test_doubt_is_taken_off_as_many_times_as_models_count() -> None:
    scores, weights = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([0.5, 0.5])

    assert spread_of(scores, weights).tolist() == [1.0, 0.0]
    assert doubts(scores, weights, "mean", 1.0).tolist() == [0.0, 0.0]
    assert doubts(scores, weights, "worst", 1.0).tolist() == [1.0, 0.0]  # 2 - 1
    assert doubts(scores, 2 * weights, "conservative", 0.5).tolist() == [1.0, 0.0]  # 2 * 0.5 * 1
    with pytest.raises(ValueError, match=r"weights \(3,\) must be one for each column of scores \(2, 2\)"):
        spread_of(scores, torch.ones(3))


def test_what_one_member_adds_to_all_answers_is_no_disagreement() -> None:
    one, weights = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 1.0])

    assert float(agreement_of(torch.stack([one, one + 5], dim=1), weights)) == pytest.approx(1.0)
    assert float(agreement_of(torch.stack([one, -one], dim=1), weights)) == pytest.approx(0.0)
    assert float(agreement_of(torch.stack([one, 0 * one], dim=1), weights)) == pytest.approx(0.5)  # (1/2)^2 of 1/2
    assert float(agreement_of(torch.ones(3, 2), weights)) == 1.0


def headed(*rows: list[float]) -> HeadedScore:
    return HeadedScore(lambda answers: [*rows][: len(answers)], len(rows[0]))


def test_members_are_the_heads_of_all_models_that_count() -> None:
    rewards = [
        Weighted("a", headed([1.0, 3.0], [2.0, 2.0]), 2.0, learned=True),
        Weighted("b", lambda answers: [5.0, 0.0], 1.0, learned=True),
        Weighted("rule", lambda answers: [1.0, 1.0], 0.5),
        Weighted("aside", headed([9.0, 7.0], [1.0, 3.0]), 0.0, learned=True),
        Weighted("harm", lambda answers: [2.0, 2.0], -1.0, learned=True),
    ]

    found = score_answers(ANSWERS[:2], rewards)

    assert found.total.tolist() == [2 * 2 + 5 + 0.5 - 2, 2 * 2 + 0 + 0.5 - 2]
    assert found.ensemble is not None
    assert list(found.ensemble.names) == ["a/1", "a/2", "b"]
    assert found.ensemble.weights.tolist() == [1.0, 1.0, 1.0]
    assert found.ensemble.scores.tolist() == [[1.0, 3.0, 5.0], [2.0, 2.0, 0.0]]
    assert (found.held_out, found.parts["aside"].tolist()) == (("aside",), [8.0, 2.0])


def test_one_head_is_no_ensemble() -> None:
    rewards = [Weighted("b", lambda answers: [5.0, 0.0], learned=True), Weighted("rule", lambda answers: [1.0, 1.0])]

    assert score_answers(ANSWERS[:2], rewards).ensemble is None


ROLLOUT = Rollout([0, 1], [[1], [1]], [[2], [2]], [True, True])
ENSEMBLE = Ensemble(["a/1", "a/2"], torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (RewardShape(), [4.5, 4.5]),
        (RewardShape(combine="worst"), [2.5, 4.5]),
        (RewardShape(combine="conservative", spread=0.5), [3.5, 4.5]),
        (RewardShape(combine="worst", clip=3.0), [2.5, 3.0]),
    ],
)
def test_what_is_learnt_from_is_as_the_members_are_combined(shape, expected) -> None:
    total = ENSEMBLE.scores.sum(dim=1) + 0.5  # of another reward

    found = shaped(ROLLOUT, Scored(total, {}, ensemble=ENSEMBLE), SamplingSettings(reward=shape))

    assert found.tolist() == expected


def test_scores_are_exchanged_and_parted_with_what_their_members_say() -> None:
    scored = Scored(torch.tensor([4.0, 4.0]), {}, ensemble=ENSEMBLE)

    exchanged = scored.with_rows([1], scored.every(2))

    assert exchanged.ensemble is not None
    assert exchanged.ensemble.scores.tolist() == [[1.0, 3.0], [1.0, 3.0]]
    assert scored.every(2, start=1).ensemble.scores.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        ([Weighted("a", lambda answers: [1.0], learned=True)], "one head of one reward model"),
        ([Weighted("a", lambda answers: [1.0])], "no reward model whose weight is above 0"),
    ],
)
def test_one_member_cannot_be_combined(rewards, told) -> None:
    settings = SamplingSettings(reward=RewardShape(combine="worst"))

    with pytest.raises(RecipeError) as caught:
        check_members(settings, rewards)

    assert str(caught.value) == (
        f"reward.combine = 'worst' does nothing: the stage learns from {told}; "
        "give the reward model heads = 3, name several, or leave combine out"
    )


def test_a_spread_is_refused_that_nothing_takes_off() -> None:
    with pytest.raises(ValueError, match='spread is what combine = "conservative" takes off'):
        RewardShape(combine="worst", spread=2.0)
