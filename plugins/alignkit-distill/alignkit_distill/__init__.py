"""Distillation: a policy learns what a teacher says, on its own answers or on given ones."""

from alignkit import Method, hookimpl
from alignkit_distill.distill import distill
from alignkit_distill.distill_sft import distill_sft


@hookimpl
def alignkit_methods() -> list[Method]:
    return [distill, distill_sft]
