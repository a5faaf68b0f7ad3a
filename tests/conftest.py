"""What tests share: threads and hub switched down, and a random state that no other test has moved."""

import gc
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.pop("COLUMNS", None)  # pytest-xdist tells its workers a width, and what we print would be cut to it

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from alignkit.contract.kinds import Policy
from alignkit.serve.serving import Serving
from alignkit.testing import RecordingStage

# CI draws the same examples in each run: what landed stays green. Whoever runs the tests by hand draws new ones.
hypothesis.settings.register_profile("alignkit", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("alignkit")


@pytest.fixture(scope="session")
def tiny_policy(alignkit_tiny_policy: Policy) -> Policy:
    return alignkit_tiny_policy


@pytest.fixture
def stage(alignkit_stage: RecordingStage) -> RecordingStage:
    return alignkit_stage


@pytest.fixture
def records(alignkit_records: Callable[..., Any]) -> Callable[..., Any]:
    return alignkit_records


@pytest.fixture(scope="session")
def model_folder(tiny_policy: Policy) -> Path:
    return tiny_policy.path


@pytest.fixture
def policy(tiny_policy: Policy) -> Policy:
    return tiny_policy


@pytest.fixture(scope="session")
def vllm() -> Serving:
    """What starts a server of vLLM on this processor."""
    folder = os.environ.get("ALIGNKIT_VLLM")
    if not folder:
        pytest.skip("ALIGNKIT_VLLM names no environment with vLLM; scripts/vllm.sh FOLDER --cpu makes one")
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    # Prompts that are cut into chunks end a server on a processor where a request has a seed.
    more = ("--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048")
    return Serving(vllm=f"{folder}/bin/vllm", more=more, environment=environment)


FROZEN = [0]
"""How many modules there were when their objects were last set aside."""


@pytest.fixture(autouse=True)
def imported_once() -> None:
    """Set what was imported aside for the garbage collector: trainers ask it to look at everything, twice each."""
    if len(sys.modules) > FROZEN[0] + 100:
        gc.collect()
        gc.freeze()
        FROZEN[0] = len(sys.modules)


@pytest.fixture(autouse=True)
def reproducible() -> None:
    """Leave no test a random state that another has moved."""
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
