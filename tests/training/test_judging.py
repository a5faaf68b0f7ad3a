"""Judges of sampled answers: both orders, several judges, groups, and what counts as no opinion."""

from types import SimpleNamespace
from typing import Any

import pytest

from alignkit.contract.judges import JudgeClient, Question, Verdict
from alignkit.contract.reward_function import Answer
from alignkit.training.judging import group_win_rates, preferred
from alignkit.training.roles import Opened
from alignkit.training.rollouts import Rollout


def answers(*texts: str) -> list[Answer]:
    return [Answer("why?", text, True, {}, len(text)) for text in texts]


def judge(chance) -> tuple[JudgeClient, list[Question]]:
    """Make a judge of a function from two texts to the chance of the first, and a list of what it is asked."""
    asked: list[Question] = []

    def compare(questions):
        asked.extend(questions)
        return [Verdict(chance(question.first.text, question.second.text)) for question in questions]

    return JudgeClient(compare), asked


def longer(one: str, other: str) -> float:
    return 0.5 + 0.4 * ((len(one) > len(other)) - (len(one) < len(other)))


def test_each_pair_is_asked_in_both_orders() -> None:
    client, asked = judge(longer)
    one, other = answers("long", "no")

    assert preferred([client], [(one, other)]) == [pytest.approx(0.9)]
    assert asked == [Question(one, other), Question(other, one)]


def test_a_place_alone_wins_nothing() -> None:
    client, _ = judge(lambda one, other: 0.9)

    assert preferred([client], [tuple(answers("a", "b"))]) == [pytest.approx(0.5)]


def test_the_mean_of_several_judges_counts() -> None:
    certain, undecided = judge(longer)[0], judge(lambda one, other: 0.5)[0]

    assert preferred([certain, undecided], [tuple(answers("long", "no"))]) == [pytest.approx(0.7)]


def test_equal_texts_are_not_asked_about() -> None:
    client, asked = judge(longer)

    assert preferred([client], [tuple(answers("a", "a")), tuple(answers("bb", "b"))]) == [0.5, pytest.approx(0.9)]
    assert len(asked) == 2


def test_a_reply_that_is_not_valid_is_no_opinion() -> None:
    client, _ = judge(lambda one, other: None if one == "b" else 1.0)

    assert preferred([client], [tuple(answers("a", "b"))]) == [0.5]


def test_answers_are_compared_with_all_others_to_their_prompt() -> None:
    client, asked = judge(longer)

    found = group_win_rates([client], answers("aaa", "a", "aa", "bb", "b"), [0, 0, 0, 4, 4])

    assert found == pytest.approx([0.9, 0.1, 0.5, 0.9, 0.1])
    assert len(asked) == 2 * (3 + 1)


def test_an_answer_without_another_one_gets_one_half() -> None:
    client, asked = judge(longer)

    assert group_win_rates([client], answers("a", "b"), [0, 1]) == [0.5, 0.5]
    assert asked == []


class Letters:
    """A tokenizer of as many letters as tokens."""

    def batch_decode(self, answers: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return ["a" * len(answer) for answer in answers]


def test_a_prompt_that_is_asked_twice_in_a_row_has_two_groups() -> None:
    client, asked = judge(longer)
    opened: Any = Opened(None, Letters(), None, [], [], [], None, judged=True, judges=[client])  # type: ignore[arg-type]
    prompts: Any = [SimpleNamespace(text="why?", row={})]
    sides = Rollout([0] * 4, [[1]] * 4, [[1], [1, 1], [1, 1, 1], [1] * 4], [True] * 4, together=2)

    scored = opened.score_groups(prompts, sides)

    assert scored.total.tolist() == pytest.approx([0.1, 0.9, 0.1, 0.9])
    assert len(asked) == 4
