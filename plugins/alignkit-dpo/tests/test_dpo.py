"""DPO: its losses by hand, its start, its data, and what every method must keep."""

import math

import pytest
import torch
from alignkit_dpo.dpo import DPOSettings, dpo, made_of, with_shifts
from alignkit_dpo.pair_learning import START, tokens_of
from alignkit_dpo.start_logprobs import Start
from pydantic import ValidationError

from alignkit import Preferences, StageError
from alignkit.kit import read_pairs
from alignkit.testing import Left, RecordingStage, conformance, run_method, write_inputs

SETTINGS = {"learning_rate": 1e-2, "epochs": 1, "batch": 16, "precision": "fp32"}

TestDPO = conformance(
    dpo,
    SETTINGS,
    effects=["beta=1.0", "loss=ipo", "loss={sigmoid=1.0,sft=0.2}", "label_smoothing=0.3", "batch=8", "lora.rank=4"],
)


def pairs_of(policy, stage, rows, **settings):
    from alignkit.kit import load_policy

    model, tokenizer = load_policy(policy)
    return model, read_pairs(rows, model, tokenizer, DPOSettings(**settings), stage)


@pytest.fixture
def two(alignkit_tiny_policy, alignkit_stage, alignkit_records):
    rows = [
        {"prompt": "the food", "chosen": " was good", "rejected": " was bad and cold", "p_chosen": 0.75},
        {"prompt": "my room", "chosen": " is warm today", "rejected": " no"},
    ]
    _, pairs = pairs_of(alignkit_tiny_policy, alignkit_stage, alignkit_records(Preferences, rows))
    return pairs.train


CHOSEN, REJECTED = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), torch.tensor([[-2.0, -2.5], [-1.0, -0.5]])
STARTS = [[-3.5, -4.0], [-2.0, -2.0]]
GAINS = torch.tensor([[0.5, -0.5], [-1.0, 0.5]])
MARGINS = GAINS[:, 0] - GAINS[:, 1]


@pytest.fixture
def losses(monkeypatch):
    """Compute losses and figures of pairs whose answers' tokens have given log-probabilities."""

    def computed(chosen, rejected, pairs, start, settings):
        monkeypatch.setattr("alignkit.kit.pair_logprobs", lambda *_: (chosen, rejected))
        begun = [pair._replace(row={START: said}) for pair, said in zip(pairs, start, strict=True)]
        return made_of(settings).loss(None, begun)

    return computed


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def certain(pairs):
    return [pair._replace(p_chosen=1.0) for pair in pairs]


def test_sigmoid_is_the_papers_loss(two, losses) -> None:
    found, figures = losses(CHOSEN, REJECTED, certain(two), STARTS, DPOSettings(beta=0.5))

    assert found.tolist() == pytest.approx([-log_sigmoid(0.5 * margin) for margin in MARGINS.tolist()])
    assert figures["rewards/chosen"].tolist() == pytest.approx((0.5 * GAINS[:, 0]).tolist())
    assert figures["rewards/margins"].tolist() == pytest.approx((0.5 * MARGINS).tolist())
    assert figures["rewards/accuracies"].tolist() == [1.0, 0.0]


def test_a_soft_label_weighs_both_orders(two, losses) -> None:
    found, _ = losses(CHOSEN, REJECTED, two, STARTS, DPOSettings(beta=0.5))

    margin = float(MARGINS[0])
    assert float(found[0]) == pytest.approx(-0.75 * log_sigmoid(0.5 * margin) - 0.25 * log_sigmoid(-0.5 * margin))
    assert float(found[1]) == pytest.approx(-log_sigmoid(0.5 * float(MARGINS[1])))


def test_smoothing_takes_a_share_of_the_labels_for_wrong(two, losses) -> None:
    found, _ = losses(CHOSEN, REJECTED, certain(two), STARTS, DPOSettings(beta=0.5, label_smoothing=0.2))

    expected = [-0.8 * log_sigmoid(0.5 * m) - 0.2 * log_sigmoid(-0.5 * m) for m in MARGINS.tolist()]
    assert found.tolist() == pytest.approx(expected)


def test_robust_is_unbiased_under_a_known_share_of_wrong_labels(two, losses) -> None:
    given = DPOSettings(beta=0.5, loss="robust", label_smoothing=0.2)
    right, _ = losses(CHOSEN, REJECTED, certain(two), STARTS, given)
    swapped = [[row[1], row[0]] for row in STARTS]
    wrong, _ = losses(REJECTED, CHOSEN, certain(two), swapped, given)
    clean, _ = losses(CHOSEN, REJECTED, certain(two), STARTS, DPOSettings(beta=0.5))

    assert (0.8 * right + 0.2 * wrong).tolist() == pytest.approx(clean.tolist())


