"""alignkit aligns language models from one recipe, with methods as plugins.

The names below are the public interface, and light: none of them imports torch, and each is imported when it is first
asked for. What methods are built of is in `alignkit.kit`, which does import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit.compare.comparison import compare_recipe as compare_recipe
    from alignkit.contract.advice import Advice as Advice
    from alignkit.contract.constraint import Constraint as Constraint
    from alignkit.contract.events import (
        Doing as Doing,
        Estimated as Estimated,
        Event as Event,
        Metrics as Metrics,
        Result as Result,
        Rows as Rows,
        Sample as Sample,
        StageFailed as StageFailed,
        StageFinished as StageFinished,
        StageStarted as StageStarted,
        Stopping as Stopping,
        Warned as Warned,
    )
    from alignkit.contract.hookspecs import hookimpl as hookimpl
    from alignkit.contract.judges import (
        JudgeClient as JudgeClient,
        JudgeFunction as JudgeFunction,
        JudgeScheme as JudgeScheme,
        Question as Question,
        Verdict as Verdict,
        judge as judge,
        judge_scheme as judge_scheme,
    )
    from alignkit.contract.kinds import (
        Artifact as Artifact,
        Demonstrations as Demonstrations,
        FunctionReward as FunctionReward,
        Judge as Judge,
        JudgeReward as JudgeReward,
        Policy as Policy,
        Preferences as Preferences,
        Prompts as Prompts,
        Ratings as Ratings,
        Records as Records,
        Reward as Reward,
        RewardModel as RewardModel,
        Scores as Scores,
        Text as Text,
    )
    from alignkit.contract.method import Method as Method, method as method
    from alignkit.contract.needs import (
        EvaluationNeeds as EvaluationNeeds,
        Needs as Needs,
        PackedNeeds as PackedNeeds,
        PairNeeds as PairNeeds,
        RowNeeds as RowNeeds,
        SamplingNeeds as SamplingNeeds,
        TrainerNeeds as TrainerNeeds,
        group_needs as group_needs,
        packed_needs as packed_needs,
        pair_needs as pair_needs,
        sampling_needs as sampling_needs,
        trainer_needs as trainer_needs,
    )
    from alignkit.contract.paper import Paper as Paper
    from alignkit.contract.reward_function import (
        Answer as Answer,
        HeadedScore as HeadedScore,
        RewardFunction as RewardFunction,
        Score as Score,
        reward as reward,
    )
    from alignkit.contract.row_settings import (
        DemonstrationSettings as DemonstrationSettings,
        RowSettings as RowSettings,
        ScoreSettings as ScoreSettings,
        TrainingSettings as TrainingSettings,
    )
    from alignkit.contract.sampling_settings import (
        KL as KL,
        Drawing as Drawing,
        Generation as Generation,
        GroupSettings as GroupSettings,
        RewardShape as RewardShape,
        SamplingSettings as SamplingSettings,
        UpdateSettings as UpdateSettings,
    )
    from alignkit.contract.settings import (
        InputNames as InputNames,
        LoRA as LoRA,
        Optimisation as Optimisation,
        Precision as Precision,
        Settings as Settings,
        SnapshotSettings as SnapshotSettings,
    )
    from alignkit.contract.stage import Stage as Stage
    from alignkit.contract.tracker import (
        TrackedRun as TrackedRun,
        Tracker as Tracker,
        TrackerFunction as TrackerFunction,
        tracker as tracker,
    )
    from alignkit.data.formats import Columns as Columns
    from alignkit.errors import (
        AlignkitError as AlignkitError,
        DataError as DataError,
        JudgeError as JudgeError,
        NotFiniteError as NotFiniteError,
        PluginError as PluginError,
        RecipeError as RecipeError,
        StageError as StageError,
    )
    from alignkit.run.kept import open_run as open_run
    from alignkit.run.runner import run_recipe as run_recipe

_FROM = {
    "alignkit.compare.comparison": "compare_recipe",
    "alignkit.contract.constraint": "Constraint",
    "alignkit.contract.events": (
        "Doing Estimated Event Metrics Result Rows Sample StageFailed StageFinished StageStarted Stopping Warned"
    ),
    "alignkit.contract.advice": "Advice",
    "alignkit.contract.hookspecs": "hookimpl",
    "alignkit.contract.judges": "JudgeClient JudgeFunction JudgeScheme Question Verdict judge judge_scheme",
    "alignkit.contract.kinds": (
        "Artifact Demonstrations FunctionReward Judge JudgeReward Policy Preferences Prompts Ratings Records "
        "Reward RewardModel Scores Text"
    ),
    "alignkit.contract.method": "Method method",
    "alignkit.contract.needs": (
        "EvaluationNeeds Needs PackedNeeds PairNeeds RowNeeds SamplingNeeds TrainerNeeds group_needs "
        "packed_needs pair_needs sampling_needs trainer_needs"
    ),
    "alignkit.contract.paper": "Paper",
    "alignkit.contract.reward_function": "Answer HeadedScore RewardFunction Score reward",
    "alignkit.contract.row_settings": "DemonstrationSettings RowSettings ScoreSettings TrainingSettings",
    "alignkit.contract.sampling_settings": (
        "Drawing Generation GroupSettings KL RewardShape SamplingSettings UpdateSettings"
    ),
    "alignkit.contract.settings": "InputNames LoRA Optimisation Precision Settings SnapshotSettings",
    "alignkit.contract.stage": "Stage",
    "alignkit.contract.tracker": "TrackedRun Tracker TrackerFunction tracker",
    "alignkit.data.formats": "Columns",
    "alignkit.errors": "AlignkitError DataError JudgeError NotFiniteError PluginError RecipeError StageError",
    "alignkit.run.kept": "open_run",
    "alignkit.run.runner": "run_recipe",
}
"""Modules, and the public names that are found there."""
_HOMES = {name: home for home, names in _FROM.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes a tenth of a second

        return version("alignkit")
    if name not in _HOMES:
        raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
