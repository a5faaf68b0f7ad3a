"""Distillation from given answers: what every method must keep, and its loss."""

from alignkit_distill.distill_sft import distill_sft

from alignkit.testing import conformance
from alignkit.testing.examples import write_tiny_policy

SETTINGS = {"learning_rate": 1e-2, "epochs": 1, "batch": 20, "precision": "fp32", "samples": 1}


def with_teacher(folder):
    return {"teacher": write_tiny_policy(folder / "teacher", seed=5)}


TestDistillSFT = conformance(
    distill_sft, SETTINGS, inputs=with_teacher, effects=["lora.rank=4", "top_k=4"], learns="-teacher_kl"
)