def test_ipo_counts_by_token(two, losses) -> None:
    found, _ = losses(CHOSEN, REJECTED, certain(two), STARTS, DPOSettings(beta=0.5, loss="ipo"))

    lengths = [(len(pair.chosen.answer), len(pair.rejected.answer)) for pair in two]
    expected = [(gain[0] / a - gain[1] / b - 1.0) ** 2 for gain, (a, b) in zip(GAINS.tolist(), lengths, strict=True)]
    assert found.tolist() == pytest.approx(expected)


def test_hinge_ends_at_a_margin_of_1(two, losses) -> None:
    found, _ = losses(CHOSEN, REJECTED, certain(two), STARTS, DPOSettings(beta=1.0, loss="hinge"))

    assert found.tolist() == pytest.approx([max(0.0, 1 - margin) for margin in MARGINS.tolist()])


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "new LoRA"])
def test_the_first_loss_is_ln_2(tmp_path, lora) -> None:
    inputs, stage = write_inputs(dpo, tmp_path), RecordingStage(tmp_path / "stage")

    run_method(dpo, SETTINGS | {"lora": lora, "precision": "fp32"}, stage, **inputs)

    assert stage.logs[0][2]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_first_loss_is_ln_2_where_an_adapter_is_trained_on(tmp_path) -> None:
    inputs, first = write_inputs(dpo, tmp_path), RecordingStage(tmp_path / "first")
    once = run_method(dpo, SETTINGS | {"lora": {"rank": 4}}, first, **inputs)
    stage = RecordingStage(tmp_path / "second")

    run_method(dpo, SETTINGS | {"lora": {"rank": 4}}, stage, **(inputs | {"policy": once}))

    assert stage.logs[0][2]["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    "harm", [lambda text: "", lambda text: text[:-9], lambda text: text.replace("[[-", "[[-9"), lambda text: "[]"]
)
def test_what_was_kept_of_the_start_is_made_anew_where_it_is_damaged(tmp_path, harm) -> None:
    inputs, stage = write_inputs(dpo, tmp_path), RecordingStage(tmp_path / "stage")
    run_method(dpo, SETTINGS, stage, **inputs)
    (kept,) = stage.cache.glob("logprobs-*.json")
    whole = kept.read_text("utf-8")
    again = RecordingStage(tmp_path / "again")
    (again.cache / kept.name).write_text(harm(whole), "utf-8")

    run_method(dpo, SETTINGS, again, **inputs)

    assert [values["loss"] for _, _, values in again.logs] == [values["loss"] for _, _, values in stage.logs]
    assert (again.cache / kept.name).read_text("utf-8") == whole


def with_kept_of(stage: RecordingStage, folder) -> RecordingStage:
    """Return another stage that finds what one has kept of its start."""
    other = RecordingStage(folder)
    (kept,) = stage.cache.glob("logprobs-*.json")
    (other.cache / kept.name).write_bytes(kept.read_bytes())
    return other


def test_what_was_kept_of_the_start_is_read_where_it_is_whole(tmp_path) -> None:
    inputs, stage = write_inputs(dpo, tmp_path), RecordingStage(tmp_path / "stage")
    run_method(dpo, SETTINGS, stage, **inputs)
    again = with_kept_of(stage, tmp_path / "again")
    (kept,) = again.cache.glob("logprobs-*.json")
    before = kept.stat()

    run_method(dpo, SETTINGS, again, **inputs)

    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_start_of_other_weights_under_the_same_fingerprint_is_made_anew(tmp_path) -> None:
    inputs, stage = write_inputs(dpo, tmp_path), RecordingStage(tmp_path / "stage")
    learnt = run_method(dpo, SETTINGS | {"learning_rate": 3e-3}, stage, **inputs)
    other = inputs["policy"].model_copy(update={"path": learnt.path})
    again = with_kept_of(stage, tmp_path / "again")

    run_method(dpo, SETTINGS, again, **(inputs | {"policy": other}))

    assert again.logs[0][2]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_model_that_is_not_its_own_start_is_refused(two, alignkit_tiny_policy, alignkit_stage) -> None:
    settings = DPOSettings(precision="fp32")
    readings = iter([[[-9.0, -9.0]] * 2, [[0.0, 0.0]] * 2, []])
    start = Start(alignkit_tiny_policy, settings, alignkit_stage, lambda rows: next(readings), tokens_of)

    with pytest.raises(StageError) as refusal:
        start.says_of(two, [])

    assert refusal.value.problem == "the policy is not its own start before the first step (9 nats apart)"
    assert refusal.value.remedy == (
        "take a model that says the same each time it is asked, in another precision if need be"
    )


def test_a_resumed_stage_tells_the_same_metrics(tmp_path) -> None:
    inputs, whole = write_inputs(dpo, tmp_path), RecordingStage(tmp_path / "whole")
    run_method(dpo, SETTINGS | {"epochs": 2}, whole, **inputs)
    first = RecordingStage(tmp_path / "parts", stop_at=2)
    with pytest.raises(Left):
        run_method(dpo, SETTINGS | {"epochs": 2}, first, **inputs)
    second = first.again()

    run_method(dpo, SETTINGS | {"epochs": 2}, second, **inputs)

    timeless = [
        [(step, {name: value for name, value in values.items() if "second" not in name}) for step, _, values in logs]
        for logs in (whole.logs, second.logs)
    ]
    assert timeless[0] == timeless[1]


def test_it_learns_which_answers_are_good(tmp_path) -> None:
    inputs, stage = write_inputs(dpo, tmp_path), RecordingStage(tmp_path / "stage")

    run_method(dpo, SETTINGS | {"epochs": 4, "learning_rate": 3e-3}, stage, **inputs)

    before, after, _ = stage.results["accuracy"]
    assert (before, after) == (0.5, 1.0)
    assert {"prompt", "chosen", "rejected", "margin"} == set(stage.samples[0])


def test_dropout_is_refused(tmp_path) -> None:
    from alignkit import RecipeError

    inputs, stage = write_inputs(dpo, tmp_path), RecordingStage(tmp_path / "stage")
    with pytest.raises(RecipeError) as refusal:
        run_method(dpo, SETTINGS | {"lora": {"dropout": 0.1}}, stage, **inputs)
    assert refusal.value.remedy == "set this stage's lora.dropout to 0"


def test_more_than_half_wrong_labels_are_refused() -> None:
    with pytest.raises(ValidationError):
        DPOSettings(label_smoothing=0.5)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"loss": "ipo", "label_smoothing": 0.1},
            "loss ipo has no label_smoothing; take loss sigmoid or robust or exo or aot, or leave it out",
        ),
        (
            {"loss": {"nca": 1.0, "sft": 0.5}, "divergence": "js"},
            "loss nca and sft has no divergence; take loss sigmoid or robust or exo or aot or ipo or hinge or "
            "discopop or squared-hinge or exponential, or leave it out",
        ),
        (
            {"loss": "sft", "beta": 0.2},
            "loss sft has no beta; take loss sigmoid or robust or exo or aot or ipo or hinge or discopop or "
            "squared-hinge or exponential or nca or bco or apo-zero or apo-down or sppo, or leave it out",
        ),
        ({"discopop_tau": 0.1}, "loss sigmoid has no discopop_tau; take loss discopop, or leave it out"),
        ({"loss": "exo"}, "loss exo needs label_smoothing; its paper takes 1e-3"),
        ({"alpha": 0.3}, 'divergence reverse-kl has no alpha; take divergence "alpha", or leave it out'),
        ({"loss": {}}, "loss has no losses; name one, or several with their weights"),
    ],
)
def test_what_a_loss_does_not_know_is_refused(given, why) -> None:
    with pytest.raises(ValidationError) as refusal:
        DPOSettings(**given)

    assert refusal.value.errors()[0]["msg"] == f"Value error, {why}"


