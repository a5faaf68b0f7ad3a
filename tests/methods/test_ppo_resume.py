"""An interrupted PPO stage goes on where it was, bit by bit."""

import json
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from alignkit.contract.kinds import Prompts
from alignkit.contract.settings import LoRA, Optimisation
from alignkit.errors import StageError
from alignkit.methods.ppo import KL, CriticSettings, Generation, PPOSettings, ppo
from alignkit.testing import Left, RecordingStage
from alignkit.training.step import (
    CommitTimer,
    commit_or_leave,
    load_learners,
    make_learner,
    save_learner,
    save_learners,
    take_step,
)

UPDATES = 3


@pytest.fixture
def inputs(policy, records, reward_model):
    words = ["hello", "how", "are", "you", "today"]
    rows = [{"prompt": f"{a} {b}"} for a in words for b in words]
    return {"policy": policy, "rewards": (reward_model,), "prompts": records(Prompts, rows[4:], rows[:4])}


HOW = {
    "full": {},
    "lora": {"lora": LoRA(rank=2)},
    "shared": {"layout": "shared"},
    "frozen": {"layout": "frozen", "trained_layers": 1},
}


def run(stage: RecordingStage, inputs, warmup: int = 0, **how) -> None:
    settings = PPOSettings(
        learning_rate=1e-2,
        updates=UPDATES,
        batch=8,
        epochs=2,
        minibatches=2,
        kl=KL(target=0.01, horizon=100),
        critic=CriticSettings(warmup=warmup),
        generation=Generation(max_new_tokens=6, unfinished="subtract", penalty=0),
        **how,
    )
    torch.manual_seed(1)
    ppo(settings, stage, **inputs)


def interrupted(stage: RecordingStage, inputs, at: int, **given) -> RecordingStage:
    """Run until a stop is asked for during this update, and give the stage for the next attempt."""
    stage.stop_at = at
    with pytest.raises(Left):
        run(stage, inputs, **given)
    return stage.again()


def figures(stage: RecordingStage) -> list[tuple[int, int | None, dict[str, float]]]:
    return [
        (step, of, {k: v for k, v in row.items() if not k.startswith("tokens_per_second")})
        for step, of, row in stage.logs
    ]


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "manifest.json"}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("warmup", [0, 1], ids=["both learn", "critic first"])
def test_two_halves_leave_the_state_that_one_whole_leaves(inputs, tmp_path, how, warmup) -> None:
    whole = interrupted(RecordingStage(tmp_path / "whole"), inputs, UPDATES, warmup=warmup, **how)

    parts = interrupted(RecordingStage(tmp_path / "parts"), inputs, 1, warmup=warmup, **how)
    parts = interrupted(parts, inputs, UPDATES, warmup=warmup, **how)

    assert figures(parts) == figures(whole)
    assert contents(parts.latest()) == contents(whole.latest())
    assert contents(whole.latest()).keys() == {"policy.safetensors", "critic.safetensors", "state.json"}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("at", [2, UPDATES], ids=["on the way", "after the last update"])
def test_an_interrupted_stage_makes_the_same_policy(inputs, tmp_path, how, at) -> None:
    whole, parts = RecordingStage(tmp_path / "whole"), RecordingStage(tmp_path / "parts")
    run(whole, inputs, **how)

    parts = interrupted(parts, inputs, at, **how)
    run(parts, inputs, **how)

    file = "artifact/adapter_model.safetensors" if "lora" in how else "artifact/model.safetensors"
    assert (parts.root / file).read_bytes() == (whole.root / file).read_bytes()
    assert (figures(parts), parts.results, parts.samples) == (figures(whole), whole.results, whole.samples)


def test_the_kl_coefficient_goes_on_from_where_it_was(inputs, stage) -> None:
    stage = interrupted(stage, inputs, 2)

    assert json.loads((stage.latest() / "state.json").read_text("utf-8"))["kl_coef"] != KL().coef


