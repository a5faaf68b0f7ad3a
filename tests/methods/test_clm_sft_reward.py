"""CLM, SFT and reward by their effect on a tiny model."""

import json
import math

import pytest

from alignkit.contract.kinds import Demonstrations, Preferences, Text
from alignkit.contract.settings import LoRA
from alignkit.errors import DataError
from alignkit.methods.clm import CLMSettings, clm
from alignkit.methods.reward import RewardSettings, reward
from alignkit.methods.sft import SFTSettings, sft
from alignkit.testing import RecordingStage
from alignkit.training import measures
from alignkit.training.encoding import LabelledTokens, TokenPair
from alignkit.training.measures import pair_accuracy_floor, perplexity, share_of_longer
from alignkit.training.models import load_policy, load_reward_model
from alignkit.training.scored_pairs import normalisation, wins

CLM = CLMSettings(learning_rate=1e-2, batch=8, max_length=32, epochs=4)
SFT = SFTSettings(learning_rate=1e-2, batch=8, epochs=4, samples=2)
REWARD = RewardSettings(learning_rate=3e-3, batch=8, epochs=2, samples=1)
BRIEF = {"batch": 8, "epochs": 1}


def texts(count):
    return [{"text": f"the food was good and we liked it, day {i % 7} was warm"} for i in range(count)]


def asked(count):
    return [
        {"prompt": f"how was day {i % 9}?", "completion": f" fine thanks, {i % 9} was lovely"} for i in range(count)
    ]


def chats(count):
    return [
        {
            "messages": [
                {"role": "user", "content": f"how was day {i % 9}?"},
                {"role": "assistant", "content": f"fine thanks, {i % 9} was lovely"},
            ]
        }
        for i in range(count)
    ]


