"""A policy that judges: its probabilities of the options, in their context."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_rlaif import self_rlaif
from alignkit_rlaif.local import PolicyJudgeSettings, option_shares, option_tokens, policy
from alignkit_rlaif.wording import GRADES, LETTERS, comparing

from alignkit import Answer, Judge, JudgeClient, Policy, Prompts, Question, Verdict
from alignkit.kit import load_policy
from alignkit.testing import RecordingStage, run_method, write_records, write_tiny_policy


def opened(at: Policy, **settings: Any) -> JudgeClient:
    judge = Judge(name="critic", fingerprint="0", path=at.path, address="policy:tiny")
    return policy.open(judge, PolicyJudgeSettings(**settings), None)


def chats(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def by_hand(model: Any, prompt: Sequence[int], option: Sequence[int]) -> float:
    logits = model(torch.tensor([[*prompt, *option]])).logits[0].log_softmax(dim=-1)
    return float(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(option)).exp())


@torch.no_grad()
def test_shares_are_those_of_a_plain_pass(alignkit_tiny_policy: Policy) -> None:
    model, tokenizer = load_policy(alignkit_tiny_policy, precision="fp32", trainable=False)
    asked = chats("the food was good", "my room", "never")

    shares = option_shares(model, tokenizer, asked, GRADES)

    expected = [[by_hand(model, *row) for row in option_tokens(tokenizer, chat, GRADES)] for chat in asked]
    assert shares == [pytest.approx(row, rel=1e-3) for row in expected]


def test_an_option_is_read_in_its_context(alignkit_tiny_policy: Policy) -> None:
    _, tokenizer = load_policy(alignkit_tiny_policy)

    (one, a), (other, b) = option_tokens(tokenizer, chats("my room")[0], LETTERS)

    assert one == other
    assert (tokenizer.decode(a)[-1], tokenizer.decode(b)[-1]) == LETTERS


def test_a_question_longer_than_the_model_has_no_verdict(alignkit_tiny_policy: Policy) -> None:
    judge = opened(alignkit_tiny_policy)
    short, long = (Question(Answer("a", "b", True), Answer("a", "c " * n, True)) for n in (1, 400))

    verdicts = judge.compare([long, short])

    assert verdicts[0] == Verdict(None, 0.0)


def test_verdicts_are_the_shares_of_the_two_letters(
    monkeypatch: pytest.MonkeyPatch, alignkit_tiny_policy: Policy
) -> None:
    model, tokenizer = load_policy(alignkit_tiny_policy, trainable=False)
    question = Question(Answer("a", "b", True), Answer("a", "c", True), "d")
    model.config.max_position_embeddings = 4096
    ((a, b),) = option_shares(model, tokenizer, [comparing(question)], LETTERS)

    assert 0 < a + b < 1


def test_ratings_lie_between_minus_one_and_one(tmp_path: Path) -> None:
    judge = opened(roomy(tmp_path), principles=("Be kind.", "Be brief."))
    assert judge.rate is not None

    rated = judge.rate([Answer("my room", text, True) for text in (" is warm", " is cold")], "")

    assert all(value is not None and -1 < value < 1 for value in rated)


def test_it_compares_and_writes(tmp_path: Path) -> None:
    judge = opened(roomy(tmp_path), text_tokens=3)
    assert judge.write is not None

    (verdict,) = judge.compare([Question(Answer("a", "b", True), Answer("a", "c", True), "d")])
    texts = judge.write(chats("my room", "the food"))

    assert verdict.first is not None
    assert 0 < verdict.first < 1
    assert 0 < verdict.mass < 1
    assert [type(text) for text in texts] == [str, str]


def roomy(folder: Path) -> Policy:
    """Write a tiny policy that reads long texts."""
    made = write_tiny_policy(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}), "utf-8")
    return made


@pytest.mark.parametrize("critic", [None, pytest.param("other", marks=pytest.mark.slow)])
def test_a_policy_judges_its_own_answers_or_another_does(tmp_path: Path, critic: str | None) -> None:
    words = ["food", "room", "day", "rain", "fine", "one", "two", "three"]
    own, other = roomy(tmp_path / "own"), roomy(tmp_path / "other")
    prompts = write_records(Prompts, tmp_path / "prompts", [{"prompt": f"the {word}"} for word in words])
    given = {"policy": own, "prompts": prompts} | ({"critic": other} if critic else {})
    stage = RecordingStage(tmp_path / "stage")

    run_method(self_rlaif, {"max_new_tokens": 600, "tie": 0.0, "min_mass": 0.0}, stage, **given)

    assert (stage.results["kept"][1] or 0) > 0
    assert 0 < (stage.results["option_mass"][1] or 0) < 1
