"""KTO and BCO: TRL's trainer step by step, what every method must keep, their start, their sides, what they tell."""

import math
import sys

import pytest
import torch
from alignkit_dpo.answer_learning import GoodOrBad, area, balance, swapped, threshold
from alignkit_dpo.bco import BCOSettings, bco, half_way
from alignkit_dpo.kto import KTOSettings, divergence, kto
from alignkit_dpo.preference_losses import kto as kto_loss, shifted
from pydantic import ValidationError

from alignkit import Preferences, Ratings, RecipeError
from alignkit.kit import JudgedAnswer
from alignkit.testing import Left, RecordingStage, conformance, run_method, same_weights

SETTINGS = {"learning_rate": 1e-2, "epochs": 1, "batch": 16, "precision": "fp32"}


TestKTO = conformance(
    kto,
    SETTINGS,
    effects=["beta=1.0", "desirable_weight=3", "undesirable_weight=3", "kl_rows=4"],
)
TestBCO = pytest.mark.slow(  # it is kto with another loss
    conformance(bco, SETTINGS, effects=["beta=1.0", "desirable_weight=3", "undesirable_weight=3", "shift_rows=2"])
)


def rows(number):
    return [
        {"prompt": f"the {n}", "completion": f" was {'good' if n % 3 else 'bad and cold'}", "label": bool(n % 3)}
        for n in range(number)
    ]


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_the_first_loss_is_one_half_since_nothing_is_gained_yet(
    alignkit_tiny_policy, alignkit_stage, alignkit_records, lora
) -> None:
    settings = SETTINGS | {"lora": lora, "undesirable_weight": 1.0}

    run_method(kto, settings, alignkit_stage, policy=alignkit_tiny_policy, answers=alignkit_records(Ratings, rows(32)))

    first = alignkit_stage.logs[0][2]
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)


def test_good_held_out_answers_gain_more_than_bad_ones(alignkit_tiny_policy, alignkit_stage, alignkit_records) -> None:
    made = run_method(
        kto,
        SETTINGS | {"epochs": 4},
        alignkit_stage,
        policy=alignkit_tiny_policy,
        answers=alignkit_records(Ratings, rows(48), rows(12)),
    )

    before, after, floor = alignkit_stage.results["auc"]
    assert (before, floor) == (0.5, 0.0)
    assert after > 0.9
    assert made.path.is_dir()


def test_apo_has_its_zero_point_at_the_start(alignkit_tiny_policy, tmp_path, alignkit_records) -> None:
    given = alignkit_records(Ratings, rows(48))
    kto_made, apo_made = (
        run_method(
            kto,
            SETTINGS | {"epochs": 3, "loss": loss},
            RecordingStage(tmp_path / loss),
            policy=alignkit_tiny_policy,
            answers=given,
        )
        for loss in ("kto", "apo_zero_unpaired")
    )

    assert not same_weights(kto_made, apo_made, 1e-4)


def test_pairs_are_taken_side_by_side(alignkit_tiny_policy, alignkit_stage, alignkit_records) -> None:
    pairs = [{"prompt": f"the {n}", "chosen": " was good", "rejected": " was bad"} for n in range(24)]

    run_method(
        kto,
        SETTINGS | {"epochs": 3},
        alignkit_stage,
        policy=alignkit_tiny_policy,
        answers=alignkit_records(Preferences, pairs, pairs[:4]),
    )

    assert alignkit_stage.results["auc"][1] == 1.0


def judged(**row):
    return JudgedAnswer([1], [2, 3], row)


def test_ratings_part_at_their_median() -> None:
    answers = [judged(rating=rating) for rating in (1.0, 2.0, 2.0, 5.0)]

    assert [one.row["rating"] >= threshold(answers, KTOSettings()) for one in answers] == [False, False, False, True]
    assert threshold(answers, KTOSettings(good_from=2.0)) == 2.0


