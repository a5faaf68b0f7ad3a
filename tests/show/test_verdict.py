"""The verdict: statistics in sentences, and what makes a good figure worthless comes first."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from alignkit.contract.events import Result
from alignkit.noise import change_interval, mean_interval
from alignkit.show.alarms import explained_by_length
from alignkit.show.sentences import MeasuredStage as Stage
from alignkit.show.verdict import RunVerdict, verdict_of
from alignkit.store.runs import KeptSetting


def verdict(*stages: Stage, state: str = "finished") -> RunVerdict:
    return verdict_of(stages, state)


def measured(name: str, before: list[float], after: list[float], better: Any = "higher", floor: Any = None) -> Result:
    was, now = sum(before) / len(before), sum(after) / len(after)
    return Result("s", name, was, now, floor, len(after), mean_interval(after), change_interval(before, after), better)


def spread(mean: float, rows: int = 256, wide: float = 0.3) -> list[float]:
    random = Random(str(mean))
    return [mean + random.gauss(0, wide) for _ in range(rows)]


ASKED = {"policies": ["start", "align"], "rewards": ["gold"], "prompts": ["prompts"]}


def test_a_run_that_got_better_says_so_with_everything_beside_it() -> None:
    results = [
        measured("reward align", spread(0.46), spread(0.85)),
        measured("kl align", [0.0] * 256, spread(1.3), ""),
        measured("length align", spread(20), spread(19), ""),
    ]

    found = verdict(Stage("scores", results, ASKED, "Scores"))

    assert found.lead.startswith("Gold from start to align rose 0.4")
    assert ", 256 prompts), KL 1.27" in found.lead
    assert found.lead.endswith("tokens. No alarm.")
    assert found.better is True


def test_what_cannot_be_told_is_not_told() -> None:
    found = verdict(Stage("align", [measured("reward", spread(0.5), spread(0.505))], {"prompts": ["p"]}))

    assert "it cannot be told from before" in found.lead
    assert "would be seen 4 times of 5" in found.lead
    assert found.better is False


def test_few_rows_are_called_too_few() -> None:
    result = measured("accuracy", [0.0, 1.0, 0.0, 1.0], [1.0] * 4, floor=0.6)

    found = verdict(Stage("reward", [result], {"pairs": ["p"]}))

    assert found.lead.startswith("Accuracy: 4 rows are too few to tell, 0.5 -> 1 (")
    assert ", 4 pairs, " in found.lead
    assert found.better is None


def test_what_fell_and_is_better_lower_got_better() -> None:
    found = verdict(Stage("tune", [Result("s", "perplexity", 9.0, 4.0, None, 200, (3.8, 4.2), (-5.3, -4.7), "lower")]))

    assert (found.lead, found.better) == ("Perplexity fell 9 -> 4 (-5.00 ± 0.30, 200 rows). No alarm.", True)


def test_what_got_worse_is_listed_and_leads() -> None:
    found = verdict(Stage("align", [measured("reward", spread(0.9), spread(0.3))], {"prompts": ["p"]}))

    assert found.lead.startswith("Align got worse. Reward fell")
    assert found.better is False
    assert len(found.worse) == 1


def test_a_reward_model_at_its_floor_leads() -> None:
    right = [float(row % 100 < 55) for row in range(200)]
    model = Stage("reward", [measured("accuracy", [0.5] * 200, right, floor=0.61)], {"pairs": ["p"]}, "RewardModel")
    align = Stage("align", [measured("reward", spread(0.1), spread(0.9))], {"rewards": ["reward"], "prompts": ["p"]})

    lead = verdict(model, align).lead

    told = "Reward is no better than its floor (accuracy 0.55, floor 0.61), and align learnt from it. Reward rose"
    assert lead.startswith(told)
    assert lead.endswith("1 alarm.")


def test_answers_that_do_not_end_lead() -> None:
    ended = measured("eos_rate", [1.0] * 200, [float(row % 8 == 0) for row in range(200)], "")
    found = verdict(Stage("align", [measured("reward", spread(0.1), spread(0.9)), ended], {"prompts": ["p"]}))

    assert found.lead.startswith("Answers of align do not end: 12% end by themselves, the others are cut. Reward rose")


def grown(slope: float) -> Stage:
    """Return a stage whose answers grew from 20 to 60 tokens; reward goes by length with this slope, and rose by 1."""
    random = Random(1)
    lengths = [[float(random.randint(low, low + 20)) for _ in range(256)] for low in (10, 50)]
    rewards = [[slope * (x - 20) + random.gauss(0, 0.1) + (1 - slope * 40) * i for x in lengths[i]] for i in (0, 1)]
    results = [measured("reward", *rewards), measured("length", *lengths, better="")]
    rows = {"reward before": rewards[0], "reward": rewards[1], "length before": lengths[0], "length": lengths[1]}
    return Stage("align", results, {"rewards": ["model"], "prompts": ["p"]}, rows=rows)


def test_length_that_is_learnt_for_reward_leads() -> None:
    found = verdict(grown(1 / 40))

    assert found.lead.startswith("What align learnt is length: answers grew ")
    assert explained_by_length(grown(1 / 40).rows) == pytest.approx(1, abs=0.05)


def test_longer_answers_that_are_not_paid_for_are_no_alarm() -> None:
    found = verdict(grown(0.0))

    assert not found.alarms
    assert found.worse[0].startswith("align: answers have become longer")


def test_a_reward_from_outside_that_rose_clears_length() -> None:
    scores = Stage("scores", [measured("reward align", spread(0.4), spread(0.8))], ASKED, "Scores")

    assert not verdict(grown(1 / 40), scores).alarms


@pytest.mark.parametrize(
    ("coefficient", "told"), [("0.0", "Nothing holds align to its start (kl.coef is 0)"), ("0.05", "Align is far")]
)
def test_a_policy_that_ran_away_leads(coefficient: str, told: str) -> None:
    results = [measured("reward", spread(0.1), spread(0.9)), measured("kl", [0.0] * 256, spread(40.0), "")]
    stage = Stage("align", results, settings=[KeptSetting("ppo.kl.coef", coefficient, "0.05", "")])

    lead = verdict(stage).lead

    assert lead.startswith(told)
    assert "KL 40" in lead or "KL 39.9" in lead


def test_a_reward_that_rose_while_that_from_outside_fell_is_over_optimisation() -> None:
    align = Stage("align", [measured("reward", spread(0.1), spread(0.9))], {"rewards": ["model"], "prompts": ["p"]})
    scores = Stage("scores", [measured("reward align", spread(0.8), spread(0.4))], ASKED, "Scores")

    assert verdict(align, scores).lead.startswith("Align is over-optimised")


def test_a_run_without_measures_says_so() -> None:
    assert verdict(Stage("align", [])).lead == "Nothing was measured on held-out rows, so nothing can be said."


def test_a_run_that_ended_early_says_so() -> None:
    found = verdict(Stage("align", [measured("reward", spread(0.1), spread(0.9))]), state="stopped")

    assert found.lead.startswith("The run was stopped. Reward rose")


def test_what_does_not_vary_is_explained_by_nothing() -> None:
    flat = {"reward before": [0.0, 0.0], "reward": [1.0, 1.0], "length before": [5.0, 5.0], "length": [9.0, 9.0]}

    assert explained_by_length(flat) == 0.0


def bounded(mean: float, most: float) -> Result:
    return replace(measured("cost/harm", spread(0.5, wide=0.1), spread(mean, wide=0.1), ""), bounds=(None, most))


def test_a_bound_that_holds_is_told() -> None:
    reward = measured("reward", spread(0.1), spread(0.9))

    found = verdict(Stage("align", [reward, bounded(0.2, 0.2)], {"prompts": ["p"]}))

    assert found.lead.endswith(" Bound kept: harm 0.203, at most 0.2. No alarm.")
    assert found.better is True
    assert found.stages["align"][1].startswith("Mean harm fell 0.5")
    assert found.stages["align"][1].endswith(", within its bound (at most 0.2).")


def test_a_bound_that_is_broken_is_an_alarm() -> None:
    reward = measured("reward", spread(0.1), spread(0.9))

    found = verdict(Stage("align", [reward, bounded(0.3, 0.2)], {"prompts": ["p"]}))

    told = "align breaks a bound: mean harm is 0.297 (95 % 0.285 to 0.309), and must be at most 0.2"
    remedy = "take more updates, raise learning_rate or start of constraints.harm, or move the bound"
    assert [(alarm.problem, alarm.remedy) for alarm in found.alarms] == [(told, remedy)]
    assert found.lead.startswith("Align breaks a bound")
    assert found.better is False


@pytest.mark.parametrize(
    ("bounds", "interval", "holds"),
    [
        (None, (1.0, 2.0), None),
        ((None, 0.9), (1.0, 2.0), False),
        ((None, 1.1), (1.0, 2.0), True),
        ((2.1, None), (1.0, 2.0), False),
        ((1.9, None), (1.0, 2.0), True),
        ((1.6, None), None, False),
    ],
)
def test_a_bound_holds_unless_the_whole_interval_lies_beyond_it(bounds, interval, holds) -> None:
    assert Result("s", "cost/harm", None, 1.5, interval=interval, bounds=bounds).holds is holds


ATTAINED = Result("scores", "attained align from start", None, 0.75, None, 256, (0.69, 0.81), None, "higher")


def test_the_share_of_what_is_attainable_stands_beside_the_figure() -> None:
    results = [measured("reward align", spread(0.46), spread(0.85)), ATTAINED]

    found = verdict(Stage("scores", results, ASKED, "Scores"))

    assert ", 256 prompts), 75% of what is attainable from start. No alarm." in found.lead
    assert (
        found.stages["scores"][-1]
        == "Share of the attainable gain of align from start is 0.75 (95 % 0.69 to 0.81, 256 prompts)."
    )


def test_a_policy_above_what_is_attainable_is_an_alarm() -> None:
    above = Result("scores", "above ceiling align", None, 0.3, None, 256, (0.2, 0.4), None, "lower")

    found = verdict(Stage("scores", [measured("reward align", spread(0.46), spread(0.85)), above], ASKED, "Scores"))

    told = "align lies above the most that any policy can have at its KL, by 0.3 (95 % 0.2 to 0.4)"
    remedy = "its reward or its KL is measured wrongly, so trust neither until you know which"
    assert [(alarm.problem, alarm.remedy) for alarm in found.alarms] == [(told, remedy)]
    assert found.better is False
