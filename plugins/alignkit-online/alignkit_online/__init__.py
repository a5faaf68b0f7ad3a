"""Methods that learn from preferences among a policy's own answers, and ReMax."""

from alignkit import Method, hookimpl
from alignkit_online.nash_md import nash_md
from alignkit_online.online_dpo import online_dpo
from alignkit_online.remax import remax
from alignkit_online.xpo import xpo


@hookimpl
def alignkit_methods() -> list[Method]:
    return [online_dpo, xpo, nash_md, remax]