def test_one_side_alone_is_refused() -> None:
    with pytest.raises(RecipeError) as refused:
        balance([True, True])

    assert refused.value.problem == "all answers are good"


def test_an_estimate_of_what_counts_for_nothing_is_refused() -> None:
    with pytest.raises(ValidationError) as refused:
        KTOSettings(loss="apo_zero_unpaired", kl_rows=16)

    assert refused.value.errors()[0]["msg"] == (
        "Value error, loss apo_zero_unpaired has its zero point at the start, so kl_rows does nothing; leave it out"
    )


def answers(*sides):
    return [GoodOrBad([place], [place], good) for place, good in enumerate(sides)]


def test_a_threshold_of_ratings_beside_labels_or_sides_is_refused() -> None:
    settings = KTOSettings(good_from=2.0)

    with pytest.raises(RecipeError) as refused:
        threshold([judged(label=True)], settings)

    assert refused.value.problem == "the answers have labels, so good_from does nothing"
    sides = [("the sides of preferences are good and bad, so good_from does nothing", "leave it out")]
    assert [*kto.refuses(settings, {"answers": (Preferences,)})] == sides
    assert not [*kto.refuses(settings, {"answers": (Ratings,)})]


def test_each_answer_is_swapped_with_that_of_another_row_once() -> None:
    rows = swapped(answers(*[True, False] * 4), 1.0, seed=3)

    assert sorted(row.swapped for row in rows) == [[place] for place in range(8)]
    assert all(row.swapped != row.answer for row in rows)


def test_a_share_of_the_answers_is_swapped() -> None:
    rows = swapped(answers(*[True] * 40), 0.25, seed=3)

    assert sum(row.swapped is not None for row in rows) == 10
    assert [row.answer for row in rows] == [[place] for place in range(40)]
    assert (KTOSettings(batch=32).swaps, KTOSettings(batch=4).swaps) == (0.25, 1.0)
    assert KTOSettings(loss="apo_zero_unpaired").swaps == 0.0


def say(monkeypatch, *said):
    monkeypatch.setattr("alignkit_dpo.answer_learning.logprobs_of", lambda _, __, some: list(said[: len(some)]))


def test_the_divergence_is_the_mean_gain_of_swapped_answers_and_not_below_zero(monkeypatch) -> None:
    rows = swapped(answers(True, True, True), 1.0, seed=1)

    say(monkeypatch, 0.5, 2.0, -1.0)
    assert divergence(KTOSettings(), None, rows) == pytest.approx(0.5)
    assert divergence(KTOSettings(), None, answers(True, False)) == 0.0
    say(monkeypatch, -1.0, -2.0, -3.0)
    assert divergence(KTOSettings(), None, rows) == 0.0


def test_the_shift_lies_half_way_between_good_and_bad_gains(monkeypatch) -> None:
    rows = answers(True, True, True, False)

    say(monkeypatch, 1.0, 2.0, 3.0, -6.0)
    assert half_way(BCOSettings(), None, rows) == pytest.approx(-2.0)
    assert half_way(BCOSettings(), None, rows[:3]) == pytest.approx(2.0)
    say(monkeypatch, 1.0, -6.0)
    assert half_way(BCOSettings(shift_rows=2), None, rows) == pytest.approx(-2.5)


def test_the_losses_are_the_papers() -> None:
    rewards, good = torch.tensor([0.4, -0.3]), torch.tensor([1.0, 0.0])

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert kto_loss(rewards, good, 0.1).tolist() == pytest.approx([1 - sigmoid(0.3), 1 - sigmoid(0.4)])
    assert shifted(rewards, good, 0.1).tolist() == pytest.approx([-math.log(sigmoid(0.3)), -math.log(sigmoid(0.4))])


