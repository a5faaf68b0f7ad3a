"""When a reward is gamed: a nat that buys little, and the policy on the way that is worth most."""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignkit import FunctionReward, Policy
from alignkit.contract.events import Metrics
from alignkit.methods.grpo import GRPOSettings, grpo
from alignkit.testing import Left, RecordingStage, run_method, same_weights, write_inputs
from alignkit.testing.processes import run_in_processes
from alignkit.testing.suite import furthest
from alignkit.training import gaming
from alignkit.training.gaming import AROUND, FALL, PATIENCE, PRICE, Gaming

SETTINGS: dict[str, Any] = {
    "updates": 8, "batch": 8, "answers": 2, "minibatches": 1, "learning_rate": 0.1, "precision": "fp32",
    "snapshots": 8, "snapshots_by": "step", "stop": "auto", "samples": 0, "measured": 4,
    "generation": {"max_new_tokens": 6, "unfinished": "subtract", "penalty": 0.0},
}  # fmt: skip


def figures(gain: float, kl: float, held_out: float | None = None) -> dict[str, float]:
    """Figures of an update, in standard deviations of the start's scores."""
    watched = {} if held_out is None else {"held_out/other": held_out, "held_out_std/other": 0.5}
    return {"objective/scores": 3.0 + 2 * gain, "objective/scores_std": 2.0, "objective/kl": kl, **watched}


def seen(*updates: dict[str, float]) -> Gaming:
    found = Gaming()
    for number, update in enumerate(updates):
        found.keep(number, None)  # the policy that gave these answers
        found.see(update)
    return found


def test_a_run_whose_nats_buy_enough_is_not_gamed() -> None:
    efficient = [figures(sqrt(2 * kl), kl) for kl in range(12)]  # the best there is, of normal scores

    assert not seen(*efficient).is_gamed


def test_a_run_that_goes_on_for_little_is_gamed_where_it_was_worth_most() -> None:
    kls = [0.0, 0.5, 1.0, 2.0, 3.0, 6.0, 10.0, 15.0, 20.0, 25.0]
    gains = [0.0, 0.5, 1.0, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]

    found = seen(*map(figures, gains, kls))

    assert found.is_gamed
    worth = {i: sum(gains[j] - PRICE * kls[j] for j in (i - 1, i, i + 1)) / AROUND for i in range(1, len(kls) - 1)}
    assert found.best == max(worth, key=lambda step: worth[step])
    assert found.kept[3] == pytest.approx(worth[3])
    assert found.kept[9] is None  # nobody has seen what the last one's neighbours answer


def test_a_fall_within_noise_is_none_and_a_rise_forgets_it() -> None:
    flat = [figures(1.0, 1.0)] * 4
    within = [figures(1.0 - 0.9 * FALL, 1.0)] * 9
    twice = [*[figures(1.0 - 2 * FALL, 1.0)] * PATIENCE, *[figures(1.0, 1.0)] * 3]

    assert not seen(figures(0.0, 0.0), *flat, *within).is_gamed
    assert not seen(figures(0.0, 0.0), *flat, *twice[: AROUND + PATIENCE - 2], *flat).is_gamed
    assert seen(figures(0.0, 0.0), *flat, *[figures(1.0 - 2 * FALL, 1.0)] * (AROUND + PATIENCE)).is_gamed


def test_what_is_held_out_counts_as_much_as_what_is_learnt_from() -> None:
    rising = [figures(0.2 * number, 0.1 * number, held_out=0.0) for number in range(10)]
    falling = [figures(0.2 * number, 0.1 * number, held_out=-0.15 * number) for number in range(10)]

    assert not seen(*rising).is_gamed
    assert seen(*falling).is_gamed


def test_without_kl_or_spread_nothing_is_said() -> None:
    no_kl = [{"objective/scores": -float(number), "objective/scores_std": 1.0} for number in range(9)]
    no_spread = [{"objective/scores": 1.0, "objective/scores_std": 0.0, "objective/kl": 50.0}] * 9

    assert not seen(*no_kl).is_gamed
    assert not seen(*no_spread).is_gamed


