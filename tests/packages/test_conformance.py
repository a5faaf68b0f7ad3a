"""Our own methods keep what the conformance suite asks of everybody's."""

from pathlib import Path
from typing import Any

from alignkit.methods.best_of_n import best_of_n
from alignkit.methods.clm import clm
from alignkit.methods.grpo import grpo
from alignkit.methods.ppo import ppo
from alignkit.methods.reward import reward
from alignkit.methods.rloo import rloo
from alignkit.methods.sft import sft
from alignkit.testing import Conformance, conformance

ONLINE = {
    "learning_rate": 1e-3,
    "updates": 2,
    "batch": 8,
    "epochs": 2,
    "minibatches": 2,
    "precision": "fp32",
    "measured": 4,
    "generation": {"max_new_tokens": 5, "unfinished": "subtract", "penalty": 0.0},
}
OFFLINE = {"learning_rate": 1e-2, "batch": 8, "precision": "fp32"}


TestCLM = conformance(clm, OFFLINE | {"max_length": 16}, effects=["lora.rank=4"])
TestSFT = conformance(sft, OFFLINE, effects=["lora.rank=4", "batch=4"])
TestReward = conformance(reward, OFFLINE, effects=["batch=4", "centering=1.0"])
TestPPO = conformance(
    ppo,
    ONLINE,
    without_effect=["trained_layers"],
    effects=["kl.coef=1.0", "lam=0.5", "gamma=0.9", "clip=0.01", "epochs=1", "layout=shared", "lora.rank=4"],
)
TestGRPO = conformance(
    grpo,
    ONLINE | {"answers": 4},
    without_effect=["dynamic_sampling"],  # no two answers score the same
    effects=[
        *["kl.coef=1.0", "scale=none", "scale=tokens", "clip=0.001", "answers=2"],
        *["surrogate=weights", "ratio=sequence", "kl.term=k2"],
    ],
)
TestBestOfN = conformance(best_of_n, ONLINE | {"answers": 4}, effects=["kl.coef=1.0", "keep=2", "lora.rank=4"])
TestRLOO = conformance(rloo, ONLINE | {"answers": 4}, effects=["kl.coef=1.0", "answers=2", "minibatches=1"])


def given(folder: Path) -> Any:
    raise AssertionError("nothing of this is run")


def test_inputs_of_an_author_come_before_ours() -> None:
    suite = conformance(sft, {}, inputs=given)

    assert issubclass(suite, Conformance)
    assert suite().inputs is given
