"""Judges behind endpoints: faults change nothing, nothing is paid for twice, and keys stay secret."""

import email.utils
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from alignkit_rlaif.endpoint import EndpointSettings, openai, reply_of
from loopback import FAULTS, HANGS, Server, says, serving
from pydantic import ValidationError

from alignkit import Answer, Judge, JudgeClient, JudgeError, Question, RecipeError, Verdict
from alignkit.http import FaultError, is_local, retry_after

QUICK = {"timeout": HANGS / 2, "pause": 0.001, "patience": 60.0}


def opened(
    server: Server | str, cache: Path | None = None, limits: dict[str, Any] | None = None, **more: Any
) -> JudgeClient:
    url = server if isinstance(server, str) else server.url
    settings = EndpointSettings.model_validate({"url": url, "limits": QUICK | (limits or {}), **more})
    return openai.open(Judge(name="critic", fingerprint="0", path=Path(), address="openai:m"), settings, cache)


def question(one: str = "good", other: str = "bad") -> Question:
    return Question(Answer("Why?", one, True), Answer("Why?", other, True), "Be kind.")


def longer(body: dict[str, Any]) -> dict[str, Any]:
    """Prefer the longer reply, more so the longer it is."""
    _, first, second = body["messages"][0]["content"].split("[Re")[1:4]
    share = len(first) / (len(first) + len(second.partition("Which")[0]))
    return says("A" if share > 0.5 else "B", {"A": 0.9 * share, " B": 0.9 * (1 - share), "x": 0.1})


def test_a_verdict_is_as_soft_as_the_probabilities() -> None:
    with serving(lambda body: says("A", {"A": 0.6, " B": 0.2, "x": 0.2})) as server:
        (verdict,) = opened(server).compare([question()])

    assert (verdict.first, verdict.mass) == (pytest.approx(0.75), pytest.approx(0.8))


