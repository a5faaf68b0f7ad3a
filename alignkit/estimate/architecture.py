"""Does a stage's method work with the architecture of its model: tried on a miniature, before weights are loaded."""

from alignkit.estimate.desk import Desk
from alignkit.estimate.trial import Trial, Uses, tried
from alignkit.plan.plan import PlannedStage, policies_of
from alignkit.training.configs import open_config


def architecture(desk: Desk, stage: PlannedStage) -> Trial:
    """Try what a stage will do with its policies; nothing is tried where it has none."""
    uses, folders = Uses.of(stage.needs), [desk.open(source).path for source in policies_of(desk.plan, stage)]
    trials = [tried(open_config(folder), uses, folder) for folder in folders]
    return Trial(
        tuple(dict.fromkeys(problem for trial in trials for problem in trial.problems)),
        tuple(dict.fromkeys(remark for trial in trials for remark in trial.remarks)),
    )
