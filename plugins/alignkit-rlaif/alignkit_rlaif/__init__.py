"""RLAIF: a model's feedback, as methods (`rlaif`, `critique`, ...) and judges (`openai:`, `policy:`)."""

from alignkit import JudgeFunction, JudgeScheme, Method, hookimpl
from alignkit_rlaif.critique import critique, revise
from alignkit_rlaif.endpoint import openai
from alignkit_rlaif.local import policy
from alignkit_rlaif.rlaif import rlaif, self_rlaif


@hookimpl
def alignkit_methods() -> list[Method]:
    return [rlaif, self_rlaif, critique, revise]


@hookimpl
def alignkit_judges() -> list[JudgeFunction | JudgeScheme]:
    return [openai, policy]
