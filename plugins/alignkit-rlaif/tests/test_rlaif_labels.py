"""Labels: both orders averaged, nothing guessed, everything counted; and `rlaif` whole, from policy to pairs."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from alignkit_rlaif import rlaif
from alignkit_rlaif.constitution import principles_of
from alignkit_rlaif.labels import AnswerPair, Judging, JudgingSettings, Prompted, drawn, label, opinions
from alignkit_rlaif.telling import RESULTS
from loopback import says, serving

from alignkit import Answer, DataError, Judge, JudgeClient, Preferences, Prompts, Question, StageError, Text, Verdict
from alignkit.testing import Left, RecordingStage, run_method, write_records


def answer(text: str, finished: bool = True) -> Answer:
    return Answer("Why?", text, finished)


def pair(one: str = "one", other: str = "two", *principles: str) -> AnswerPair:
    return AnswerPair(answer(one), answer(other), principles or ("",))


def says_of(verdict: Any) -> JudgeClient:
    """Make a judge of a function from question to verdict."""
    return JudgeClient(lambda questions: [verdict(question) for question in questions])


def by_length(question: Question) -> Verdict:
    one, other = len(question.first.text), len(question.second.text)
    return Verdict(one / (one + other))


def first(question: Question) -> Verdict:
    return Verdict(1.0)


def test_both_orders_are_averaged() -> None:
    judge = says_of(lambda question: Verdict(0.9 if question.first.text == "one" else 0.3, 0.8))

    (opinion,) = opinions(judge, [pair()], 0.0)

    assert opinion == (pytest.approx((0.9 + 0.7) / 2), pytest.approx(0.9 + 0.3 - 1), True, 0.8)


def test_the_other_way_round_is_the_opposite() -> None:
    judge = says_of(lambda question: Verdict(0.5 + len(question.first.text) / 100))
    forth, back = opinions(judge, [pair("a", "bbb"), pair("bbb", "a")], 0.0)

    assert forth
    assert back
    assert forth.one + back.one == pytest.approx(1.0)


def test_a_judge_of_places_has_no_opinion() -> None:
    (opinion,) = opinions(says_of(first), [pair()], 0.0)

    assert opinion == (0.5, 1.0, False, 1.0)


@pytest.mark.parametrize("bad", [Verdict(None), Verdict(1.0, 0.001)])
def test_one_order_without_a_valid_reply_is_no_opinion(bad: Verdict) -> None:
    judge = says_of(lambda question: bad if question.first.text == "one" else Verdict(0.0))

    assert opinions(judge, [pair()], 0.01) == [None]


def test_principles_are_averaged_and_invalid_ones_left_out() -> None:
    def verdict(question: Question) -> Verdict:
        if question.principle == "odd":
            return Verdict(None)
        return Verdict(1.0 if (question.first.text == "one") == (question.principle == "yes") else 0.0)

    found = opinions(says_of(verdict), [pair("one", "two", "yes", "no", "odd"), pair("one", "two", "yes", "odd")], 0.0)

    assert [opinion and opinion.one for opinion in found] == [0.5, 1.0]


def labelled(
    stage: RecordingStage,
    judge: JudgeClient,
    pairs: Sequence[AnswerPair],
    held_out: Sequence[int] = (),
    **settings: Any,
) -> list[dict[str, Any]]:
    prompts = [Prompted({"prompt": f"{number}?"}, number in held_out) for number in range(len(pairs))]

    def make(rows: Sequence[Any], seed: int) -> list[list[AnswerPair]]:
        return [[pairs[int(row["prompt"][:-1])]] for row in rows]

    given = JudgingSettings.model_validate({"batch": 2, **settings})
    made = label(stage, prompts, make, Judging(judge, given, lambda one: True))
    return [*made.train(), *made.held_out()]


def test_pairs_go_with_the_better_answer_first_and_its_chance(alignkit_stage: RecordingStage) -> None:
    rows = labelled(alignkit_stage, says_of(by_length), [pair("aaa", "a"), pair("b", "bbb")])

    assert [(row["chosen"], row["rejected"], row["p_chosen"]) for row in rows] == [
        ("aaa", "a", 0.75),
        ("bbb", "b", 0.75),
    ]


def test_a_pair_is_on_the_side_of_its_prompt(alignkit_stage: RecordingStage, tmp_path: Path) -> None:
    labelled(alignkit_stage, says_of(by_length), [pair("aaa", "a")] * 3, held_out=[1])

    lines = (alignkit_stage.root / "artifact" / "data.jsonl").read_text().splitlines()
    assert ['"held_out": true' in line for line in lines] == [False, True, False]


def test_chats_stay_chats(alignkit_stage: RecordingStage) -> None:
    asked = [{"role": "user", "content": "Why?"}]
    made = label(
        alignkit_stage,
        [Prompted({"prompt": asked}, False)],
        lambda rows, seed: [[pair("aaa", "a")]],
        Judging(says_of(by_length), JudgingSettings(), lambda one: True),
    )

    (row,) = [*made.train(), *made.held_out()]
    assert (row["prompt"], row["chosen"]) == (asked, [{"role": "assistant", "content": "aaa"}])


def test_what_is_dropped_is_counted(alignkit_stage: RecordingStage) -> None:
    def verdict(question: Question) -> Verdict:
        return Verdict(None) if "odd" in question.first.text else by_length(question)

    cut = AnswerPair(answer("aaaaa", finished=False), answer("b"))
    pairs = [pair("aaa", "a"), pair("ab", "ba"), pair("odd", "a"), pair("same", " same"), cut]
    rows = labelled(alignkit_stage, says_of(verdict), pairs)

    told = {name: after for name, (_, after, _) in alignkit_stage.results.items()}
    assert len(rows) == 1
    assert told == {
        "pairs": 5, "kept": 1, "ties": 1, "invalid": 1, "equal": 1, "cut": 1,
        "position_bias": 0.0, "order_consistency": 0.5, "option_mass": 1.0, "longer_wins": 1.0,
    }  # fmt: skip
    assert set(told) <= set(RESULTS)


def test_of_a_judge_that_always_says_first_every_pair_is_a_tie_and_none_is_labelled(
    alignkit_stage: RecordingStage,
) -> None:
    with pytest.raises(StageError) as refusal:
        labelled(alignkit_stage, says_of(first), [pair("aaa", "a"), pair("b", "bbb"), pair("c", "cc")], tie=0.0)

    assert str(refusal.value) == (
        "no pair is left of 3: 3 ties; the judge does not tell them apart: take another judge, or a smaller tie"
    )
    assert (alignkit_stage.results["position_bias"][1], alignkit_stage.results["kept"][1]) == (1.0, 0.0)
    assert not (alignkit_stage.root / "artifact").exists()


def test_invalid_replies_never_become_labels(alignkit_stage: RecordingStage) -> None:
    with pytest.raises(StageError) as refusal:
        labelled(alignkit_stage, says_of(lambda question: Verdict(None, 0.0)), [pair(), pair()])

    assert refusal.value.problem == "no pair is left of 2: 2 invalid"


def test_a_biased_judge_is_told(alignkit_stage: RecordingStage) -> None:
    def verdict(question: Question) -> Verdict:
        return Verdict(1.0 if len(question.first.text) >= len(question.second.text) - 2 else 0.0)

    labelled(alignkit_stage, says_of(verdict), [pair("a" * 9, "a"), pair("aa", "a"), pair("bb", "b")])

    assert [problem for problem, _ in alignkit_stage.warnings] == [
        "the judge favours whichever answer stands first (position bias +0.67)",
        "the longer answer won 100% of the pairs",
    ]


def test_a_judge_that_often_fails_to_reply_is_told(alignkit_stage: RecordingStage) -> None:
    def verdict(question: Question) -> Verdict:
        return Verdict(None) if "odd" in question.first.text else by_length(question)

    labelled(alignkit_stage, says_of(verdict), [pair("aaa", "a"), pair("odd", "a"), pair("a", "bbb"), pair("x", "yy")])

    assert alignkit_stage.warnings[0][0] == "the judge had no valid reply to 1 of 4 pairs"


def test_stopped_and_resumed_it_makes_the_same(tmp_path: Path) -> None:
    pairs = [pair("a" * n, "b" * (7 - n)) for n in range(1, 7)]
    whole = labelled(RecordingStage(tmp_path / "whole"), says_of(by_length), pairs)
    asked: Counter[str] = Counter()

    def counted(question: Question) -> Verdict:
        asked[question.first.text] += 1
        return by_length(question)

    with pytest.raises(Left):
        labelled(RecordingStage(tmp_path / "parts", stop_at=2), says_of(counted), pairs)
    again = labelled(RecordingStage(tmp_path / "parts"), says_of(counted), pairs)

    assert again == whole
    assert set(asked.values()) == {1}


def test_principles_come_with_the_package_or_from_the_recipe(tmp_path: Path) -> None:
    own = write_records(Text, tmp_path, [{"text": "Be brief."}], [{"text": "Be kind."}])

    assert principles_of(own) == ("Be brief.", "Be kind.")
    assert len(principles_of(None)) == 6


def test_drawn_principles_differ() -> None:
    from random import Random

    assert sorted(drawn(["a", "b", "c"], 5, Random(0))) == ["a", "b", "c"]
    assert drawn([], 1, Random(0)) == ("",)


WORDS = "was good bad and we liked it not at all my room is cold"
PROMPTS = [{"prompt": f"the food {word}"} for word in WORDS.split(" ")]
SETTINGS = {"max_new_tokens": 200, "pairs": "all", "batch": 8}


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    return write_records(Prompts, tmp_path / "prompts", PROMPTS[3:], PROMPTS[:3])


def ran(root: Path, tiny_policy: Any, prompts: Prompts, address: str, **options: Any) -> Preferences:
    judge = Judge(name="critic", fingerprint="0", path=Path(), address=address, options=options)
    stage = RecordingStage(root)
    made: Preferences = run_method(rlaif, SETTINGS, stage, policy=tiny_policy, prompts=prompts, judge=judge)
    return made


def longer(body: dict[str, Any]) -> dict[str, Any]:
    parts = body["messages"][0]["content"].split("[Reply ")
    return says("A" if len(parts[1]) > len(parts[2].partition("\n\nWhich")[0]) + 2 else "B")


def test_a_policys_answers_are_judged_by_an_endpoint(
    tmp_path: Path, alignkit_tiny_policy: Any, prompts: Prompts
) -> None:
    with serving(longer) as server:
        made = ran(tmp_path / "stage", alignkit_tiny_policy, prompts, "openai:m", url=server.url)

    rows = [*made.train(), *made.held_out()]
    assert rows
    assert all(len(row["chosen"].strip()) >= len(row["rejected"].strip()) for row in rows)
    assert {row["prompt"] for row in rows} <= {row["prompt"] for row in PROMPTS}
    assert len(server.asked) == len({str(body) for body in server.asked})


def test_with_faults_the_rows_are_the_same(tmp_path: Path, alignkit_tiny_policy: Any, prompts: Prompts) -> None:
    limits = {"timeout": 0.3, "pause": 0.001}
    made = []
    for share in (0.0, 0.3):
        with serving(longer, faults=share) as server:
            ran(tmp_path / str(share), alignkit_tiny_policy, prompts, "openai:m", url=server.url, limits=limits)
        made.append((tmp_path / str(share) / "artifact" / "data.jsonl").read_bytes())

    assert server.met
    assert made[0] == made[1]


def test_prompts_that_leave_no_room_are_left_out_and_told(tmp_path: Path, alignkit_tiny_policy: Any) -> None:
    rows = [*PROMPTS, {"prompt": "the food " * 90}]
    judge = Judge(name="critic", fingerprint="0", path=Path(), address="rule:reviews-gold")
    stage = RecordingStage(tmp_path / "stage")
    given = {"policy": alignkit_tiny_policy, "prompts": write_records(Prompts, tmp_path, rows), "judge": judge}
    with pytest.raises(StageError):  # a random policy's answers are all equally bad
        run_method(rlaif, SETTINGS, stage, **given)

    assert stage.warnings[0][0] == "1 of 15 prompts are left out: they leave no room for an answer"


def test_no_prompt_that_leaves_room_is_refused(tmp_path: Path, alignkit_tiny_policy: Any) -> None:
    judge = Judge(name="critic", fingerprint="0", path=Path(), address="rule:reviews-gold")
    asked = write_records(Prompts, tmp_path, [{"prompt": "the food " * 90}])
    given = {"policy": alignkit_tiny_policy, "prompts": asked, "judge": judge}

    with pytest.raises(DataError) as refusal:
        run_method(rlaif, SETTINGS, RecordingStage(tmp_path / "stage"), **given)

    assert str(refusal.value) == (
        "1 of 1 prompts are left out: they leave no room for an answer; raise max_length, or lower max_new_tokens"
    )


def test_of_an_endpoint_that_always_says_a_nothing_is_left(
    tmp_path: Path, alignkit_tiny_policy: Any, prompts: Prompts
) -> None:
    with serving(lambda body: says("A")) as server, pytest.raises(StageError) as refusal:
        ran(tmp_path / "stage", alignkit_tiny_policy, prompts, "openai:m", url=server.url)

    assert re.fullmatch(r"no pair is left of 84: \d+ ties, \d+ cut", refusal.value.problem)


def test_the_same_seed_gives_the_same_rows(tmp_path: Path, alignkit_tiny_policy: Any, prompts: Prompts) -> None:
    files = []
    for name in ("one", "other"):
        with serving(longer) as server:
            ran(tmp_path / name, alignkit_tiny_policy, prompts, "openai:m", url=server.url)
        files.append((tmp_path / name / "artifact" / "data.jsonl").read_bytes())

    assert files[0] == files[1]
