"""Rows of several sources as a stage's mix reads them: how often each, in which order, and what is measured of each."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignkit import Demonstrations, Policy, Preferences, Ratings, RowSettings
from alignkit.contract.mix import Mix
from alignkit.contract.row_settings import DemonstrationSettings, ScoreSettings
from alignkit.errors import DataError
from alignkit.methods.reward import reward
from alignkit.methods.sft import sft
from alignkit.run.stopping import Left
from alignkit.testing import RecordingStage, run_method, same_weights, write_records
from alignkit.testing.processes import run_in_processes
from alignkit.training.demonstrated import read_demonstrations
from alignkit.training.mixed_rows import in_order_of, order_of, places_of
from alignkit.training.models import load_policy
from alignkit.training.pair_values import with_values
from alignkit.training.row_order import rows_of_step
from alignkit.training.rows import read_answers, read_pairs

SFT: dict[str, Any] = {"learning_rate": 1e-3, "batch": 4, "epochs": 2, "samples": 0, "precision": "fp32"}
SETTINGS = RowSettings(batch=4)


def demonstration(name: str, number: int) -> dict[str, Any]:
    return {"prompt": f"{name} {number}?", "completion": f" fine {number % 3}", "level": (7 * number) % 10}


def pair(name: str, number: int) -> dict[str, Any]:
    return {"prompt": f"{name} {number}?", "chosen": " good", "rejected": " bad", "level": (7 * number) % 10}


def answer(name: str, number: int) -> dict[str, Any]:
    return {"prompt": f"{name} {number}?", "completion": " good", "label": number % 2 == 0, "level": (7 * number) % 10}


ROWS = {Demonstrations: demonstration, Preferences: pair, Ratings: answer}


def of_two(kind: Any, folder: Path, mix: Mix | None, sizes: tuple[int, int] = (12, 4), keep: bool = True) -> Any:
    """Write records of two sources, `many` and `few`, each with four held-out rows besides."""
    both = []
    for name, size in zip(("many", "few"), sizes, strict=True):
        rows = [ROWS[kind](name, number) for number in range(size + 4)]
        made = write_records(kind, folder / name, rows[4:], rows[:4])
        more = {"name": name, "keep": ("level",) if keep else ()}
        both += [part.model_copy(update=more) for part in made.parts]
    return kind(name="many+few", fingerprint="0", path=folder, parts=tuple(both), mix=mix)


def read(rows: Any, epochs: int = 1) -> list[str]:
    """Return the prompts of rows in the order in which so many epochs learn from them."""
    order = order_of(rows)
    steps = -(-(order if isinstance(order, int) else len(order)) // 4)
    taken = [place for step in range(steps * epochs) for place in rows_of_step(order, step, 4, 17)]
    return [rows[place].row["prompt"] for place in taken]


@pytest.mark.parametrize(("kind", "reader"), [(Preferences, read_pairs), (Ratings, read_answers)])
def test_sources_are_read_as_often_as_their_mix_says(policy: Policy, tmp_path: Path, kind: Any, reader: Any) -> None:
    records = of_two(kind, tmp_path, Mix(weights={"many": 1, "few": 1}))

    rows = reader(records, *load_policy(policy), SETTINGS, RecordingStage(tmp_path / "stage"))

    prompts = read(rows.train)
    assert Counter(prompt.split()[0] for prompt in prompts) == {"many": 8, "few": 8}
    assert Counter(prompt for prompt in prompts if "few" in prompt) == {f"few {number}?": 2 for number in range(4, 8)}
    assert len(set(read(rows.train, epochs=3))) == 16
    assert len(rows.held_out) == 8


@pytest.mark.parametrize(("kind", "reader"), [(Preferences, read_pairs), (Ratings, read_answers)])
def test_rows_are_ordered_by_their_column(policy: Policy, tmp_path: Path, kind: Any, reader: Any) -> None:
    records = of_two(kind, tmp_path, Mix(order="level", descending=True))

    rows = reader(records, *load_policy(policy), SETTINGS, RecordingStage(tmp_path / "stage"))

    prompts = [prompt for prompt in read(rows.train) if "many" in prompt]
    levels = [7 * int(prompt.split()[1].rstrip("?")) % 10 for prompt in prompts]
    assert levels == sorted(levels, reverse=True)
    assert len(levels) == 12


def test_demonstrations_are_ordered_whatever_is_left_out(policy: Policy, tmp_path: Path) -> None:
    prompts = ["long " * 9 if number % 3 == 0 else "how?" for number in range(12)]
    rows = [{"prompt": prompt, "completion": str(number), "level": -number} for number, prompt in enumerate(prompts)]
    records = write_records(Demonstrations, tmp_path / "rows", rows)
    parts = [part.model_copy(update={"keep": ("level",)}) for part in records.parts]
    records = records.model_copy(update={"parts": tuple(parts), "mix": Mix(order="level")})
    model, tokenizer = load_policy(policy)
    settings = DemonstrationSettings(max_length=8, max_lost=1.0)

    train = read_demonstrations(records, model, tokenizer, settings, RecordingStage(tmp_path / "stage")).train

    order = [place for step in range(2) for place in rows_of_step(order_of(train), step, 4, 17)]
    texts = [tokenizer.decode(train[place].ids, skip_special_tokens=True) for place in order]
    assert texts == [f"how?{number}" for number in (11, 10, 8, 7, 5, 4, 2, 1)]


def test_a_row_without_the_number_is_named(policy: Policy, tmp_path: Path) -> None:
    records = of_two(Preferences, tmp_path, Mix(order="level"), keep=False)

    with pytest.raises(DataError) as refusal:
        read_pairs(records, *load_policy(policy), SETTINGS, RecordingStage(tmp_path / "stage"))

    assert str(refusal.value) == (
        f"{tmp_path}/many/preferences-train.jsonl:1: rows are ordered by 'level', which must be a number, and the row "
        "has none; correct the row, or leave mix.order out"
    )


def test_a_source_of_which_no_row_is_left_is_refused(policy: Policy, tmp_path: Path) -> None:
    records = of_two(Preferences, tmp_path, Mix(weights={"many": 1, "few": 1}), sizes=(12, 0))

    with pytest.raises(DataError) as refusal:
        read_pairs(records, *load_policy(policy), SETTINGS, RecordingStage(tmp_path / "stage"))

    assert str(refusal.value) == "source 'few': no row is left to learn from; check it, or leave it out of the mix"


def test_rows_that_are_made_of_others_keep_their_order_if_asked_to(policy: Policy, tmp_path: Path) -> None:
    records = of_two(Preferences, tmp_path, Mix(weights={"many": 1, "few": 3}))
    train = read_pairs(records, *load_policy(policy), SETTINGS, RecordingStage(tmp_path / "stage")).train

    made = in_order_of(list(train), train)

    assert read(made) == read(train)
    assert in_order_of([1, 2], [3, 4]) == [1, 2]


def test_values_of_pairs_stand_in_their_rows_and_keep_the_order(policy: Policy, tmp_path: Path) -> None:
    records = of_two(Preferences, tmp_path, Mix(weights={"many": 1, "few": 3}))
    train = read_pairs(records, *load_policy(policy), SETTINGS, RecordingStage(tmp_path / "stage")).train

    valued = with_values(train, "start", range(len(train)))

    assert read(valued) == read(train)
    assert [pair.row["start"] for pair in valued] == list(range(len(train)))
    assert [pair.row["start"] for pair in valued[1:3]] == [1, 2]
    with pytest.raises(ValueError, match=r"^1 values under 'start' for 2 pairs$"):
        with_values(train[:2], "start", [0.0])


@pytest.mark.slow
def test_a_mixed_stage_is_the_same_resumed_and_in_two_processes(policy: Policy, tmp_path: Path) -> None:
    inputs = {"policy": policy, "demos": of_two(Demonstrations, tmp_path, Mix(shares={"few": 0.6}, order="level"))}
    whole = run_method(sft, SFT, RecordingStage(tmp_path / "whole"), **inputs)

    stopped = RecordingStage(tmp_path / "stopped", stop_at=5)  # in the second epoch
    with pytest.raises(Left):
        run_method(sft, SFT, stopped, **inputs)
    resumed = run_method(sft, SFT, stopped.again(), **inputs)
    shared, _ = run_in_processes(sft, SFT, tmp_path / "shared", inputs)

    assert same_weights(whole, resumed)
    assert same_weights(whole, shared, 1e-5)


def test_held_out_rows_of_each_source_are_measured_apart(policy: Policy, tmp_path: Path) -> None:
    mix, stage = Mix(weights={"many": 1, "few": 0}), RecordingStage(tmp_path / "sft")
    pairs = RecordingStage(tmp_path / "reward")

    run_method(sft, SFT, stage, policy=policy, demos=of_two(Demonstrations, tmp_path / "rows", mix))
    settings = ScoreSettings(batch=4, samples=0).model_dump(mode="json", exclude_defaults=True)
    run_method(reward, settings, pairs, policy=policy, pairs=of_two(Preferences, tmp_path / "pairs", mix))

    assert stage.measured == {"perplexity": 8, "perplexity/many": 4, "perplexity/few": 4}
    assert stage.results["perplexity/few"][1] != stage.results["perplexity/many"][1]
    assert pairs.measured == {"accuracy": 8, "accuracy/many": 4, "accuracy/few": 4}


def test_places_are_found_by_source() -> None:
    assert places_of(["a", "b", "a"]) == {"a": [0, 2], "b": [1]}
