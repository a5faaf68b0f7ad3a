"""What replies say: letters and grades, by probability or by words; and the package is light."""

import subprocess
import sys
from typing import Any

import pytest
from alignkit_rlaif import critique, openai, policy, revise, rlaif, self_rlaif
from alignkit_rlaif.wording import asked, comparing, grade_of, rating, revising, verdict_of

from alignkit import Answer, Question, Verdict
from alignkit.testing import undocumented


@pytest.mark.parametrize(
    ("weights", "text", "verdict"),
    [
        ({"A": 0.3, " B": 0.6}, "B", Verdict(pytest.approx(1 / 3), pytest.approx(0.9))),
        ({"(A": 0.5, "**B": 0.5}, "(A)", Verdict(0.5, 1.0)),
        ({"The": 0.9, "A": 0.01}, "The better one is B.", Verdict(0.0, 1.0)),
        ({"The": 0.9, "A": 0.03, "B": 0.01}, "The first.", Verdict(pytest.approx(0.75), pytest.approx(0.04))),
        ({}, "A", Verdict(1.0)),
        ({}, "A, not B", Verdict(None, 0.0)),
        ({}, "Absolutely", Verdict(None, 0.0)),
        ({}, "a", Verdict(None, 0.0)),
    ],
)
def test_a_verdict_is_read(weights: dict[str, float], text: str, verdict: Verdict) -> None:
    assert verdict_of(weights, text) == verdict


@pytest.mark.parametrize(
    ("weights", "text", "grade"),
    [
        ({"1": 1.0}, "1", -1.0),
        ({"9": 0.8}, "9", 1.0),
        ({"5": 0.25, " 9": 0.25}, "5", pytest.approx(0.5)),
        ({}, "I give it a 7.", 0.5),
        ({}, "7/9", 0.5),
        ({}, "7 out of 9", 0.5),
        ({}, "7 or 9", None),
        ({}, "10", None),
        ({}, "4.5", None),
        ({}, "0", None),
        ({}, "great", None),
    ],
)
def test_a_grade_is_read(weights: dict[str, float], text: str, grade: float | None) -> None:
    assert grade_of(weights, text) == grade


CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]


def test_a_chat_is_shown_with_its_turns() -> None:
    assert asked(Answer("<rendered>", "So.", True, {"prompt": CHAT})) == "User: Hi\nAssistant: Yes?\nUser: Why?"


def test_the_tools_that_could_be_called_are_shown_with_the_calls() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    call = {"function": {"name": "look", "arguments": {"thing": "door"}}}
    chat = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "red"}]

    assert asked(Answer("", "So.", True, {"prompt": chat, "tools": tools})) == (
        'Tools: [{"type": "function", "function": {"name": "look"}}]\n'
        "User: Hi\n"
        'Assistant:  [{"function": {"name": "look", "arguments": {"thing": "door"}}}]\n'
        "Tool: red"
    )


def test_without_a_principle_the_reader_decides() -> None:
    answer = Answer("Why?", "So.", True)
    plain = "Judge by this: The better reply is the one that the person who asked would rather have."

    assert plain in comparing(Question(answer, answer))[0]["content"]
    assert plain in rating(answer, "")[0]["content"]


def test_a_revision_is_asked_for_after_the_critique() -> None:
    turns = revising(Answer("Why?", "So.", True), "Be clear.", " Too short. ")

    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == "Too short."


def test_it_is_found_without_torch() -> None:
    code = "import sys, alignkit_rlaif; print(sorted({'torch', 'transformers'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("offer", [rlaif, self_rlaif, critique, revise, openai, policy], ids=lambda offer: offer.name)
def test_every_setting_is_documented(offer: Any) -> None:
    assert list(undocumented(offer.settings)) == []
