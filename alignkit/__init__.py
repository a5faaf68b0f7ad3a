"""alignkit aligns language models from one recipe, with methods as plugins.

The names below are the public interface; what needs torch is imported when it is first asked for.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from alignkit.contract.events import Event, Figure, Metrics, Sample, StageFinished, StageStarted, Warned
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.judges import JudgeFunction, JudgeScheme, OpenJudge, Question, Verdict, judge, judge_scheme
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
from alignkit.contract.row_settings import OfflineSettings
from alignkit.contract.settings import LoRA, Optimisation, Precision, Settings
from alignkit.contract.stage import Stage
from alignkit.errors import AlignkitError, DataError, JudgeError, NotFiniteError, PluginError, RecipeError, StageError

if TYPE_CHECKING:
    from alignkit.compare.comparison import compare_recipe
    from alignkit.run.runner import run_recipe
    from alignkit.training.answers import answer_logprobs, fitting_prompts, sample_answers
    from alignkit.training.encoding import prompt_ids, prompt_text
    from alignkit.training.measures import floor_of_pairs
    from alignkit.training.models import load_policy
    from alignkit.training.opening import open_judge, open_reward
    from alignkit.training.rows import (
        Judged,
        Pair,
        answer_sums,
        over_pairs,
        pair_logprobs,
        read_answers,
        read_pairs,
        train_pairs,
        train_rows,
    )
    from alignkit.training.trainers import run_trainer, trainer_options

__version__ = version("alignkit")

_LATER = {
    "Judged": "alignkit.training.rows",
    "Pair": "alignkit.training.rows",
    "answer_logprobs": "alignkit.training.answers",
    "answer_sums": "alignkit.training.rows",
    "compare_recipe": "alignkit.compare.comparison",
    "fitting_prompts": "alignkit.training.answers",
    "floor_of_pairs": "alignkit.training.measures",
    "load_policy": "alignkit.training.models",
    "open_judge": "alignkit.training.opening",
    "open_reward": "alignkit.training.opening",
    "over_pairs": "alignkit.training.rows",
    "pair_logprobs": "alignkit.training.rows",
    "prompt_ids": "alignkit.training.encoding",
    "prompt_text": "alignkit.training.encoding",
    "read_answers": "alignkit.training.rows",
    "read_pairs": "alignkit.training.rows",
    "run_recipe": "alignkit.run.runner",
    "run_trainer": "alignkit.training.trainers",
    "sample_answers": "alignkit.training.answers",
    "train_pairs": "alignkit.training.rows",
    "train_rows": "alignkit.training.rows",
    "trainer_options": "alignkit.training.trainers",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")


__all__ = [
    "AlignkitError",
    "Answer",
    "Artifact",
    "DataError",
    "Demonstrations",
    "Event",
    "Figure",
    "FunctionReward",
    "Judge",
    "JudgeError",
    "JudgeFunction",
    "JudgeReward",
    "JudgeScheme",
    "Judged",
    "LoRA",
    "Method",
    "Metrics",
    "NotFiniteError",
    "OfflineSettings",
    "OpenJudge",
    "Optimisation",
    "Pair",
    "PluginError",
    "Policy",
    "Precision",
    "Preferences",
    "Prompts",
    "Question",
    "Ratings",
    "RecipeError",
    "Records",
    "Reward",
    "RewardFunction",
    "RewardModel",
    "Sample",
    "Score",
    "Scores",
    "Settings",
    "Stage",
    "StageError",
    "StageFinished",
    "StageStarted",
    "Text",
    "Verdict",
    "Warned",
    "answer_logprobs",
    "answer_sums",
    "compare_recipe",
    "fitting_prompts",
    "floor_of_pairs",
    "hookimpl",
    "judge",
    "judge_scheme",
    "load_policy",
    "method",
    "open_judge",
    "open_reward",
    "over_pairs",
    "pair_logprobs",
    "prompt_ids",
    "prompt_text",
    "read_answers",
    "read_pairs",
    "reward",
    "run_recipe",
    "run_trainer",
    "sample_answers",
    "train_pairs",
    "train_rows",
    "trainer_options",
]
