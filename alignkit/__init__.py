"""alignkit aligns language models from one recipe, with methods as plugins.

The names below are the public interface, and light: none of them imports torch. What methods are built of is in
`alignkit.kit`, which does.
"""

from importlib import import_module
from importlib.metadata import version
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
from alignkit.contract.rewards import Answer, RewardFunction, Score, reward
from alignkit.contract.row_settings import RowSettings
from alignkit.contract.settings import LoRA, Optimisation, Precision, Settings
from alignkit.contract.stage import Stage
from alignkit.data.formats import Columns
from alignkit.errors import AlignkitError, DataError, JudgeError, NotFiniteError, PluginError, RecipeError, StageError

if TYPE_CHECKING:
    from alignkit.compare.comparison import compare_recipe
    from alignkit.run.runner import run_recipe

__version__ = version("alignkit")

_LATER = {"compare_recipe": "alignkit.compare.comparison", "run_recipe": "alignkit.run.runner"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")


__all__ = [
    "AlignkitError",
    "Answer",
    "Artifact",
    "Columns",
    "DataError",
    "Demonstrations",
    "Event",
    "FunctionReward",
    "Judge",
    "JudgeClient",
    "JudgeError",
    "JudgeFunction",
    "JudgeReward",
    "JudgeScheme",
    "LoRA",
    "Method",
    "Metrics",
    "NotFiniteError",
    "Optimisation",
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
    "RowSettings",
    "Sample",
    "Score",
    "Scores",
    "Settings",
    "Stage",
    "StageError",
    "StageFailed",
    "StageFinished",
    "StageStarted",
    "Text",
    "Verdict",
    "Warned",
    "compare_recipe",
    "hookimpl",
    "judge",
    "judge_scheme",
    "method",
    "reward",
    "run_recipe",
]
