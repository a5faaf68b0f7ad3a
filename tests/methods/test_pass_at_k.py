"""Pass@k: the estimate is that of all ways to choose, and what was drawn before a kill is not drawn again."""

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

import pytest
from pydantic import ValidationError

from alignkit import FunctionReward, Prompts
from alignkit.errors import DataError
from alignkit.methods.pass_at_k import PassAtKSettings, chance_of_one, pass_at_k
from alignkit.testing import RecordingStage
from alignkit.training import answer_pool

SETTINGS = PassAtKSettings(prompts=6, answers=4, k=(1, 2), right=-9, max_new_tokens=4, max_length=64)
SHORT = FunctionReward(
    name="short", fingerprint="", path="", function="length", settings={"target": 1, "unit": "tokens"}
)


def asked(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"how was day {number}?"} for number in range(count)]


@pytest.mark.parametrize(("right", "answers", "k"), [(0, 4, 2), (1, 4, 2), (2, 5, 3), (4, 4, 4), (3, 4, 2)])
def test_the_estimate_is_the_share_of_all_ways_to_choose(right: int, answers: int, k: int) -> None:
    drawn = [True] * right + [False] * (answers - right)

    assert chance_of_one(right, answers, k) == pytest.approx(fmean(any(some) for some in combinations(drawn, k)))


def test_answers_are_right_from_a_sum_of_rewards_on(policy, records, stage) -> None:
    prompts = records(Prompts, [], asked(8))

    every = pass_at_k(SETTINGS, stage, policies=(policy,), rewards=(SHORT,), prompts=prompts)
    none = pass_at_k(
        SETTINGS.model_copy(update={"right": 9.0}), RecordingStage(stage.folder.parent / "b"), policies=(policy,),
        rewards=(SHORT,), prompts=prompts,
    )  # fmt: skip

    assert [every.rows()[0][name] for name in ("pass@1", "pass@2", "prompts")] == [1.0, 1.0, 6]
    assert [none.rows()[0][name] for name in ("pass@1", "pass@2")] == [0.0, 0.0]


def test_the_second_policy_is_told_beside_the_first(policy, records, stage) -> None:
    twin = policy.model_copy(update={"name": "twin"})

    pass_at_k(
        SETTINGS.model_copy(update={"right": 0.0}), stage, policies=(policy, twin), rewards=(SHORT,),
        prompts=records(Prompts, [], asked(8)),
    )  # fmt: skip

    told = stage.results
    assert [*told] == ["pass@1 tiny", "pass@1 twin", "pass@2 tiny", "pass@2 twin"]
    assert told["pass@1 twin"] == (told["pass@1 tiny"][1], told["pass@1 tiny"][1], None)


def test_what_was_drawn_before_a_kill_is_not_drawn_again(policy, records, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(answer_pool, "PART", 8)
    given = {"policies": (policy,), "rewards": (SHORT,), "prompts": records(Prompts, [], asked(8))}
    whole = pass_at_k(SETTINGS, RecordingStage(tmp_path / "whole"), **given).rows()
    stage = RecordingStage(tmp_path / "killed")
    counts: list[int] = []
    sample = answer_pool.sample_answers

    def counted(model: object, prompts: Sequence[object], **more: object) -> object:
        counts.append(len(prompts))
        if len(counts) == 2:
            raise KeyboardInterrupt
        return sample(model, prompts, **more)

    monkeypatch.setattr(answer_pool, "sample_answers", counted)
    with pytest.raises(KeyboardInterrupt):
        pass_at_k(SETTINGS, stage, **given)

    again = pass_at_k(SETTINGS, stage.again(), **given).rows()

    assert counts == [8, 8, 8, 8]
    assert again == whole


def test_more_are_not_told_from_fewer() -> None:
    with pytest.raises(ValidationError, match="k = 32 cannot be told from 16 answers; raise answers"):
        PassAtKSettings(k=(1, 32))


def test_without_held_out_prompts_it_is_refused(policy, records, stage) -> None:
    with pytest.raises(DataError, match="no prompt is held out"):
        pass_at_k(SETTINGS, stage, policies=(policy,), rewards=(SHORT,), prompts=records(Prompts, asked(8), []))
