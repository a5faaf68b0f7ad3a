"""Does a stage's method work with the architecture of its model: tried on a miniature, before weights are loaded."""

from pathlib import Path
from typing import Any

from alignkit.learn.models import open_config, open_tokenizer
from alignkit.learn.trial import Trial, Uses, tried
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.run.previews import opened, policy_of


def architecture(plan: Plan, stage: PlannedStage, runs: Path, offline: bool) -> Trial:
    """Try what a stage will do with its policy; nothing is tried where it has none."""
    source = policy_of(plan, stage)
    if source is None:
        return Trial()
    artifact: Any = opened(source, runs, offline)
    config, tokenizer = open_config(artifact.path), open_tokenizer(artifact.path)
    return tried(config, tokenizer, Uses.of(stage.method.loop, stage.settings), artifact.path)
