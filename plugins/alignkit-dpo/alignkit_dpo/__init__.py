"""Methods that learn from judged answers without a reward model: pairs, or answers that are good or bad."""

from alignkit import Method, hookimpl
from alignkit_dpo.bco import bco
from alignkit_dpo.dpo import DPOSettings, dpo
from alignkit_dpo.kto import kto
from alignkit_dpo.nca import nca
from alignkit_dpo.reference_free import cpo, orpo, simpo

__all__ = ["DPOSettings", "alignkit_methods", "bco", "cpo", "dpo", "kto", "nca", "orpo", "simpo"]


@hookimpl
def alignkit_methods() -> list[Method]:
    return [dpo, simpo, orpo, cpo, kto, bco, nca]
