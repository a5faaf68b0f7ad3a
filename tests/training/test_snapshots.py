"""Policies on the way: kept at the right steps, whole, the same after a stop, and without any influence on the last."""

from pathlib import Path
from typing import Any

import pytest
from alignkit_dpo.dpo import dpo

from alignkit import Policy
from alignkit.kit import load_policy
from alignkit.methods.grpo import grpo
from alignkit.methods.ppo import ppo
from alignkit.methods.sft import sft
from alignkit.store.durable import hash_file
from alignkit.testing import Left, RecordingStage, run_method, same_weights, write_inputs
from alignkit.training.snapshots import KLSpacing, is_due

UPDATES = {
    "updates": 4, "batch": 8, "minibatches": 1, "epochs": 1, "learning_rate": 1e-2, "precision": "fp32",
    "generation": {"max_new_tokens": 6, "unfinished": "subtract", "penalty": 0.0}, "measured": 4, "samples": 0,
}  # fmt: skip
ROWS = {"learning_rate": 1e-2, "batch": 8, "precision": "fp32"}
LORA = {"rank": 2, "alpha": 4.0}


def made(method: Any, settings: dict[str, Any], folder: Path, stops: tuple[int, ...] = ()) -> Policy:
    """Run a method, stopped and resumed after these steps."""
    inputs, stage = write_inputs(method, folder / "inputs"), RecordingStage(folder / "stage")
    for stop in stops:
        stage.stop_at = stop
        with pytest.raises(Left):
            run_method(method, settings, stage, **inputs)
        stage = stage.again()
    policy: Policy = run_method(method, settings, stage, **inputs)
    return policy


def weights(policy: Policy) -> dict[str, str]:
    """Return the hashes of all files of weights; others may name the folder that they lie in."""
    return {str(path.relative_to(policy.path)): hash_file(path) for path in policy.path.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        pytest.param(sft, {**ROWS, "epochs": 1.0}, marks=pytest.mark.slow),
        (dpo, {**ROWS, "lora": LORA}),
        pytest.param(ppo, {**UPDATES, "layout": "shared"}, marks=pytest.mark.slow),
        (grpo, {**UPDATES, "learning_rate": 0.1, "answers": 2, "snapshots_by": "kl"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_kept_on_the_way_opens_and_changes_nothing(
    method: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    plain = {key: value for key, value in settings.items() if key != "snapshots_by"}
    alone = made(method, plain, tmp_path / "alone")
    assert not alone.snapshots

    policy = made(method, {**settings, "snapshots": 2}, tmp_path / "kept")
    assert same_weights(policy, alone)
    assert 1 <= len(policy.snapshots) <= 2
    for one in policy.on_the_way():
        assert one.name.startswith("stage@")
        load_policy(one, trainable=False)
        assert {path.name for path in one.path.iterdir()} == {
            path.name for path in policy.path.iterdir() if path.is_file()
        }
        assert not same_weights(one, policy)

    again = made(method, {**settings, "snapshots": 2}, tmp_path / "again", stops=(2,))
    assert weights(again) == weights(policy)


def test_what_was_kept_after_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    first = RecordingStage(tmp_path / "stage")
    inputs = write_inputs(sft, tmp_path / "inputs")
    run_method(sft, {**ROWS, "snapshots": 3}, first, **inputs)
    kept = first.artifact / "snapshots"
    assert len(list(kept.iterdir())) == 3
    first.again()  # nothing was committed, so it begins at the start
    assert not list(kept.iterdir())


@pytest.mark.parametrize(("of", "count"), [(24, 8), (10, 3), (7, 6), (5, 9), (100, 1), (3, 0)])
def test_snapshots_are_evenly_spaced_and_the_last_step_is_none_of_them(of: int, count: int) -> None:
    due = [step for step in range(1, of + 1) if is_due(step, of, count)]
    assert len(due) == min(count, of - 1)
    assert of not in due
    gaps = [later - earlier for earlier, later in zip([0, *due], [*due, of], strict=True)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("far", [0.05, 4.0, 300.0])
def test_distances_are_about_equal_however_far_the_last_one_is(far: float) -> None:
    spacing, steps = KLSpacing(8), 400
    kls = [far * (step / steps) ** 2 for step in range(1, steps + 1)]  # so that its root is even
    for step, kl in enumerate(kls, start=1):
        spacing.keeps(step, kl)
    assert 0 < len(spacing.kept) <= 8
    if far > 1:
        assert len(spacing.kept) >= 4
        gaps = [later - earlier for earlier, later in zip(spacing.kept, spacing.kept[1:], strict=False)]
        assert max(gaps) - min(gaps) <= 0.35 * max(gaps)
