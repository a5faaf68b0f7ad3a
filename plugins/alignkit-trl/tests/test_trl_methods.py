"""TRL's trainers as methods: what every method must keep."""

import pytest
from alignkit_dpo import kto
from alignkit_trl.trl_dpo import trl_dpo
from alignkit_trl.trl_grpo import trl_grpo
from alignkit_trl.trl_kto import trl_kto
from alignkit_trl.trl_reward import trl_reward
from alignkit_trl.trl_sft import trl_sft

from alignkit.testing import RecordingStage, conformance, run_method, same_weights, write_inputs

GIVEN_ROWS = {"learning_rate": 1e-2, "batch": 8, "precision": "fp32"}
JUDGED = GIVEN_ROWS | {"batch": 16, "kl_rows": 8}
ANSWERED = {
    "learning_rate": 1e-3,
    "updates": 3,
    "batch": 8,
    "answers": 4,
    "epochs": 2,
    "minibatches": 2,
    "precision": "fp32",
    "measured": 4,
    "generation": {"max_new_tokens": 5, "unfinished": "subtract", "penalty": 0.0},
}

TestTRLSFT = conformance(trl_sft, GIVEN_ROWS, effects=["lora.rank=4", "config.loss_type=dft"])
TestTRLReward = conformance(
    trl_reward, GIVEN_ROWS, effects=["lora.rank=4", "centering=1.0", "config.adam_epsilon=1e-2"]
)
TestTRLDPO = conformance(trl_dpo, GIVEN_ROWS, effects=["lora.rank=4", "loss=hinge", "config.loss_type=['apo_zero']"])
TestTRLKTO = pytest.mark.slow(  # it is kto, as a quick test below holds
    conformance(trl_kto, JUDGED, effects=["beta=1.0", "config.adam_epsilon=1e-2"])
)


class TestTRLGRPO(  # type: ignore[misc]
    conformance(trl_grpo, ANSWERED, effects=["kl.coef=1.0", "scale=none", "answers=2", "lora.rank=4", "config.top_k=2"])
):
    @pytest.mark.xfail(reason="each process of the trainer draws answers from a random state of its own", strict=True)
    def test_two_processes_make_what_one_makes(self, tmp_path, tmp_path_factory):
        super().test_two_processes_make_what_one_makes(tmp_path, tmp_path_factory)


def test_trl_kto_makes_what_kto_makes(tmp_path):
    inputs = write_inputs(kto, tmp_path)

    made = [run_method(method, JUDGED, RecordingStage(tmp_path / method.name), **inputs) for method in (kto, trl_kto)]

    assert same_weights(*made)
