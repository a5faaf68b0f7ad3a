"""Answers of updates from servers of vLLM: they are those of the policy as it is, update by update."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alignkit.contract.kinds import FunctionReward, Policy, Prompts
from alignkit.methods.grpo import grpo
from alignkit.methods.ppo import ppo
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
    read = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=len(read), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, pad_token_id=read.pad_token_id, bos_token_id=None,
        eos_token_id=read.eos_token_id, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    read.save_pretrained(folder)
    return Policy(name="policy", fingerprint="0", path=folder)


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
