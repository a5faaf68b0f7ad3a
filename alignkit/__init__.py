"""alignkit aligns language models from one recipe, with methods as plugins.

The names below are the public interface, and light: none of them imports torch. What methods are built of is in
`alignkit.kit`, which does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alignkit.contract.events import Event, Metrics, Result, Sample, StageFailed, StageFinished, StageStarted, Warned
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.judges import JudgeClient, JudgeFunction, JudgeScheme, Question, Verdict, judge, judge_scheme
from alignkit.contract.kinds import (
    Artifact,
    Demonstrations,
    FunctionReward,
    Judge,
    JudgeReward,
    Policy,
    Preferences,
    Prompts,
    Ratings,
    Records,
    Reward,
    RewardModel,
    Scores,
    Text,
)
from alignkit.contract.method import Method, method
from alignkit.contract.needs import (
    EvaluationNeeds,
    Needs,
    PairNeeds,
    RowNeeds,
    SamplingNeeds,
    TrainerNeeds,
    group_needs,
    pair_needs,
    sampling_needs,
    trainer_needs,
)
from alignkit.contract.reward_function import Answer, RewardFunction, Score, reward
from alignkit.contract.row_settings import RowSettings, TrainingSettings
from alignkit.contract.sampling_settings import KL, Generation, GroupSettings, RewardShape, SamplingSettings
from alignkit.contract.settings import LoRA, Optimisation, Precision, Settings
from alignkit.contract.stage import Stage
from alignkit.data.formats import Columns
from alignkit.errors import AlignkitError, DataError, JudgeError, NotFiniteError, PluginError, RecipeError, StageError

if TYPE_CHECKING:
    from alignkit.compare.comparison import compare_recipe
    from alignkit.run.runner import run_recipe

_LATER = {"compare_recipe": "alignkit.compare.comparison", "run_recipe": "alignkit.run.runner"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes a tenth of a second, which importing alignkit should not

        return version("alignkit")
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")


__all__ = [
    "KL",
    "AlignkitError",
    "Answer",
    "Artifact",
    "Columns",
    "DataError",
    "Demonstrations",
    "EvaluationNeeds",
    "Event",
    "FunctionReward",
    "Generation",
    "GroupSettings",
    "Judge",
    "JudgeClient",
    "JudgeError",
    "JudgeFunction",
    "JudgeReward",
    "JudgeScheme",
    "LoRA",
    "Method",
    "Metrics",
    "Needs",
    "NotFiniteError",
    "Optimisation",
    "PairNeeds",
    "PluginError",
    "Policy",
    "Precision",
    "Preferences",
    "Prompts",
    "Question",
    "Ratings",
    "RecipeError",
    "Records",
    "Result",
    "Reward",
    "RewardFunction",
    "RewardModel",
    "RewardShape",
    "RowNeeds",
    "RowSettings",
    "Sample",
    "SamplingNeeds",
    "SamplingSettings",
    "Score",
    "Scores",
    "Settings",
    "Stage",
    "StageError",
    "StageFailed",
    "StageFinished",
    "StageStarted",
    "Text",
    "TrainerNeeds",
    "TrainingSettings",
    "Verdict",
    "Warned",
    "compare_recipe",
    "group_needs",
    "hookimpl",
    "judge",
    "judge_scheme",
    "method",
    "pair_needs",
    "reward",
    "run_recipe",
    "sampling_needs",
    "trainer_needs",
]
