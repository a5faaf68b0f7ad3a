"""Several loops in one stage: rounds of answering and learning, stopped wherever that may be, and resumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignkit import Policy, Preferences, Prompts, RowSettings, Stage, StageError, method
from alignkit.testing import Left, RecordingStage, run_method, same_weights, write_inputs

SETTINGS = {"learning_rate": 1e-2, "batch": 16, "precision": "fp32"}
STEPS = 3


@method("raft", results=("kept",))
def raft(settings: RowSettings, stage: Stage, *, policy: Policy, pairs: Preferences, prompts: Prompts) -> Policy:
    """Learn good answers, then, in a second round, the longest of one's own."""
    from alignkit.kit import answer_logprobs, load_policy, read_pairs, sample_answers, train_rows

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    train, _ = read_pairs(pairs, model, tokenizer, settings, stage)

    def loss(part: Sequence[Any]) -> Any:
        table = answer_logprobs(model, [row[0] for row in part], [row[1] for row in part])
        return -table.sum(dim=1), {}

    train_rows(model, [pair.chosen for pair in train], loss, settings, stage, part="round-1")
    asked = list(prompts.train())
    answers = sample_answers(model, tokenizer, asked, answers=2, max_new_tokens=4, seed=stage.seed)
    best = [
        (
            tokenizer(row["prompt"])["input_ids"],
            tokenizer(max(few, key=lambda one: len(one.text)).text or " ")["input_ids"],
        )
        for row, few in zip(asked, answers, strict=True)
    ]
    train_rows(model, best, loss, settings, stage, part="round-2")
    return stage.save_policy(model, tokenizer)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_inputs(raft, tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordingStage, Policy]:
    stage = RecordingStage(tmp_path_factory.mktemp("whole"))
    return stage, run_method(raft, SETTINGS, stage, **inputs)


def losses(stage: RecordingStage) -> list[tuple[int, float]]:
    return [(step, values["loss"]) for step, _, values in stage.logs]


@pytest.mark.parametrize("stops", [[1], [STEPS], [STEPS + 1], [2 * STEPS], [1, STEPS + 2], [STEPS, STEPS + 1]], ids=str)
def test_rounds_that_were_stopped_and_resumed_end_with_the_same_weights(
    inputs: dict[str, Any], whole: tuple[RecordingStage, Policy], tmp_path: Path, stops: list[int]
) -> None:
    stage = RecordingStage(tmp_path)
    for stop in stops:
        stage.stop_at = stop
        with pytest.raises(Left):
            run_method(raft, SETTINGS, stage, **inputs)
        stage = stage.again()

    made = run_method(raft, SETTINGS, stage, **inputs)

    assert same_weights(made, whole[1])
    assert losses(stage) == losses(whole[0])
    assert [step for step, _ in losses(stage)] == list(range(1, 2 * STEPS + 1))


def test_a_finished_round_that_was_followed_by_nothing_yet_is_not_learnt_again(
    inputs: dict[str, Any], whole: tuple[RecordingStage, Policy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit import kit

    def killed(*_: object, **__: object) -> None:
        raise Left

    stage = RecordingStage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(kit, "sample_answers", killed)
        with pytest.raises(Left):
            run_method(raft, SETTINGS, stage, **inputs)
    stage = stage.again()
    found = stage.latest()

    made = run_method(raft, SETTINGS, stage, **inputs)

    assert found is not None
    assert found.name == f"step-{STEPS}"
    assert same_weights(made, whole[1])
    assert losses(stage) == losses(whole[0])


@pytest.mark.parametrize(("first", "second"), [("", ""), ("", "round-2"), ("round-1", ""), ("round-1", "round-1")])
def test_a_second_loop_without_a_name_of_its_own_is_refused(tmp_path: Path, first: str, second: str) -> None:
    stage = RecordingStage(tmp_path)
    assert stage.begin_part(first, 4) == 0

    with pytest.raises(StageError) as refusal:
        stage.begin_part(second, 4)

    named = f"named {second!r} " if second else ""
    assert str(refusal.value) == (
        f"a second loop {named}began, and its checkpoints cannot be told apart; "
        'give each a name of its own: train_rows(..., part="round-1")'
    )


def test_a_loop_is_named_as_a_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^a loop cannot be named '\.\./x'; use a-z, 0-9 and hyphens$"):
        RecordingStage(tmp_path).begin_part("../x", 4)


def test_rows_are_not_learnt_by_each_of_several_processes(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StageError) as refusal:
        run_method(raft, SETTINGS, RecordingStage(tmp_path, world=2), **inputs)

    assert str(refusal.value) == (
        "the stage runs in 2 processes, and this one knows of 1; "
        "start it by `alignkit recipe --on`, or by torchrun as that does"
    )
