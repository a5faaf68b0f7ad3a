"""Answers of updates from servers that are given the policy's weights: the same program, told by what is measured."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from engine_server import HANGS, EngineServer, engine_server
from tiny_models import written_policy

from alignkit.contract.kinds import FunctionReward, Policy, Prompts
from alignkit.errors import StageError
from alignkit.methods.grpo import grpo
from alignkit.methods.ppo import ppo
from alignkit.methods.rloo import rloo
from alignkit.run.stopping import Left
from alignkit.serve.serving import Rollouts
from alignkit.testing import RecordingStage, run_method
from alignkit.training import answering

SETTINGS: dict[str, Any] = {
    "updates": 3,
    "batch": 8,
    "minibatches": 2,
    "learning_rate": 1e-2,
    "measured": 4,
    "samples": 0,
    "generation": {"max_new_tokens": 6, "penalty": 0.0, "unfinished": "subtract"},
}
PATIENCE = {"timeout": HANGS / 2, "patience": 20.0}


@pytest.fixture
def policy(model_folder: Path, tmp_path: Path) -> Policy:
    return written_policy(model_folder, tmp_path / "policy", tied=True)


@pytest.fixture
def inputs(records: Callable[..., Any], policy: Policy, tmp_path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"function": "length", "settings": {"target": 20}}
    prompts = records(Prompts, [{"prompt": f"the food {word}"} for word in ("was", "is", "and", "or", "of", "in")])
    reward = FunctionReward(name="short", fingerprint="0", path=tmp_path, **facts)
    return {"policy": policy, "rewards": (reward,), "prompts": prompts}


@pytest.fixture(autouse=True)
def nobody_serves() -> Iterator[None]:
    yield
    answering.arrange(None)


def ran(stage: RecordingStage, inputs: dict[str, Any], method: Any = ppo, **more: Any) -> list[dict[str, float]]:
    """Run a method, and return what it logged, but for times."""
    run_method(method, SETTINGS | more, stage, **inputs)
    return logged(stage)


def logged(stage: RecordingStage) -> list[dict[str, float]]:
    return [{k: v for k, v in values.items() if "second" not in k} for _, _, values in stage.logs]


def refused(stage: RecordingStage, inputs: dict[str, Any], **more: Any) -> StageError:
    """Run a method that must fail, and return its error."""
    with pytest.raises(StageError) as refusal:
        ran(stage, inputs, **more)
    return refusal.value


def served_by(server: EngineServer, **more: Any) -> None:
    answering.arrange(Rollouts(urls=(server.url,), **{**PATIENCE, "timeout": 20.0} | more))


LORA = {"lora": {"rank": 4, "alpha": 32}}


FOUR = {"answers": 4}
VARIANTS = [(ppo, True, {}), (ppo, False, LORA), (grpo, True, FOUR | LORA), (rloo, False, FOUR)]


@pytest.mark.parametrize(("method", "tied", "more"), VARIANTS)
def test_a_server_answers_as_the_policy_would_in_every_update(
    method: Any, tied: bool, more: dict[str, Any], model_folder: Path, tmp_path: Path, inputs: dict[str, Any]
) -> None:
    inputs["policy"] = written_policy(model_folder, tmp_path / "other", tied=tied)
    with engine_server(inputs["policy"].path) as server:
        served_by(server)
        values = ran(RecordingStage(tmp_path / "stage"), inputs, method, **more)

    assert len(server.asked) == SETTINGS["updates"] * SETTINGS["batch"]
    assert max(one["engine/kl"] for one in values) <= 1e-6
    assert {one["engine/version_lag"] for one in values} == {0.0}
    assert values[-1]["objective/kl_k2"] > 1e-3  # so weights of before would have been noticed
    assert len({one["seed"] for one in server.asked}) == len(server.asked)


def test_a_server_that_takes_no_weights_is_noticed(policy: Policy, tmp_path: Path, inputs: dict[str, Any]) -> None:
    stage = RecordingStage(tmp_path / "stage")
    with engine_server(policy.path, deaf=True) as server:
        served_by(server)
        refusal = refused(stage, inputs, learning_rate=0.1, engine={"most_kl": 1e-4})

    assert refusal.problem.endswith("nats a token from the policy, and 0.0001 are allowed")
    assert refusal.remedy.startswith("the server has not the weights that it was given: look at its log")
    assert len(stage.logs) == 1


def test_faults_that_pass_change_nothing(policy: Policy, tmp_path: Path, inputs: dict[str, Any]) -> None:
    found = []
    for faults in ([], ["429", "", "500", "timeout", "reset", "", "truncated", "truncated"]):
        with engine_server(policy.path, faults=faults) as server:
            served_by(server, timeout=5 * HANGS)
            found.append(ran(RecordingStage(tmp_path / f"{len(found)}"), inputs, updates=1))

    assert found[0] == found[1]
    assert not server.faults


def test_where_the_server_is_gone_what_was_learnt_is_kept(
    policy: Policy, tmp_path: Path, inputs: dict[str, Any]
) -> None:
    stage = RecordingStage(tmp_path / "stage")
    with engine_server(policy.path) as server:
        served_by(server, patience=0.1)
        whole = ran(RecordingStage(tmp_path / "whole"), inputs, updates=2)
        server.faults += [""] * SETTINGS["batch"] + ["500"] * 1000
        refusal = refused(stage, inputs, updates=2)
        server.faults.clear()
        second = stage.again()
        ran(second, inputs, updates=2)

    assert refusal.problem == f"the server at {server.url} does not answer (status 500: busy)"
    assert refusal.remedy == "the same command goes on from here once it does"
    assert second.latest() is not None
    assert logged(second) == whole


def test_a_server_that_somebody_else_uses_is_refused(policy: Policy, tmp_path: Path, inputs: dict[str, Any]) -> None:
    with engine_server(policy.path) as server:
        served_by(server)
        server.reply, plainly = (
            lambda path, body: (  # type: ignore[method-assign]
                (200, {"weight_version": "theirs-3"}) if path == "/weight_info" else plainly(path, body)
            ),
            server.reply,
        )
        refusal = refused(RecordingStage(tmp_path / "stage"), inputs)

    assert "holds the weights 'theirs-3', and was given" in refusal.problem


def test_a_server_that_would_cut_answers_is_refused(policy: Policy, tmp_path: Path, inputs: dict[str, Any]) -> None:
    with engine_server(policy.path, limit=8) as server:
        served_by(server)
        refusal = refused(RecordingStage(tmp_path / "stage"), inputs)

    assert refusal.problem.startswith(f"the server at {server.url} reads 8 tokens, and prompts with their answers need")


def test_answers_that_are_drawn_ahead_are_an_update_old(policy: Policy, tmp_path: Path, inputs: dict[str, Any]) -> None:
    with engine_server(policy.path) as server:
        served_by(server)
        values = ran(RecordingStage(tmp_path / "stage"), inputs, engine={"ahead": 1})

    assert [one["engine/version_lag"] for one in values] == [0.0, 1.0, 1.0]
    assert values[0]["engine/kl"] <= 1e-6 < values[1]["engine/kl"]


def test_a_stage_that_draws_ahead_goes_on_where_it_stopped(tmp_path: Path, inputs: dict[str, Any]) -> None:
    whole = ran(RecordingStage(tmp_path / "whole"), inputs, engine={"ahead": 1})
    stage = RecordingStage(tmp_path / "stage", stop_at=2)
    with suppress(Left):
        ran(stage, inputs, engine={"ahead": 1})
    again = stage.again()

    assert ran(again, inputs, engine={"ahead": 1}) == whole
    assert [one["engine/version_lag"] for one in whole] == [0.0, 1.0, 1.0]
