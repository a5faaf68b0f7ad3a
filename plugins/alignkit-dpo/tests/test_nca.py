"""NCA: its losses against those of pairs, its prompts, and what every method must keep."""

import pytest
import torch
from alignkit_dpo import preference_losses as losses
from alignkit_dpo.nca import by_prompt, concordant, nca

from alignkit import DataError, Ratings
from alignkit.kit import JudgedAnswer
from alignkit.testing import conformance, run_method, write_records

SETTINGS = {"learning_rate": 1e-2, "epochs": 1, "batch": 8, "precision": "fp32"}


def rated(number, first=0):
    """Return three answers to each prompt, with ratings 0, 1 and 2."""
    answers = (" was bad and cold", " was so so", " was good")
    return [
        {"prompt": f"the {place}", "completion": answer, "rating": float(rating)}
        for place in range(first, first + number)
        for rating, answer in enumerate(answers)
    ]


TestNCA = pytest.mark.slow(  # the loop is that of kto
    conformance(
        nca,
        SETTINGS,
        effects=["loss=infonca", "lora.rank=4"],
        inputs=lambda folder: {"answers": write_records(Ratings, folder / "answers", rated(16), rated(4, 16))},
    )
)


@pytest.mark.parametrize("loss", ["nca", "infonca"])
def test_the_better_answers_gain_more(alignkit_tiny_policy, alignkit_stage, alignkit_records, loss) -> None:
    answers = alignkit_records(Ratings, rated(16), rated(4, 16))

    run_method(
        nca, SETTINGS | {"epochs": 4, "loss": loss}, alignkit_stage, policy=alignkit_tiny_policy, answers=answers
    )

    before, after, floor = alignkit_stage.results["accuracy"]
    assert (before, floor) == (0.5, pytest.approx(1 / 3))
    assert after > 0.8


def test_one_answer_to_each_prompt_is_refused(alignkit_tiny_policy, alignkit_stage, alignkit_records) -> None:
    rows = [{"prompt": f"the {place}", "completion": " was good", "rating": 1.0} for place in range(4)]

    with pytest.raises(DataError) as refused:
        run_method(nca, SETTINGS, alignkit_stage, policy=alignkit_tiny_policy, answers=alignkit_records(Ratings, rows))

    assert str(refused.value) == "no prompt has two answers with ratings; give several answers to each prompt"


def test_of_two_answers_with_a_certain_label_the_losses_are_those_of_pairs() -> None:
    rewards, certain = torch.tensor([0.7, -0.2], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)

    torch.testing.assert_close(losses.infonca(rewards, certain), losses.sigmoid(rewards[0] - rewards[1]))
    torch.testing.assert_close(losses.rated_nca(rewards, certain), losses.nca(*rewards))


def test_rewards_that_differ_as_the_ratings_do_are_the_best_of_infonca() -> None:
    ratings = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    rewards = (ratings + 5.0).requires_grad_()

    losses.infonca(rewards, ratings.softmax(dim=0)).backward()

    torch.testing.assert_close(rewards.grad, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_nca_is_best_where_the_odds_of_an_answer_are_its_share_times_their_number() -> None:
    wanted = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    rewards = (3 * wanted).log().requires_grad_()  # s(r) = k w / (1 + k w)

    losses.rated_nca(rewards, wanted).backward()

    torch.testing.assert_close(rewards.grad, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_answers_are_put_together_by_their_prompt() -> None:
    rows = [JudgedAnswer([1], [2], {"rating": 2.0}), JudgedAnswer([9], [3], {"rating": 1.0})]
    rows += [JudgedAnswer([1], [4], {"label": True})]

    (found,) = by_prompt(rows)

    assert (found.prompt, found.answers, found.ratings) == ([1], ([2], [4]), (2.0, 1.0))


def test_concordance_counts_ties_half_and_no_equal_ratings() -> None:
    assert concordant([3.0, 1.0, 1.0, 0.0], [2.0, 1.0, 0.0, 0.0]) == (1 + 1 + 1 + 0.5 + 1) / 5
