"""Reward models that servers hold score as they do in this process, whatever goes wrong on the way."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from opened import open_reward
from reward_server import HANGS, Host, holding
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from alignkit.contract.kinds import Policy, RewardModel
from alignkit.contract.reward_function import Answer, HeadedScore, Score
from alignkit.contract.settings import LoRA
from alignkit.errors import AlignkitError
from alignkit.plugins import load_plugins
from alignkit.run.machine import Machine
from alignkit.run.order import Order
from alignkit.run.stopping import Stop
from alignkit.run.working_stage import WorkingStage
from alignkit.serve.serving import Serving
from alignkit.training.models import load_for_reward_training
from alignkit.training.saving import save_reward
from alignkit.training.served_scores import RewardServers
from alignkit.training.weight_files import ScoreScale

READS = 64
ANSWERS = [
    Answer("how are you?", text, finished, {"prompt": asked})
    for text, finished in ((" fine", True), (" fine, and the food was", False), ("", True), (" good" * 80, True))
    for asked in ("how are you?", [{"role": "user", "content": "how are you?"}])
]


def write_reward(tokenizer: Path, folder: Path, labels: int = 1, heads: tuple[float, ...] = ()) -> RewardModel:
    """Write a reward model of a size that vLLM computes on processors, wide enough to tell answers apart."""
    read = AutoTokenizer.from_pretrained(tokenizer)
    read.chat_template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
    config = LlamaConfig(
        vocab_size=len(read), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=READS, pad_token_id=read.pad_token_id, bos_token_id=None,
        eos_token_id=read.eos_token_id, num_labels=labels,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    save_reward(model, read, folder, ScoreScale(0.3, 0.7, heads))
    return RewardModel(name="taste", fingerprint="0", path=folder)


@pytest.fixture(scope="session")
def reward(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return write_reward(model_folder, tmp_path_factory.mktemp("served") / "reward")


@pytest.fixture
def host(reward: RewardModel) -> Iterator[Host]:
    with holding(reward, "taste") as host:
        yield host


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Score]]:
    """Open a reward model by servers at these addresses."""
    with ExitStack() as resources:

        def open_by(reward: RewardModel, *urls: str, warn: Any = None, **more: Any) -> Score:
            serving = Serving(urls=urls, **{"timeout": HANGS / 2, "patience": 20.0, **more})
            return RewardServers(serving, tmp_path, resources).open(reward, warn)

        yield open_by


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(AlignkitError) as caught:
        work()
    return str(caught.value)


def check_scores(reward: RewardModel, served: Score) -> None:
    assert served(ANSWERS) == pytest.approx(open_reward(reward)(ANSWERS), abs=1e-4)
    assert len(set(served(ANSWERS))) > len(ANSWERS) // 2
    assert served([]) == []


def test_a_server_scores_as_this_process_does(reward: RewardModel, host: Host, opened: Callable[..., Score]) -> None:
    check_scores(reward, opened(reward, host.url))


def test_a_server_scores_by_all_heads(model_folder: Path, tmp_path: Path, opened: Callable[..., Score]) -> None:
    headed = write_reward(model_folder, tmp_path / "headed", labels=3, heads=(0.1, 0.3, 0.5))

    with holding(headed, "taste") as host:
        served, here = opened(headed, host.url), open_reward(headed)
        check_scores(headed, served)
        assert isinstance(served, HeadedScore)
        assert isinstance(here, HeadedScore)
        assert served.heads(ANSWERS)[0] == pytest.approx(here.heads(ANSWERS)[0], abs=1e-4)


@pytest.mark.vllm
def test_vllm_scores_as_this_process_does(reward: RewardModel, tmp_path: Path, vllm: Serving) -> None:
    with ExitStack() as resources:
        check_scores(reward, RewardServers(vllm, tmp_path, resources).open(reward))


def test_a_stage_scores_by_the_servers_of_its_machine(reward: RewardModel, host: Host, tmp_path: Path) -> None:
    machine = Machine(rewards=Serving(urls=(host.url,)))
    order = Order(
        attempt="", stage="s", method="", settings={}, inputs={}, seed=1, fingerprint="0", machine=machine
    )  # fmt: skip
    stage = WorkingStage(order, tmp_path, Stop(), rank=0, heard=None, plugins=load_plugins)

    with stage.resources:
        check_scores(reward, stage.open_reward(reward))
    stage.close()

    assert len(host.asked) > 0


def test_rows_are_dealt_to_the_servers_that_hold_it(reward: RewardModel, opened: Callable[..., Score]) -> None:
    with holding(reward, "taste") as one, holding(reward, "else") as other, holding(reward, "taste") as third:
        served = opened(reward, one.url, other.url, third.url)(ANSWERS)

    assert served == pytest.approx(open_reward(reward)(ANSWERS), abs=1e-4)
    assert [len(host.asked) for host in (one, other, third)] == [len(ANSWERS) // 2, 0, len(ANSWERS) // 2]


def test_a_server_may_tell_the_folder_in_place_of_a_name(reward: RewardModel, opened: Callable[..., Score]) -> None:
    with holding(reward, str(reward.path)) as host:
        check_scores(reward, opened(reward, host.url))


def test_the_logit_of_the_named_class_is_the_score(
    model_folder: Path, tmp_path: Path, opened: Callable[..., Score]
) -> None:
    reward = write_reward(model_folder, tmp_path / "mood", labels=3).model_copy(update={"label": "LABEL_1"})

    with holding(reward, "taste") as host:
        check_scores(reward, opened(reward, host.url))


def test_that_answers_are_cut_is_told_once(reward: RewardModel, host: Host, opened: Callable[..., Score]) -> None:
    told: list[str] = []
    score = opened(reward, host.url, warn=lambda *what: told.append(what[0]))

    score(ANSWERS)
    score(ANSWERS)

    (said,) = told
    assert said.startswith(f"2 of 8 answers are longer with their prompts than 'taste' reads ({READS} tokens)")


FAULTS = ["429 slow down", "500 <html>", "503 loading", "reset", "slow", '200 {"data": [{"probs', "200 <html>"]
FAULTS += ['200 {"data": []}', '200 {"data": [{"probs": [NaN]}]}', '200 {"data": [{"probs": null}]}']


def test_faults_change_nothing(reward: RewardModel, host: Host, opened: Callable[..., Score]) -> None:
    score = opened(reward, host.url)
    host.faults += FAULTS

    assert score(ANSWERS) == pytest.approx(open_reward(reward)(ANSWERS), abs=1e-4)
    assert host.faults == []


def test_a_server_that_is_gone_ends_the_stage(reward: RewardModel, opened: Callable[..., Score]) -> None:
    with holding(reward, "taste") as host:
        score = opened(reward, host.url, patience=0.1)

    assert refusal(lambda: score(ANSWERS)).startswith(
        f"machines.toml, rewards: the server at {host.url} does not answer ("
    )


def test_a_server_that_holds_another_model_is_refused(
    reward: RewardModel, tmp_path: Path, opened: Callable[..., Score]
) -> None:
    with holding(reward, "taste", root=str(tmp_path)) as host:
        assert refusal(lambda: opened(reward, host.url)) == (
            f"machines.toml, rewards: the server at {host.url} holds {tmp_path} under the name 'taste'; "
            f"serve {reward.path} there"
        )
    with holding(reward, "else") as host:
        assert refusal(lambda: opened(reward, host.url)) == (
            "machines.toml, rewards: no server at `urls` holds the model 'taste'; "
            f"start one: vllm serve {reward.path} --runner pooling --served-model-name taste"
        )


def test_logits_of_other_classes_are_refused(
    model_folder: Path, reward: RewardModel, tmp_path: Path, opened: Callable[..., Score]
) -> None:
    other = write_reward(model_folder, tmp_path / "mood", labels=3)

    with holding(other, "taste", root="/elsewhere") as host:
        assert "refuses (it gives 3 logits, and the model has 1)" in refusal(lambda: opened(reward, host.url)(ANSWERS))


def test_what_a_server_would_read_otherwise_is_refused(
    policy: Policy, reward: RewardModel, tmp_path: Path, host: Host, opened: Callable[..., Score]
) -> None:
    model, tokenizer = load_for_reward_training(policy, LoRA())
    save_reward(model, tokenizer, tmp_path / "adapter", ScoreScale(0.0, 1.0))
    save_reward(load_for_reward_training(policy)[0], tokenizer, tmp_path / "renamed", ScoreScale(0.0, 1.0))
    weights = load_file(tmp_path / "renamed" / "model.safetensors")
    weights["reward_head.weight"] = weights.pop("score.weight")
    save_file(weights, tmp_path / "renamed" / "model.safetensors", {"format": "pt"})

    told = [
        refusal(lambda: opened(reward.model_copy(update={"path": folder}), host.url))  # noqa: B023  # called at once
        for folder in (tmp_path / "adapter", tmp_path / "renamed")
    ]

    assert told == [
        "machines.toml, rewards: no server can score by 'taste', which is an adapter; train all its weights, or merge "
        "it with its base into one folder of full weights, or leave rewards out of the machine",
        "machines.toml, rewards: no server can score by 'taste', which has a head of another form than transformers "
        "knows; take one that `reward` has trained, or leave rewards out of the machine",
    ]