def test_aot_compares_a_pair_with_the_starts_quantile_of_its_rank(two) -> None:
    pairs = [two[0]._replace(row={START: said}) for said in ([-1.0, -3.0], [-2.0, -1.0], [0.0, 0.0])]
    now = [[-1.0, -1.0], [-1.0, -3.0], [-4.0, -1.0]]  # log-ratios 0, 2 and -3: of ranks 2, 3 and 1

    moved = with_shifts(pairs, now)

    # the start's log-ratios are 2, -1 and 0, sorted -1, 0 and 2
    assert [pair.row["margin shift"] for pair in moved] == [2.0 - 0.0, -1.0 - 2.0, 0.0 - -1.0]


@pytest.mark.parametrize("loss", ["aot", "exponential", "apo-zero", "sppo"])
def test_each_kind_of_loss_learns(tmp_path, loss) -> None:
    inputs, stage = write_inputs(dpo, tmp_path), RecordingStage(tmp_path / "stage")

    run_method(dpo, SETTINGS | {"learning_rate": 3e-3, "loss": loss}, stage, **inputs)

    assert stage.results["accuracy"][1] > 0.7


def test_rewards_are_counted_from_the_reference(tmp_path) -> None:
    inputs, first = write_inputs(dpo, tmp_path), RecordingStage(tmp_path / "first")
    learnt = run_method(dpo, SETTINGS, first, **inputs)
    moved = inputs["policy"].model_copy(update={"path": learnt.path, "fingerprint": "moved", "name": "moved"})
    itself, other = RecordingStage(tmp_path / "itself"), RecordingStage(tmp_path / "other")

    run_method(dpo, SETTINGS, itself, **(inputs | {"policy": moved, "reference": moved}))
    run_method(dpo, SETTINGS, other, **(inputs | {"policy": moved, "reference": inputs["policy"]}))

    assert itself.logs[0][2]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert other.logs[0][2]["rewards/margins"] > 10 * abs(itself.logs[0][2]["rewards/margins"]) + 1e-3
    assert other.results["margin"][0] > 0  # what the policy had gained before
