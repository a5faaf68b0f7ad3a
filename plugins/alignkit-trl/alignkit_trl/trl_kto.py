"""`trl-kto`: learn from answers that are good or bad by themselves, by TRL's `KTOTrainer`.

`kto` of alignkit-dpo is that trainer already; what this adds to it are all of TRL's options, in `config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from alignkit_dpo.kto import KTOSettings, needs

from alignkit import Policy, Preferences, Ratings, Stage, method
from alignkit_trl.passing import PRECOMPUTED, PassedOn


class TRLKTOSettings(PassedOn, KTOSettings):
    """Settings of `trl-kto`."""

    trainer: ClassVar[str] = "KTO"
    says: ClassVar[Mapping[str, str]] = {name: name for name in ("beta", "desirable_weight", "undesirable_weight")} | {
        "loss_type": "loss"
    }
    fixed: ClassVar[Mapping[str, str]] = PRECOMPUTED


@method("trl-kto", needs=needs, results=("auc",))
def trl_kto(settings: TRLKTOSettings, stage: Stage, *, policy: Policy, answers: Ratings | Preferences) -> Policy:
    """Learn from answers that are good or bad by themselves, by TRL's trainer with all its options."""
    from alignkit_dpo.kto import finish, prepare

    from alignkit_trl.passing import train

    ready = prepare(settings, stage, policy, answers)
    train(settings, ready.options, ready.arguments, stage)
    return finish(ready, settings, stage)