def test_a_checkpoint_holds_all_of_it() -> None:
    found = seen(*[figures(0.1, 0.1)] * 4)

    assert Gaming.of(json.loads(json.dumps(found.facts()))) == found


def made(folder: Path, settings: dict[str, Any], stop_at: int | None = None) -> tuple[Any, RecordingStage]:
    inputs, stage = write_inputs(grpo, folder / "inputs"), RecordingStage(folder / "stage", stop_at=stop_at)
    if stop_at:
        with pytest.raises(Left):
            run_method(grpo, settings, stage, **inputs)
        stage = stage.again()
    return run_method(grpo, settings, stage, **inputs), stage


def test_a_stage_whose_reward_is_gamed_ends_with_its_best_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is worth less the further it is: the first update that others were seen around is worth most.
    monkeypatch.setattr(gaming, "PRICE", 1e6)

    policy, stage = made(tmp_path / "whole", SETTINGS)

    (told,) = [problem for problem, _ in stage.warnings if "gamed" in problem]
    taken = len(stage.logs)
    assert taken < SETTINGS["updates"]
    assert f"stopped after update {taken} of 8, and the policy after update 1 is the one that is kept" in told
    first = next(one for one in policy.on_the_way() if one.name == "stage@1")
    assert same_weights(policy, first)
    assert not same_weights(policy, [*policy.on_the_way()][-1])

    again, _ = made(tmp_path / "again", SETTINGS, stop_at=taken - 1)
    assert same_weights(again, policy)

    warned, stage = made(tmp_path / "warned", {**SETTINGS, "stop": "warn"})
    assert [step for step, _, _ in stage.logs] == list(range(1, 9))
    assert [problem.partition(":")[0] for problem, _ in stage.warnings if "gamed" in problem] == [f"update {taken}"]
    assert not same_weights(warned, policy)


def test_a_reward_that_is_no_guess_is_never_gamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaming, "PRICE", 1e6)
    gold = FunctionReward(name="gold", fingerprint="", path="", function="length", settings={"target": 4})
    inputs, stage = write_inputs(grpo, tmp_path / "inputs"), RecordingStage(tmp_path / "stage")

    run_method(grpo, SETTINGS, stage, **{**inputs, "rewards": (gold,)})

    assert len(stage.logs) == SETTINGS["updates"]
    assert ["ends nothing" in problem for problem, _ in stage.warnings].count(True) == 1
    assert not any("gamed" in problem for problem, _ in stage.warnings)


def test_the_weights_of_snapshots_that_are_dropped_are_dropped(tmp_path: Path) -> None:
    _, stage = made(tmp_path, {**SETTINGS, "snapshots": 2, "snapshots_by": "kl", "learning_rate": 0.2})

    left = {path.name for path in stage.folder.glob("after-*")}
    assert left == {f"after-{path.name}.safetensors" for path in (stage.artifact / "snapshots").iterdir()}
    assert 1 <= len(left) <= 3


@pytest.mark.parametrize(
    ("said", "told"),
    [({"stop": "auto"}, "set snapshots, 12 are usual"), ({"snapshots_by": "kl"}, "set snapshots to how many")],
)
def test_a_choice_among_nothing_is_refused(said: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        GRPOSettings(**said)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_end_with_the_snapshot_that_one_ends_with(tmp_path: Path, sharded: bool) -> None:
    settings = {**SETTINGS, "updates": 12}
    policy, stage = made(tmp_path / "one", settings)
    inputs = write_inputs(grpo, tmp_path / "inputs")

    two, told = run_in_processes(grpo, settings, tmp_path / "two", inputs, sharded=sharded)

    assert len(stage.logs) < 12, "no reward was gamed, so this tells nothing"
    assert isinstance(two, Policy)
    assert furthest(policy, two) < 1e-3  # a learning rate of 0.1 makes rounding grow
    assert [one.step for one in two.snapshots] == [one.step for one in policy.snapshots]
    assert furthest(next(policy.on_the_way()), next(two.on_the_way())) < 1e-3
    assert len([one for one in told if isinstance(one, Metrics)]) == len(stage.logs)
