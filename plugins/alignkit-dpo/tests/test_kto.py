"""KTO through TRL's trainer: what every method must keep, its start, its sides, and what it tells."""

import shutil

import pytest
from alignkit_dpo.kto import KTOSettings, area, balance, kto, order_of_rows, threshold
from transformers import AutoTokenizer

from alignkit import Preferences, Ratings, RecipeError
from alignkit.kit import JudgedAnswer, load_policy, read_answers
from alignkit.testing import RecordingStage, conformance, run_method, same_weights

SETTINGS = {"learning_rate": 1e-2, "epochs": 1, "batch": 16, "kl_rows": 8, "precision": "fp32"}


TestKTO = conformance(
    kto,
    SETTINGS,
    effects=["beta=1.0", "desirable_weight=3", "undesirable_weight=3", "kl_rows=4"],
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
    answers = alignkit_records(Ratings, rows(48))
    kto_made, apo_made = (
        run_method(
            kto,
            SETTINGS | {"epochs": 3, "loss": loss},
            RecordingStage(tmp_path / loss),
            policy=alignkit_tiny_policy,
            answers=answers,
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


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what our libraries say to each other
def test_the_trainer_makes_the_same_tokens_of_chats_as_all_methods(
    alignkit_tiny_policy, alignkit_stage, alignkit_records, monkeypatch
) -> None:
    policy, seen = with_template(alignkit_tiny_policy, alignkit_stage.folder / "model", TURNS), []

    def watched(make, _):
        data = make().train_dataset
        seen.extend(zip(data["prompt_ids"], data["completion_ids"], strict=True))

    monkeypatch.setattr("alignkit.kit.run_trainer", watched, raising=False)
    chats = [
        {
            "prompt": [{"role": "user", "content": f"how {n}"}],
            "completion": [{"role": "assistant", "content": "fine"}],
            "label": bool(n % 2),
        }
        for n in range(8)
    ]
    answers = alignkit_records(Ratings, chats)
    run_method(kto, SETTINGS | {"batch": 8}, alignkit_stage, policy=policy, answers=answers)

    model, tokenizer = load_policy(policy)
    ours = read_answers(answers, model, tokenizer, KTOSettings(), alignkit_stage).train
    assert sorted(seen) == sorted((row.prompt, row.answer) for row in ours)
    assert tokenizer.decode(ours[0].answer) == "fine<eos>"


TURNS = (
    "{% for m in messages %}{{ ' ' + m.role + ':' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    " assistant:"
)
"""It asks for an answer whether it is told to or not."""


def with_template(policy, folder, template):
    shutil.copytree(policy.path, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return policy.model_copy(update={"path": folder})


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


def test_a_batch_that_groups_do_not_fill_is_refused(alignkit_tiny_policy, alignkit_stage, alignkit_records) -> None:
    with pytest.raises(RecipeError) as refused:
        run_method(
            kto,
            SETTINGS | {"batch": 12},
            alignkit_stage,
            policy=alignkit_tiny_policy,
            answers=alignkit_records(Ratings, rows(32)),
        )

    assert refused.value.remedy == "set it to a multiple of 8"


def test_every_row_is_learnt_and_the_last_group_is_filled_up() -> None:
    order = order_of_rows(13, KTOSettings(kl_rows=4, epochs=2), 1)

    assert len(order) == 28
    assert sorted(order[:13]) == sorted(order[13:26]) == list(range(13))
    assert order[:13] != order[13:26]


def test_the_area_counts_ties_half() -> None:
    assert area([2.0, 1.0, 1.0], [True, True, False]) == 0.75
