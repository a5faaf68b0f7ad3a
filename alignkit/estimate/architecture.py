"""Does a stage's method work with the architecture of its model: tried on a miniature, before weights are loaded."""

from pathlib import Path
from typing import Any

from alignkit.estimate.trial import Trial, Uses, tried
from alignkit.plan.plan import Plan, PlannedStage, policies_of
from alignkit.sources.source import Source
from alignkit.training.models import open_config, open_tokenizer
from alignkit.training.prepare import opened


def architecture(plan: Plan, stage: PlannedStage, runs: Path, offline: bool) -> Trial:
    """Try what a stage will do with its policies; nothing is tried where it has none."""
    uses = Uses.of(stage.method.loop, stage.settings)
    trials = [_tried(source, uses, runs, offline) for source in policies_of(plan, stage)]
    return Trial(
        tuple(dict.fromkeys(problem for trial in trials for problem in trial.problems)),
        tuple(dict.fromkeys(remark for trial in trials for remark in trial.remarks)),
    )


def _tried(source: Source, uses: Uses, runs: Path, offline: bool) -> Trial:
    artifact: Any = opened(source, runs, offline)
    return tried(open_config(artifact.path), open_tokenizer(artifact.path), uses, artifact.path)