def test_what_is_asked_names_both_replies_and_the_principle() -> None:
    with serving(lambda body: says("B")) as server:
        assert opened(server).compare([question()]) == [Verdict(0.0)]

    (body,) = server.asked
    assert {key: body[key] for key in ("model", "max_tokens", "temperature", "logprobs", "top_logprobs")} == {
        "model": "m", "max_tokens": 8, "temperature": 0.0, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    assert body["messages"][0]["content"] == (
        "Here is a request and two replies to it.\n\n[Request]\nWhy?\n\n[Reply A]\ngood\n\n[Reply B]\nbad\n\n"
        "Which reply is better? Judge by this: Be kind.\n\nAnswer with the letter A or B and nothing else."
    )


def test_probabilities_are_not_asked_for_where_the_source_says_so() -> None:
    with serving(lambda body: says("The better one is A.")) as server:
        assert opened(server, logprobs=False).compare([question()]) == [Verdict(1.0)]

    assert "logprobs" not in server.asked[0]


@pytest.mark.parametrize("text", ["", "neither", "A or B", "a better one"])
def test_a_reply_without_a_choice_is_no_verdict(text: str) -> None:
    with serving(lambda body: says(text)) as server:
        assert opened(server).compare([question()]) == [Verdict(None, 0.0)]


def test_faults_change_nothing(tmp_path: Path) -> None:
    questions = [question("good " * n, "bad " * m) for n in range(1, 13) for m in range(1, 9)]
    with serving(longer) as server:
        calm = opened(server).compare(questions)
    with serving(longer, faults=0.3) as server:
        judge = opened(server, tmp_path)
        stormy = judge.compare(questions)

    assert stormy == calm
    assert set(server.met) == set(FAULTS)
    assert len(server.asked) == len(questions)
    assert judge.results()["retries"] == sum(server.met.values())


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    with serving(longer) as server:
        first = opened(server, tmp_path).compare([question(), question()])
        judge = opened(server, tmp_path, {"concurrency": 1})
        again = judge.compare([question(), question("other")])

    assert (len(server.asked), again[0]) == (2, first[0])
    assert judge.results() == {"requests": 1, "tokens": 10, "retries": 0, "remembered": 1}


def test_half_a_line_of_the_journal_is_asked_again(tmp_path: Path) -> None:
    with serving(longer) as server:
        opened(server, tmp_path).compare([question("one"), question("two")])
        (journal,) = tmp_path.glob("judge-*.jsonl")
        journal.write_bytes(journal.read_bytes()[:-9])
        opened(server, tmp_path).compare([question("one"), question("two"), question("three")])
        opened(server, tmp_path).compare([question("one"), question("two"), question("three")])

    assert len(server.asked) == 4


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_rlaif_endpoint import opened, question
opened({url!r}, Path({cache!r}), {{"concurrency": 2}}).compare([question("x" * n) for n in range(1, 60)])
"""


def test_a_kill_costs_the_requests_in_flight_at_most(tmp_path: Path) -> None:
    def slowly(body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.02)
        return longer(body)

    with serving(slowly) as server:
        code = KILLED.format(tests=str(Path(__file__).parent), url=server.url, cache=str(tmp_path))
        child = subprocess.Popen([sys.executable, "-c", code])
        while len(server.asked) < 10 and child.poll() is None:
            time.sleep(0.01)
        child.kill()
        child.wait()
        time.sleep(0.1)
        opened(server, tmp_path).compare([question("x" * n) for n in range(1, 60)])

    assert 59 <= len(server.asked) <= 59 + 2


def test_a_judge_that_refuses_is_not_asked_again() -> None:
    with (
        serving(lambda body: (404, {"error": {"message": "no model m", "code": None}})) as server,
        pytest.raises(JudgeError) as refusal,
    ):
        opened(server).compare([question()])

    assert (str(refusal.value), refusal.value.status, len(server.headers)) == (
        "sources.critic: the judge refuses (status 404: no model m); "
        "check the source's url, its model's name and the key",
        69,
        1,
    )


def test_an_endpoint_without_probabilities_is_told_apart() -> None:
    with (
        serving(lambda body: (400, {"error": {"message": "logprobs are not supported"}})) as server,
        pytest.raises(JudgeError) as refusal,
    ):
        opened(server).compare([question()])

    assert refusal.value.remedy == "set the source's logprobs to false"


def test_a_judge_whose_money_is_spent_is_not_waited_for() -> None:
    with (
        serving(lambda body: (429, {"error": {"message": "no money", "code": "insufficient_quota"}})) as server,
        pytest.raises(JudgeError) as refusal,
    ):
        opened(server).compare([question()])

    assert refusal.value.problem == "the judge refuses (status 429: no money insufficient_quota)"


def test_a_judge_that_does_not_answer_ends_the_stage_when_patience_ends() -> None:
    with serving(lambda body: (503, {})) as server, pytest.raises(JudgeError) as refusal:
        opened(server, limits={"patience": 0.2}).compare([question(), question("two")])

    assert (str(refusal.value), refusal.value.status) == (
        "sources.critic: the judge does not answer (status 503: {}); the same command goes on from here once it does",
        69,
    )


def test_a_place_where_nobody_listens_does_not_answer() -> None:
    with pytest.raises(JudgeError) as refusal:
        opened("http://127.0.0.1:1/v1", limits={"patience": 0.05}).compare([question()])

    assert refusal.value.problem.endswith("Connection refused)")


def test_a_redirection_is_not_followed() -> None:
    with serving(lambda body: (302, {})) as server, pytest.raises(JudgeError) as refusal:
        opened(server).compare([question()])

    assert refusal.value.problem == "the judge refuses (status 302: {})"


@pytest.mark.parametrize(("name", "limit", "asked"), [("requests", 3, 3), ("tokens", 25, 3)])
def test_a_limit_stops_and_keeps_what_was_answered(tmp_path: Path, name: str, limit: int, asked: int) -> None:
    questions = [question("x" * n) for n in range(1, 6)]
    with serving(longer) as server:
        with pytest.raises(JudgeError) as refusal:
            opened(server, tmp_path, {name: limit, "concurrency": 1}).compare(questions)
        assert len(server.asked) == asked
        opened(server, tmp_path).compare(questions)

    assert len(server.asked) == 5
    assert str(refusal.value) == (
        f"sources.critic.limits.{name}: the judge has had its {limit} {name}; "
        f"raise limits.{name}; what was answered is kept, and not asked again"
    )


@pytest.mark.parametrize("name", ["requests", "tokens"])
def test_a_limit_counts_over_attempts(tmp_path: Path, name: str) -> None:
    limit = {"requests": 4, "tokens": 40}[name]
    with serving(lambda body: (503, {}) if name == "requests" else says("A")) as server:
        for attempt in range(3):
            with pytest.raises(JudgeError, match=f"the judge has had its {limit} {name}"):
                opened(server, tmp_path, {name: limit, "concurrency": 1}).compare(
                    [question("x" * n) for n in range(6 * attempt, 6 * attempt + 6)]
                )
        asked = len(server.headers)

    assert asked == 4


def test_what_a_stage_beside_this_one_spends_counts(tmp_path: Path) -> None:
    limits = {"requests": 3, "concurrency": 1}
    with serving(longer) as server:
        one, other = opened(server, tmp_path, limits), opened(server, tmp_path, limits)
        one.compare([question("one"), question("two")])
        with pytest.raises(JudgeError, match="the judge has had its 3 requests"):
            other.compare([question("three"), question("four")])

    assert len(server.asked) == 3


def test_half_a_line_of_what_was_spent_is_not_counted(tmp_path: Path) -> None:
    with serving(longer) as server:
        opened(server, tmp_path).compare([question("one"), question("two")])
        (spent,) = tmp_path.glob("spent-*-critic.jsonl")
        spent.write_bytes(spent.read_bytes()[:-3])
        opened(server, tmp_path, {"requests": 3}).compare([question("three")])

    assert len(server.asked) == 3


def test_a_key_goes_to_the_endpoint_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-canary")
    replies = iter([says("A"), (401, {"error": {"message": "sk-canary is no key"}})])
    with serving(lambda body: next(replies)) as server:
        judge = opened(server, tmp_path, key_env="JUDGE_KEY")
        judge.compare([question()])
        with pytest.raises(JudgeError) as refusal:
            judge.compare([question("other")])

    assert server.headers[0]["Authorization"] == "Bearer sk-canary"
    assert refusal.value.problem == "the judge refuses (status 401: *** is no key)"
    assert "sk-canary" not in "".join(traceback.format_exception(refusal.value))
    assert "sk-canary" not in "".join([*capfd.readouterr(), *(file.read_text() for file in tmp_path.iterdir())])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "sources.critic.key_env: the environment variable JUDGE_KEY is not set; set it to the key of http://h/v1"),
        ("a\nb", "sources.critic.key_env: the environment variable JUDGE_KEY holds no key; "
         "a key has no line breaks and plain characters only"),
    ],
)  # fmt: skip
def test_a_missing_key_is_refused_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch, value: str | None, problem: str
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value:
        monkeypatch.setenv("JUDGE_KEY", value)

    with pytest.raises(RecipeError) as refusal:
        opened("http://h/v1", key_env="JUDGE_KEY")

    assert str(refusal.value) == problem


@pytest.mark.parametrize("url", ["ftp://h/v1", "localhost:8000", "http://", "file:///etc/passwd", "http://me:pw@h/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="must"):
        EndpointSettings(url=url)


def test_a_rating_is_a_mean_of_grades_by_their_probability() -> None:
    with serving(lambda body: says("9", {"9": 0.5, "7": 0.5})) as server:
        rate = opened(server).rate
        assert rate is not None
        assert rate([Answer("Why?", "good", True)], "") == [pytest.approx(0.75)]


def test_ratings_by_several_principles_are_averaged() -> None:
    with serving(lambda body: says("9" if "kind" in body["messages"][0]["content"] else "none")) as server:
        rate = opened(server, principles=["Be kind.", "Be brief."]).rate
        assert rate is not None
        assert rate([Answer("Why?", "good", True)] * 2, "") == [1.0, 1.0]

    assert len(server.asked) == 2


def test_an_endpoint_writes_texts() -> None:
    with serving(lambda body: says(f"{body['max_tokens']} words")) as server:
        write = opened(server, text_tokens=99).write
        assert write is not None
        assert write([[{"role": "user", "content": "Hello"}]]) == ["99 words"]


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"choices": None}, {"choices": [{"message": {"content": 3}}]},
     {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": [{"token": "A"}]}]}}]},
     {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": [
         {"token": "A", "logprob": float("nan")}]}]}}]}],
)  # fmt: skip
def test_another_form_is_a_fault(value: Any) -> None:
    with pytest.raises(FaultError, match="its reply is no chat completion"):
        reply_of(value)


def test_a_wait_is_read_as_seconds_or_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)

    assert (retry_after("2.5"), retry_after("-1"), retry_after("soon"), retry_after(None)) == (2.5, 0.0, None, None)
    assert 25 < (retry_after(date) or 0) <= 30


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:1/v1", True),
        ("http://127.0.0.9/v1", True),
        ("http://[::1]/", True),
        ("https://a.b/v1", False),
    ],
)
def test_this_machine_is_not_asked_by_way_of_a_proxy(url: str, local: bool) -> None:
    assert is_local(url) == local


def test_a_journal_holds_replies_and_no_questions(tmp_path: Path) -> None:
    with serving(longer) as server:
        opened(server, tmp_path).compare([question("a private answer")])

    (journal,) = tmp_path.glob("judge-*.jsonl")
    (line,) = journal.read_text().splitlines()
    assert set(json.loads(line)) == {"key", "reply"}
    assert "private" not in line
