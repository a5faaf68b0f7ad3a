"""Answers of updates from servers of vLLM: they are those of the policy as it is, update by update."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from opened import open_judge
from tiny_models import written_policy

from alignkit.contract.judges import Question
from alignkit.contract.kinds import Demonstrations, FunctionReward, Judge, Policy, Prompts
from alignkit.contract.reward_function import Answer
from alignkit.methods.grpo import grpo
from alignkit.methods.ppo import ppo
from alignkit.methods.sft import sft
from alignkit.serve.server import Server
from alignkit.serve.serving import Rollouts, Serving
from alignkit.testing import RecordingStage, run_method
from alignkit.training import answering

pytestmark = pytest.mark.vllm
SETTINGS = {"updates": 3, "batch": 32, "epochs": 2, "learning_rate": 3e-3, "generation": {"max_new_tokens": 24}}
VARIANTS = [(ppo, True, False), (ppo, False, False), (ppo, True, True), (grpo, False, True)]


@pytest.fixture(autouse=True)
def served(vllm: Serving) -> Iterator[None]:
    answering.arrange(Rollouts(**vllm.model_dump()))
    yield
    answering.arrange(None)


def write_policy(tokenizer: Path, folder: Path, *, tied: bool) -> Policy:
    """Write a policy of a size that vLLM computes on processors."""
    return written_policy(tokenizer, folder, tied=tied, width=64, layers=2, positions=1024)


@pytest.mark.parametrize(("method", "tied", "lora"), VARIANTS)
def test_answers_are_those_of_the_policy_in_every_update(
    method: Any, tied: bool, lora: bool, model_folder: Path, tmp_path: Path, records: Callable[..., Any]
) -> None:
    policy = write_policy(model_folder, tmp_path / "policy", tied=tied)
    prompts = records(Prompts, [{"prompt": f"the food {word}"} for word in ("was", "is", "and", "or", "of", "in")])
    facts: dict[str, Any] = {"function": "length", "settings": {"target": 20}}
    reward = FunctionReward(name="short", fingerprint="0", path=tmp_path, **facts)
    stage = RecordingStage(tmp_path / "stage")

    settings = SETTINGS | ({"lora": {"rank": 4, "alpha": 32}} if lora else {})
    run_method(method, settings, stage, policy=policy, rewards=(reward,), prompts=prompts)

    logged = [values for _, _, values in stage.logs]
    assert len(logged) == SETTINGS["updates"]
    assert max(values["engine/kl"] for values in logged) <= 1e-6
    assert logged[-1]["objective/kl_k3"] > 1e-3  # the weights have moved, so those of before would be told


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # connections are kept for the next one
def test_a_judge_on_vllm_is_as_sure_as_the_policy_itself(
    vllm: Serving, model_folder: Path, tmp_path: Path, records: Callable[..., Any]
) -> None:
    asked = [{"role": "user", "content": "Which reply is better? Answer with the letter A or B and nothing else."}]
    rows = [{"prompt": asked, "completion": letter} for letter in "AABABBAA"]
    start = write_policy(model_folder, tmp_path / "start", tied=False)
    settings = {"learning_rate": 1e-2, "epochs": 20, "batch": 8}
    judge = run_method(
        sft, settings, RecordingStage(tmp_path / "sft"), policy=start, demos=records(Demonstrations, rows)
    )
    questions = [
        Question(Answer("How was it?", f" it was {one}", True), Answer("How was it?", f" it was {other}", True))
        for one, other in (("good", "bad"), ("bad", "good"), ("fine", "fine"), ("", "awful, and late"))
    ]

    words = [str(judge.path), "--served-model-name", "judge", "--dtype", "float32"]
    with closing(Server(vllm, words, tmp_path / "log", "here")) as server:
        server.wait()
        options = {"url": f"{server.url}/v1"}
        served = Judge(name="served", fingerprint="0", path=tmp_path, address="openai:judge", options=options)
        verdicts = open_judge(served).compare(questions)
    own = open_judge(Judge(name="own", fingerprint="0", path=judge.path, address="policy:judge")).compare(questions)

    assert [one.first for one in verdicts] == pytest.approx([one.first for one in own], abs=1e-4)
    assert [one.mass for one in verdicts] == pytest.approx([one.mass for one in own], abs=1e-4)
    assert all(one.mass > 0.5 for one in own)