def test_the_shift_is_the_mean_over_all_steps_so_far_also_after_a_stop(
    tmp_path, alignkit_tiny_policy, alignkit_records, monkeypatch
) -> None:
    inputs = {"policy": alignkit_tiny_policy, "answers": alignkit_records(Ratings, rows(48), rows(12))}
    settings = SETTINGS | {"batch": 16, "epochs": 1}
    found = iter([1.0, 3.0, 8.0, 3.0, 8.0])
    monkeypatch.setattr(sys.modules[half_way.__module__], "half_way", lambda *words: next(found))

    whole, stopped = RecordingStage(tmp_path / "whole"), RecordingStage(tmp_path / "stopped", stop_at=1)
    run_method(bco, settings, whole, **inputs)
    found = iter([1.0, 3.0, 8.0])
    with pytest.raises(Left):
        run_method(bco, settings, stopped, **inputs)
    again = stopped.again()
    run_method(bco, settings, again, **inputs)

    shifts = [[figures["objective/shift"] for _, _, figures in stage.logs] for stage in (whole, again)]
    assert shifts[0] == pytest.approx([1.0, 2.0, 4.0])
    assert shifts[1][-2:] == pytest.approx([2.0, 4.0])


def test_bco_parts_good_from_bad(alignkit_tiny_policy, alignkit_stage, alignkit_records) -> None:
    answers = alignkit_records(Ratings, rows(48), rows(12))

    run_method(
        bco, SETTINGS | {"undesirable_weight": 1.0}, alignkit_stage, policy=alignkit_tiny_policy, answers=answers
    )

    first = alignkit_stage.logs[0][2]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["objective/shift"] == pytest.approx(0.0, abs=1e-5)
    assert alignkit_stage.results["auc"][1] > 0.9


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what our libraries say to each other
@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_it_learns_what_trls_trainer_learns_step_by_step(
    alignkit_tiny_policy, alignkit_stage, alignkit_records, tmp_path, loss
) -> None:
    """All rows are one step, in the order in which ours swaps their answers, so that both swap the same ones."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    given, plain = rows(8), {"schedule": "constant", "warmup": 0.0, "max_grad_norm": 1.0}
    settings = {"loss": loss, "learning_rate": 5e-3, "epochs": 4, "batch": 8, "undesirable_weight": 2.0}
    made = run_method(
        kto,
        SETTINGS | settings | {"optimisation": plain},
        alignkit_stage,
        policy=alignkit_tiny_policy,
        answers=alignkit_records(Ratings, given),
    )

    tokenizer = AutoTokenizer.from_pretrained(alignkit_tiny_policy.path)
    after = {row.prompt[0]: row.swapped[0] for row in swapped(answers(*[True] * 8), 1.0, alignkit_stage.seed)}
    order = [0]
    while len(order) < 8:
        order.append(after[order[-1]])
    order.reverse()  # the trainer hands each row the answer of the one before it
    config = KTOConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=8,
        num_train_epochs=4,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        loss_type=loss,
        beta=0.1,
        undesirable_weight=2.0,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
    )
    trainer = KTOTrainer(
        AutoModelForCausalLM.from_pretrained(alignkit_tiny_policy.path, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list([given[place] for place in order]),
        processing_class=tokenizer,
    )
    trainer.train()

    told = [step for step in trainer.state.log_history if "loss" in step]
    ours = [values for _, _, values in alignkit_stage.logs]
    assert len(told) == len(ours) == 4
    for name, theirs in {"loss": "loss", "objective/kl": "kl", "rewards/chosen": "rewards/chosen"}.items():
        assert [step[name] for step in ours] == pytest.approx([step[theirs] for step in told], abs=2e-4), name
    learnt = AutoModelForCausalLM.from_pretrained(made.path).state_dict()
    for name, weight in trainer.model.state_dict().items():
        torch.testing.assert_close(weight, learnt[name], atol=1e-5, rtol=0)


def test_the_area_counts_ties_half() -> None:
    assert area([2.0, 1.0, 1.0], [True, True, False]) == 0.75
