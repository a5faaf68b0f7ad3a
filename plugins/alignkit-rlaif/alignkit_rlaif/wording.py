"""What language models are asked that judge, and how their replies are read."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from alignkit import Answer, Question, Verdict

Chat: TypeAlias = list[dict[str, str]]

LETTERS = ("A", "B")
GRADES = tuple("123456789")
"""Single characters, so that a grade is one token of most models."""
CERTAIN = 0.5
"""Probability that must be on the options for it to be read; below, the words of the reply count."""

ASKED = "Here is a request"
PLAIN = "The better reply is the one that the person who asked would rather have."


def comparing(question: Question) -> Chat:
    """Ask which of two replies is better."""
    return _asking(
        f"{ASKED} and two replies to it.",
        _part("Request", asked(question.first)),
        _part("Reply A", question.first.text),
        _part("Reply B", question.second.text),
        f"Which reply is better? Judge by this: {question.principle or PLAIN}",
        "Answer with the letter A or B and nothing else.",
    )


def rating(answer: Answer, principle: str) -> Chat:
    """Ask how good a reply is."""
    return _asking(
        f"{ASKED} and a reply to it.",
        _part("Request", asked(answer)),
        _part("Reply", answer.text),
        f"How good is the reply? Judge by this: {principle or PLAIN}",
        "Answer with one digit from 1 (useless) to 9 (could not be better) and nothing else.",
    )


def criticising(answer: Answer, principle: str) -> Chat:
    """Ask what is wrong with a reply."""
    return _asking(
        f"{ASKED} and a reply to it.",
        _part("Request", asked(answer)),
        _part("Reply", answer.text),
        f"Judge by this: {principle}",
        "Say in two or three sentences what is wrong with the reply and how it could be better.",
    )


def revising(answer: Answer, principle: str, critique: str) -> Chat:
    """Ask for the reply again, in the light of what was said of it."""
    turn = "Now write the reply anew, so that it is better. Give the new reply alone, without a word about it."
    return [
        *criticising(answer, principle),
        {"role": "assistant", "content": critique.strip()},
        {"role": "user", "content": turn},
    ]


def _asking(*paragraphs: str) -> Chat:
    return [{"role": "user", "content": "\n\n".join(paragraphs)}]


def _part(name: str, text: str) -> str:
    return f"[{name}]\n{text.strip()}"


def asked(answer: Answer) -> str:
    """Return what an answer was asked, as text for a reader: a chat as its turns, below the tools that it may call."""
    prompt, tools = answer.row.get("prompt", answer.prompt), answer.row.get("tools")
    lines = [f"Tools: {json.dumps(tools, ensure_ascii=False)}"] if tools else []
    return "\n".join([*lines, prompt] if isinstance(prompt, str) else [*lines, *map(_turn, prompt)])


def _turn(turn: Mapping[str, Any]) -> str:
    calls = f" {json.dumps(turn['tool_calls'], ensure_ascii=False)}" if turn.get("tool_calls") else ""
    return f"{turn['role'].capitalize()}: {turn['content']}{calls}"


def verdict_of(weights: Mapping[str, float], text: str) -> Verdict:
    """Read which reply is better, from the probabilities of what the reply begins with, else from its words."""
    first, second = (_weight(weights, letter) for letter in LETTERS)
    found = {letter for letter in LETTERS if re.search(rf"\b{letter}\b", text)}
    if first + second < CERTAIN and len(found) == 1:
        return Verdict(float(found == {LETTERS[0]}))
    mass = first + second
    return Verdict(first / mass, min(mass, 1.0)) if mass > 0 else Verdict(None, 0.0)


def grade_of(weights: Mapping[str, float], text: str) -> float | None:
    """Read a grade as a number from -1 to 1, as `verdict_of` does; the mean of the grades by their probability."""
    shares = [_weight(weights, grade) for grade in GRADES]
    if sum(shares) >= CERTAIN:
        return scaled(shares)
    text = re.sub(r"(?:/| out of )9\b", "", text)
    found = {grade for grade in GRADES if re.search(rf"(?<![\d.,]){grade}(?![\d]|[.,]\d)", text)}
    return scaled([float(grade in found) for grade in GRADES]) if len(found) == 1 else None


def scaled(shares: Sequence[float]) -> float:
    """Turn probabilities of the grades 1 to 9 into their mean on a scale from -1 to 1."""
    mean = sum(place * share for place, share in enumerate(shares)) / sum(shares)
    return 2 * mean / (len(shares) - 1) - 1


def _weight(weights: Mapping[str, float], option: str) -> float:
    """Add up what begins with an option: bare, behind a space, in brackets."""
    return math.fsum(share for token, share in weights.items() if token.strip(" \n*.:()[]\"'") == option)
