"""TRL's trainers as methods: `trl-sft`, `trl-reward`, `trl-dpo`, `trl-kto` and `trl-grpo`."""

from alignkit import Method, hookimpl
from alignkit_trl.trl_dpo import trl_dpo
from alignkit_trl.trl_grpo import trl_grpo
from alignkit_trl.trl_kto import trl_kto
from alignkit_trl.trl_reward import trl_reward
from alignkit_trl.trl_sft import trl_sft


@hookimpl
def alignkit_methods() -> list[Method]:
    return [trl_sft, trl_reward, trl_dpo, trl_kto, trl_grpo]
