"""`builtin:sums`: answers that can be checked, on sides that share no question, and as many wrong ones as it says."""

import pytest

from alignkit.demo.sums import COUNTS, WRONG, Kind, rows


def right(prompt: str) -> str:
    if prompt.endswith("="):
        one, other = prompt.removesuffix(" =").split(" + ")
        return str(int(one) + int(other))
    return " ".join(reversed(prompt.removesuffix(" reversed:").split()))


def test_the_answers_of_prompts_are_right() -> None:
    assert all(right(row["prompt"]) == row["answer"] for row in rows("prompts", "train"))


def test_some_demonstrations_are_wrong() -> None:
    made = list(rows("demonstrations", "train"))

    wrong = sum(row["completion"] != f" {right(row['prompt'])}" for row in made) / len(made)

    assert wrong == pytest.approx(WRONG, abs=0.03)


def test_nothing_that_is_held_out_is_learnt_and_no_question_comes_twice() -> None:
    asked = {(kind, side): [row["prompt"] for row in rows(kind, side)] for kind in COUNTS for side in COUNTS[kind]}

    learnt = {prompt for (_, side), prompts in asked.items() if side == "train" for prompt in prompts}
    held_out = {prompt for (_, side), prompts in asked.items() if side == "held_out" for prompt in prompts}
    assert not learnt & held_out
    assert [len({*prompts}) for prompts in asked.values()] == [len(prompts) for prompts in asked.values()]


@pytest.mark.parametrize("kind", COUNTS)
def test_the_rows_are_the_same_every_time(kind: Kind) -> None:
    assert list(rows(kind, "held_out")) == list(rows(kind, "held_out"))