def test_a_checkpoint_of_adapters_leaves_the_frozen_weights_out(inputs, stage) -> None:
    stage = interrupted(stage, inputs, 1, lora=LoRA(rank=2))

    for name in ("policy", "critic"):
        with safe_open(stage.latest() / f"{name}.safetensors", framework="pt") as tensors:
            assert all("lora_" in key or "modules_to_save" in key for key in tensors.keys())  # noqa: SIM118


def test_a_stage_without_prompts_aside_goes_on_too(inputs, records, stage) -> None:
    alone = {**inputs, "prompts": records(Prompts, [{"prompt": "hello"}])}

    stage = interrupted(stage, alone, 1)
    run(stage, alone)

    assert stage.warnings == [("no prompts are held out, so nothing is measured", "raise the source's held_out")]


def learner(*widths: int):
    """A learner that has taken a step."""
    made = make_learner(torch.nn.Sequential(*(torch.nn.Linear(width, 1) for width in widths)), 0.1, Optimisation())
    take_step(made, [torch.ones(1, widths[0])], lambda batch: (made.model[0](batch).sum(), {}))
    return made


def test_a_learner_that_was_loaded_is_the_one_that_was_saved(tmp_path) -> None:
    one, other = learner(2, 3), learner(2, 3)

    save_learners(tmp_path, {"one": one}, {"place": 0.1})
    facts = load_learners(tmp_path, {"one": other})
    save_learner(other, tmp_path / "again.safetensors")

    assert facts == {"place": 0.1}
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()
    assert load_file(tmp_path / "one.safetensors").keys() == {
        "weight/0.weight",
        "exp_avg/0.weight",
        "exp_avg_sq/0.weight",
        "step/0.weight",
        "weight/0.bias",
        "exp_avg/0.bias",
        "exp_avg_sq/0.bias",
        "step/0.bias",
        "weight/1.weight",
        "weight/1.bias",
    }


def refusal(folder, learner) -> str:
    with pytest.raises(StageError) as refused:
        load_learners(folder, {"policy": learner})
    return str(refused.value)


@pytest.mark.parametrize(
    ("widths", "reason"),
    [
        ((3,), "weight 0.weight is (1, 2) in it, and (1, 3) in the model"),
        ((2, 2), "weight 1.bias is missing in it, and (1,) in the model"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, widths, reason) -> None:
    save_learners(tmp_path, {"policy": learner(2)}, {})

    assert refusal(tmp_path, learner(*widths)) == (
        f"{tmp_path / 'policy.safetensors'}: the checkpoint cannot be used ({reason}); "
        f"remove the folder {tmp_path}, and the stage goes on from an older checkpoint or starts over"
    )


def test_a_weight_that_is_not_trained_any_more_is_refused(tmp_path) -> None:
    save_learners(tmp_path, {"policy": learner(2, 2)}, {})

    assert "(weight 1.bias is (1,) in it, and not trained in the model)" in refusal(tmp_path, learner(2))


@pytest.mark.parametrize("name", ["policy.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, harm) -> None:
    save_learners(tmp_path, {"policy": learner(2)}, {"done": 1})
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if harm == "cut":
        (tmp_path / name).write_bytes(content[: len(content) // 2])

    assert refusal(tmp_path, learner(2)).startswith(f"{tmp_path / name}: the checkpoint cannot be used (")


@pytest.mark.parametrize(
    ("seconds", "cost", "due"), [(119, 0, False), (121, 0, True), (121, 10, False), (501, 10, True)]
)
def test_commits_come_every_two_minutes_and_take_no_more_than_a_fiftieth_of_the_time(seconds, cost, due) -> None:
    assert CommitTimer(time.monotonic() - seconds, cost).due is due


def test_a_commit_that_is_due_is_made_and_the_stage_goes_on(stage) -> None:
    timer = CommitTimer(time.monotonic() - 1000)

    commit_or_leave(stage, 4, lambda folder: (folder / "x").touch(), timer)
    commit_or_leave(stage, 5, lambda folder: (folder / "x").touch(), timer)

    assert stage.again().latest().name == "step-4"
