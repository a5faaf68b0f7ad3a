"""Evaluate: policies side by side, on the same prompts and with the same luck."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from alignkit import FunctionReward, Policy, Prompts, Scores, Stage
from alignkit.contract.events import Result
from alignkit.contract.kinds import Snapshot
from alignkit.contract.settings import identity
from alignkit.errors import DataError
from alignkit.kit import load_policy
from alignkit.methods.evaluate import (
    CeilingSettings,
    EvaluateSettings,
    distinct,
    evaluate,
    report_attained,
    win_rate,
)
from alignkit.testing import RecordingStage
from alignkit.training import answer_pool
from alignkit.training.policy_answers import Drawn, answered, divergence, draw, reader
from alignkit.training.rollouts import answer_logprobs
from alignkit.training.saving import save_policy

SETTINGS = EvaluateSettings(prompts=16, max_new_tokens=6, samples=2, max_length=64)
GOLD = FunctionReward(name="gold", fingerprint="", path="", function="reviews-gold")


def asked(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"how was day {number}?"} for number in range(count)]


@pytest.fixture
def other(policy, tmp_path):
    """A policy whose weights are a little different."""
    model, tokenizer = load_policy(policy)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    save_policy(model, tokenizer, tmp_path / "other")
    return policy.model_copy(update={"name": "other", "path": tmp_path / "other"})


def test_a_tie_is_half_a_win_and_the_interval_is_wilsons() -> None:
    rate, low, high = win_rate([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 5.0])

    # 2 wins and a tie of 4: 0.625. Wilson with z = 1.96, n = 4: centre (0.625 + 0.4802) / 1.9604,
    # = 0.563762, half 1.96 / 1.9604 * sqrt(0.625 * 0.375 / 4 + 3.8416 / 64) = 0.344340
    assert rate == 0.625
    assert (low, high) == pytest.approx((0.219422, 0.908103), abs=1e-5)


@pytest.mark.parametrize(
    ("answers", "n", "share"), [([[1, 2, 1]], 1, 2 / 3), ([[1, 2], [1, 2]], 2, 0.5), ([[1]], 2, 0.0)]
)
def test_distinct_is_the_share_of_different_ngrams(answers: Sequence[Sequence[int]], n: int, share: float) -> None:
    assert distinct(answers, n) == pytest.approx(share)


def test_a_policy_beside_itself_ties_everywhere(policy, records, stage) -> None:
    twin = policy.model_copy(update={"name": "twin"})

    scores = evaluate(
        SETTINGS, stage, policies=(policy, twin), rewards=(GOLD,), prompts=records(Prompts, [], asked(20))
    )

    first, second = (json.loads(line) for line in (scores.path / "data.jsonl").read_text().splitlines())
    assert first | {"policy": "twin"} == second
    assert (second["win_rate"], second["kl"], second["prompts"]) == (0.5, pytest.approx(0, abs=1e-6), 16)


def test_another_policy_has_a_kl_from_the_first_and_samples_beside_it(policy, other, records, stage) -> None:
    scores = evaluate(
        SETTINGS, stage, policies=(policy, other), rewards=(GOLD,), prompts=records(Prompts, [], asked(20))
    )

    assert isinstance(scores, Scores)
    assert scores.rows()[1]["kl"] > 0.1
    assert [sorted(row) for row in stage.samples] == [
        sorted(["prompt", policy.name, f"{policy.name} reward", "other", "other reward"])
    ] * 6  # 2 that gained most, 2 that gained least, and 2 others
    assert set(stage.results) == {
        f"reward {policy.name}",
        "reward other",
        f"win rate other over {policy.name}",
        "kl other",
        "length other",
        "eos_rate other",
    }
    assert all(evaluate.tells(figure, {"policies": (policy.name, "other")}) for figure in stage.results)
    assert set(stage.measured.values()) == {16}


def test_kl_is_the_log_probability_under_the_policy_less_that_under_the_first(
    policy, other, records, stage, tmp_path
) -> None:
    rows = records(Prompts, [], asked(20))
    scores = evaluate(SETTINGS, stage, policies=(policy, other), rewards=(GOLD,), prompts=rows)

    (first, tokenizer), (second, _) = load_policy(policy), load_policy(other)
    (drawn,) = answered(
        SETTINGS, RecordingStage(tmp_path / "alone"), [other], [reader(SETTINGS, other)], list(rows.held_out())[:16]
    )
    with torch.no_grad():
        kl = [
            float((answer_logprobs(second, [p], [a]) - answer_logprobs(first, [p], [a])).sum())
            for p, a in zip(drawn.prompts, drawn.drawn.tokens, strict=True)
        ]

    assert tokenizer.get_vocab() == drawn.vocabulary
    assert scores.rows()[1]["kl"] == pytest.approx(fmean(kl), rel=1e-4)


def test_what_a_policy_answered_before_a_kill_is_not_asked_again(
    policy, other, records, stage, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"policies": (policy, other), "rewards": (GOLD,), "prompts": records(Prompts, [], asked(20))}
    whole = evaluate(SETTINGS, RecordingStage(tmp_path / "whole"), **given).rows()
    asked_of: list[str] = []
    deadly = {"other"}

    def dies(settings: EvaluateSettings, stage: Stage, policy: Policy, *rest: Any, **more: Any) -> Drawn:
        asked_of.append(policy.name)
        if policy.name in deadly:
            raise KeyboardInterrupt
        return draw(settings, stage, policy, *rest, **more)

    monkeypatch.setattr("alignkit.training.policy_answers.draw", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(SETTINGS, stage, **given)
    deadly.clear()
    resumed = evaluate(SETTINGS, stage.again(), **given).rows()

    assert asked_of == [policy.name, "other", "other"]
    assert resumed == whole


def test_policies_with_other_tokens_have_no_kl_from_each_other(policy, records, stage) -> None:
    rows = list(records(Prompts, [], asked(4)).held_out())
    _, ours = answered(SETTINGS, stage, [policy, policy], [reader(SETTINGS, policy)] * 2, rows)
    theirs = replace(ours, vocabulary={**ours.vocabulary, "other": 7})

    ties, none, zero = divergence(SETTINGS, policy, [ours, theirs, ours])

    assert (ties, none) == ([0.0] * 4, None)
    assert zero == [0.0] * 4


def test_without_held_out_prompts_there_is_nothing_to_evaluate_on(policy, records, stage) -> None:
    prompts = records(Prompts, asked(20), [])

    with pytest.raises(DataError) as error:
        evaluate(SETTINGS, stage, policies=(policy,), rewards=(GOLD,), prompts=prompts)

    assert str(error.value) == (
        f"source {prompts.name!r}: no prompt is held out, so there is nothing to evaluate on; raise its held_out"
    )


def test_fewer_prompts_than_wanted_are_told(policy, records, stage) -> None:
    evaluate(SETTINGS, stage, policies=(policy,), rewards=(GOLD,), prompts=records(Prompts, [], asked(3)))

    assert stage.warnings[0] == (
        "only 3 different prompts are held out, 16 are wanted; the intervals are wider",
        "raise the source's held_out, or give it more prompts",
    )


LONG = [{"prompt": "how was the day? " * 40}]


def test_a_prompt_that_leaves_no_room_is_left_out_for_all_and_told(policy, other, records, stage) -> None:
    settings = SETTINGS.model_copy(update={"max_lost": 0.5, "prompts": 3})
    prompts = records(Prompts, [], LONG + asked(3))

    scores = evaluate(settings, stage, policies=(policy, other), rewards=(GOLD,), prompts=prompts)

    assert [row["prompts"] for row in scores.rows()] == [3, 3]
    problem, remedy = stage.warnings[0]
    assert remedy == "raise max_length if they matter"
    assert problem == (
        "of 4 prompts, 1 left out: they do not fit in max_length 64 with an answer of 6 (the longest has 202 tokens)"
    )


def test_too_many_prompts_that_leave_no_room_are_refused(policy, records, stage) -> None:
    with pytest.raises(DataError) as error:
        evaluate(SETTINGS, stage, policies=(policy,), rewards=(GOLD,), prompts=records(Prompts, [], asked(3) + LONG))

    assert str(error.value) == (
        "of 4 prompts, 1 left out: they do not fit in max_length 64 with an answer of 6 (the longest has 202 tokens); "
        "raise max_length, or max_lost (now 0.05) if that is meant"
    )


def test_only_deciding_rewards_are_added_up(policy, other, records, stage) -> None:
    brief = FunctionReward(name="brief", fingerprint="", path="", function="reviews-gold", weight=5.0)
    settings = SETTINGS.model_copy(update={"deciding": ("gold",)})

    scores = evaluate(
        settings, stage, policies=(policy, other), rewards=(brief, GOLD), prompts=records(Prompts, [], asked(20))
    )

    row = scores.rows()[1]
    assert row["reward"] == pytest.approx(row["reward/gold"])
    assert row["each"]["reward"] == pytest.approx(row["each"]["reward/gold"])
    assert row["reward/brief"] == pytest.approx(row["reward/gold"])


def test_every_answers_scores_are_kept_to_be_compared_prompt_by_prompt(policy, records, stage) -> None:
    scores = evaluate(SETTINGS, stage, policies=(policy,), rewards=(GOLD,), prompts=records(Prompts, [], asked(20)))

    row = scores.rows()[0]
    assert len(row["each"]["reward"]) == 16
    assert sum(row["each"]["reward"]) / 16 == pytest.approx(row["reward"])


# The ceiling

WORDS = FunctionReward(name="words", fingerprint="", path="", function="length", settings={"target": 3})
CEILING = SETTINGS.model_copy(update={"ceiling": CeilingSettings(samples=16)})


@pytest.fixture
def given(policy, other, records) -> dict[str, Any]:
    return {"policies": (policy, other), "rewards": (WORDS,), "prompts": records(Prompts, [], asked(20))}


def test_without_a_ceiling_rows_and_identity_are_as_they_were(given, stage) -> None:
    rows = evaluate(SETTINGS, stage, **given).rows()

    assert not any({"ceiling", "attained"} & row.keys() for row in rows)
    assert "ceiling" not in identity(SETTINGS)
    assert "ceiling" in identity(CEILING)


def test_the_start_tells_the_ceiling_and_the_others_what_they_attained(policy, given, stage) -> None:
    start, other = evaluate(CEILING, stage, **given).rows()

    assert (start["ceiling"]["samples"], start["ceiling"]["prompts"]) == (16, 16)
    assert {(one["by"], one["n"]) for one in start["ceiling"]["best_of"]} == {("words", n) for n in (2, 4, 8, 16)}
    assert start["ceiling"]["curve"][0] == [0.0, start["ceiling"]["reward"]]
    assert "attained" not in start
    assert other["attained"]["kl"] == pytest.approx(other["kl"])
    assert other["attained"]["ceiling"] > start["ceiling"]["reward"]
    assert all(evaluate.tells(figure, {"policies": (policy.name, "other")}) for figure in stage.results)


def test_a_reward_that_does_not_decide_chooses_too_and_is_measured_by_the_one_that_does(given, stage) -> None:
    settings = CEILING.model_copy(update={"deciding": ("words",)})

    start, _ = evaluate(settings, stage, **given | {"rewards": (GOLD, WORDS)}).rows()

    best = {(one["by"], one["n"]): one["reward"] for one in start["ceiling"]["best_of"]}
    assert {by for by, _ in best} == {"gold", "words"}
    assert best["words", 16] > best["gold", 16]


def test_a_policy_that_is_better_than_any_can_be_is_warned_of(stage) -> None:
    attained = {"share": 1.4, "interval": (1.2, 1.6), "excess": 0.3, "excess_error": 0.05, "prompts": 64, "above": True}

    report_attained(stage, "other", "base", attained)

    assert stage.results == {"attained other from base": (None, 1.4, None), "above ceiling other": (None, 0.3, None)}
    assert stage.warnings == [
        (
            "the reward of other is 0.300 ± 0.100 above the most that any policy can have at its KL",
            "its reward or its KL is measured wrongly: look whether its tokens, its template and the ends of its "
            "answers are those of the start",
        )
    ]


def test_answers_for_the_ceiling_that_were_drawn_before_a_kill_are_not_drawn_again(
    given, stage, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_pool, "PART", 64)  # 4 parts of 4 prompts
    whole = evaluate(CEILING, RecordingStage(tmp_path / "whole"), **given).rows()
    sample, drawn = answer_pool.sample_answers, []

    def dies(model: Any, prompts: Sequence[Any], **how: Any) -> Any:
        if len(drawn) == 2:
            drawn.append(0)
            raise KeyboardInterrupt
        drawn.append(len(prompts))
        return sample(model, prompts, **how)

    monkeypatch.setattr(answer_pool, "sample_answers", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(CEILING, stage, **given)
    resumed = evaluate(CEILING, again := stage.again(), **given).rows()

    assert drawn == [64, 64, 0, 64, 64]
    assert resumed == whole
    assert len([event for event in again.events if isinstance(event, Result)]) == len(again.results)


def test_a_ceiling_that_fails_costs_no_other_figure(given, stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(answer_pool, "sample_answers", fails)
    with pytest.raises(RuntimeError):  # which a run tells as a warning
        evaluate(CEILING, stage, **given)

    assert stage.made is not None
    assert [row["policy"] for row in stage.made.rows()] == [policy.name for policy in given["policies"]]
    assert "reward other" in stage.results


def test_policies_are_held_against_the_start_that_is_named(policy, other, given, stage) -> None:
    third = policy.model_copy(update={"name": "third"})
    settings = CEILING.model_copy(update={"ceiling": CeilingSettings(samples=16, prompts=4, start="other")})

    first, start, last = evaluate(settings, stage, **given | {"policies": (policy, other, third)}).rows()

    assert not {"ceiling", "attained"} & first.keys()
    assert start["ceiling"]["prompts"] == 4
    assert last["kl"] == pytest.approx(0, abs=1e-6)
    assert last["attained"]["kl"] > 0.1


@pytest.mark.parametrize(
    ("ceiling", "problem"),
    [
        ({"samples": 8}, "samples = 8 tell no ceiling; take 16 or more, 64 are usual"),
        ({"start": "base"}, "prompts and start do nothing without samples; give samples, 64 are usual"),
    ],
)
def test_a_ceiling_that_cannot_be_told_is_refused(ceiling: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(problem)):
        EvaluateSettings.model_validate({"prompts": 16, "ceiling": ceiling})


def test_policies_on_the_way_are_rows_of_their_own(policy, other, records, stage, tmp_path) -> None:
    last = other.model_copy(
        update={"snapshots": (Snapshot(step=3, path=policy.path), Snapshot(step=6, path=other.path))}
    )
    given = {"rewards": (GOLD,), "prompts": records(Prompts, [], asked(20))}

    rows = evaluate(SETTINGS, stage, policies=(policy, last), **given).rows()

    assert [row["policy"] for row in rows] == [policy.name, "other@3", "other@6", "other"]
    assert [(row.get("of"), row.get("step")) for row in rows] == [
        (None, None),
        ("other", 3),
        ("other", 6),
        (None, None),
    ]
    assert rows[1]["each"] == rows[0]["each"]
    assert rows[2]["each"] == rows[3]["each"]
    assert not any("@" in name for name in stage.results)
    best = max(rows, key=lambda row: row["reward"])
    assert stage.results["peak reward other"][1] == pytest.approx(best["reward"])
    assert stage.results["peak kl other"][1] == pytest.approx(best["kl"])
    assert all("other@3" not in sample for sample in stage.samples)

    without = SETTINGS.model_copy(update={"snapshots": False})
    few = evaluate(without, RecordingStage(tmp_path / "few"), policies=(policy, last), **given).rows()
    assert few[1]["each"] == rows[3]["each"]
    assert len(few) == 2