def pairs(count):
    return [
        {
            "prompt": f"how was the food {i % 9}?",
            "chosen": " it was good",
            "rejected": " it was bad" + " again" * (i % 2),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("lora", [None, LoRA(rank=8)], ids=["full", "lora"])
def test_reading_text_lowers_its_perplexity(policy, records, stage, lora):
    made = clm(CLM.model_copy(update={"lora": lora}), stage, policy=policy, corpus=records(Text, texts(100), texts(7)))

    before, after, _ = stage.results["perplexity"]
    assert after < before / (3 if lora is None else 1.2)
    assert (made.path / "adapter_config.json").exists() == (lora is not None)


@pytest.mark.parametrize("rows", [asked, chats], ids=["strings", "chats"])
def test_demonstrations_lower_the_perplexity_of_answers(policy, records, stage, rows):
    sft(SFT, stage, policy=policy, demos=records(Demonstrations, rows(100), rows(9)))

    before, after, _ = stage.results["perplexity"]
    assert after < before / 10


def test_answers_are_shown_beside_the_demonstrated_ones(policy, records, stage):
    sft(SFT, stage, policy=policy, demos=records(Demonstrations, asked(100), asked(9)))

    assert [(row["prompt"], row["reference"]) for row in stage.samples] == [
        ("how was day 0?", " fine thanks, 0 was lovely"),
        ("how was day 1?", " fine thanks, 1 was lovely"),
    ]


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_a_reward_model_learns_which_answer_is_preferred(policy, records, stage, lora):
    settings = REWARD.model_copy(update={"lora": lora})

    reward(settings, stage, policy=policy, pairs=records(Preferences, pairs(100), pairs(40)))

    assert stage.results["accuracy"][1] == 1.0


def test_a_reward_model_keeps_the_mean_and_spread_of_its_scores(policy, records, stage):
    made = reward(REWARD, stage, policy=policy, pairs=records(Preferences, pairs(100), pairs(40)))

    _, _, mean, std = load_reward_model(made)
    assert stage.samples[0]["rejected_score"] < mean < stage.samples[0]["chosen_score"]
    assert std > 0


def test_a_pair_is_shown_with_its_scores(policy, records, stage):
    reward(REWARD, stage, policy=policy, pairs=records(Preferences, pairs(100), pairs(40)))

    best, worst, _ = stage.samples
    assert {row["chosen"] for row in stage.samples} == {" it was good"}
    assert best["chosen_score"] - best["rejected_score"] >= worst["chosen_score"] - worst["rejected_score"]


def test_what_a_chain_of_adapters_ends_in_is_saved_whole_and_the_next_one_names_it(policy, records, tmp_path):
    settings, made = SFTSettings(lora=LoRA(rank=2), **BRIEF), policy
    for name in ("first", "second", "third"):
        made = sft(
            settings, RecordingStage(tmp_path / name), policy=made, demos=records(Demonstrations, asked(8), asked(2))
        )

    first, second, third = (sorted((tmp_path / name).rglob("*config.json")) for name in ("first", "second", "third"))
    named = json.loads((made.path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert [{file.name for file in files} & {"config.json"} for files in (first, second, third)] == [
        set(), {"config.json"}, set(),
    ]  # fmt: skip
    assert (made.path / named).resolve() == second[0].parent.resolve()


@pytest.mark.parametrize(
    ("run", "inputs", "warning"),
    [
        (
            lambda stage, policy, rows: clm(CLMSettings(**BRIEF), stage, policy=policy, corpus=rows),
            (Text, texts(20)),
            "no text is held out, so perplexity is not measured",
        ),
        (
            lambda stage, policy, rows: sft(SFTSettings(**BRIEF), stage, policy=policy, demos=rows),
            (Demonstrations, asked(8)),
            "no demonstrations are held out, so nothing is measured",
        ),
        (
            lambda stage, policy, rows: reward(RewardSettings(**BRIEF), stage, policy=policy, pairs=rows),
            (Preferences, pairs(8)),
            "no pairs are held out, so accuracy is not measured",
        ),
    ],
    ids=["clm", "sft", "reward"],
)
def test_without_held_out_rows_a_stage_says_so_and_goes_on(policy, records, stage, run, inputs, warning):
    made = run(stage, policy, records(*inputs))

    assert made.path.is_dir()
    assert stage.results == {}
    assert stage.warnings == [(warning, "raise the source's held_out")]


def test_no_text_is_refused(policy, records, stage):
    with pytest.raises(DataError) as caught:
        clm(CLM, stage, policy=policy, corpus=records(Text, [], texts(2)))

    assert str(caught.value) == ("there is no text to learn from; check the source and its held_out")


def test_demonstrations_that_do_not_fit_are_refused_before_training(policy, records, stage):
    with pytest.raises(DataError) as caught:
        sft(SFTSettings(max_length=8), stage, policy=policy, demos=records(Demonstrations, asked(8), asked(2)))

    assert str(caught.value) == (
        "of 8 demonstrations, 8 cut short: they do not fit in max_length 8 (the longest has 15 tokens); "
        "raise max_length, or max_lost (now 0.05) if that is meant"
    )
    assert stage.logs == []


def test_a_reward_model_that_is_none_better_than_words_is_told(policy, records, stage):
    given = records(Preferences, pairs(100), pairs(40))

    reward(RewardSettings(learning_rate=1e-12, **BRIEF), stage, policy=policy, pairs=given)

    assert stage.results["accuracy"][2] == 1.0
    assert stage.warnings[0][0].endswith(", no better than the 1 that anybody reaches")


def test_perplexity_that_does_not_fall_is_told(policy, records, stage):
    clm(CLM.model_copy(update={"learning_rate": 1e-15}), stage, policy=policy, corpus=records(Text, texts(8), texts(2)))

    assert any(told.startswith("the perplexity of held-out text has not fallen") for told, _ in stage.warnings)


def test_a_reward_model_that_is_none_better_than_length_is_told(policy, records, stage):
    rows = [{"prompt": "how?", "chosen": " good" * 3, "rejected": " good"} for _ in range(40)]

    reward(RewardSettings(learning_rate=1e-12, **BRIEF), stage, policy=policy, pairs=records(Preferences, rows, rows))

    (problem, remedy) = stage.warnings[0]
    assert problem.endswith(", no better than the 1 that anybody reaches")
    assert remedy == "train longer or with another learning rate, or look at the data"


def test_perplexity_is_that_of_all_learnt_tokens_together(policy):
    model, tokenizer = load_policy(policy)
    rows = [LabelledTokens([5, 6, 7], [-100, 6, 7]), LabelledTokens([8, 9, 10, 11, 12], [-100, -100, -100, 11, -100])]
    parts = [math.log(perplexity(model, [row], tokenizer).value) for row in rows]

    whole = math.log(perplexity(model, rows, tokenizer).value)

    assert whole == pytest.approx((2 * parts[0] + parts[1]) / 3, abs=1e-5)


def test_the_perplexity_of_nothing_is_not_a_number(policy):
    model, tokenizer = load_policy(policy)

    assert math.isnan(perplexity(model, [LabelledTokens([5, 6], [-100, -100])], tokenizer).value)


def test_ties_count_half():
    assert wins([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]) == [1.0, 0.0, 0.5]
    assert share_of_longer([TokenPair([1, 2], [1], {}), TokenPair([1], [1], {})]) == 0.75


def test_scores_are_normalised_by_mean_and_spread():
    assert normalisation([(3.0, 1.0), (3.0, 1.0)]) == (2.0, 1.0)
    assert normalisation([(3.0, 3.0)]) == (3.0, 1.0)


def test_what_words_reach_on_the_same_pairs_is_found_once(tmp_path, monkeypatch) -> None:
    rows = [{"chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(60)]
    first = pair_accuracy_floor(0.5, rows[:30], rows[30:], cache=tmp_path)
    monkeypatch.setattr(measures, "words_win", lambda *_: pytest.fail("it was found before"))

    assert pair_accuracy_floor(0.5, rows[:30], rows[30:], cache=tmp_path) == first == (1.0, "words")
