"""Best of n: what one update puts into the weights, which answers are kept, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from tiny_models import uniform_models, updated

from alignkit.contract.kinds import Prompts
from alignkit.contract.sampling_settings import Generation
from alignkit.methods.best_of_n import BestOfNSettings, best_of_n, train
from alignkit.training.losses import best_of_groups
from alignkit.training.rollouts import Rollout
from alignkit.training.scoring import Scored

TOKENS = 16


def by_token(rollout: Rollout) -> Scored:
    scores = torch.tensor([float(answer[0]) for answer in rollout.answers])
    return Scored(scores, {"known": scores})


def test_one_update_puts_the_distribution_of_best_of_n_into_the_weights() -> None:
    """Token k of 16 equally likely ones is the best of 4 with the chance ((k + 1)^4 - k^4) / 16^4."""
    models = replace(uniform_models(TOKENS, 1, frozenset()), critic=None, reference=None)
    settings = BestOfNSettings(
        learning_rate=1e-2,
        updates=1,
        batch=8192,
        answers=4,
        epochs=20,
        generation=Generation(max_new_tokens=1, unfinished="subtract", penalty=0),
    )

    (figures,) = updated(train, models, settings, [[1]], by_token, 1)

    with torch.no_grad():
        found = models.policy(input_ids=torch.tensor([[1]])).logits[0, -1].softmax(-1).tolist()
    expected = [((k + 1) ** 4 - k**4) / TOKENS**4 for k in range(TOKENS)]
    assert found == pytest.approx(expected, abs=0.03)
    assert figures["objective/scores_kept"] == pytest.approx(sum(k * p for k, p in enumerate(expected)), abs=0.2)
    kl = sum(p * math.log(p * TOKENS) for p in found)
    assert math.log(4) - 3 / 4 - 0.1 < kl < math.log(4) - 3 / 4 + 0.02


def test_the_best_of_each_group_are_kept() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, 9.0])

    assert best_of_groups(scores, 3).tolist() == [1, 5]
    assert best_of_groups(scores, 3, keep=2).tolist() == [1, 2, 5, 3]


def test_of_equal_answers_the_first_is_kept() -> None:
    assert best_of_groups(torch.ones(6), 3).tolist() == [0, 3]


def test_to_keep_all_answers_is_refused() -> None:
    with pytest.raises(ValidationError) as refusal:
        BestOfNSettings(answers=4, keep=4, batch=8)

    told = "keep 4 of 4 answers chooses none; set keep below answers"
    assert str(refusal.value.errors()[0]["ctx"]["error"]) == told


def test_the_scores_of_answers_rise(policy, reward_model, records, stage) -> None:
    words = ["hello", "how", "are", "you", "what", "a", "lovely", "day", "today"]
    rows = [{"prompt": f"{a} {b}"} for a in words for b in words]
    generation = Generation(max_new_tokens=8, unfinished="subtract", penalty=0)
    settings = BestOfNSettings(learning_rate=1e-2, updates=12, batch=128, epochs=3, generation=generation)

    best_of_n(settings, stage, policy=policy, rewards=(reward_model,), prompts=records(Prompts, rows[32:], rows[:32]))

    scores = [figures["objective/scores"] for _, _, figures in stage.logs]
    assert sum(scores[-3:]) > sum(scores[:3]) + 3
    assert all(figures["objective/scores_kept"] > figures["objective/scores"] for _, _, figures in stage.logs)
    assert stage.results.keys() == {"reward", "length", "eos_rate"}
