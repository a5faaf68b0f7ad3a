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
from alignkit.contract.offline import OfflineSettings
from alignkit.contract.rewards import Answer, RewardFunction, Score, reward
from alignkit.contract.settings import LoRA, Optimisation, Precision, Settings
from alignkit.contract.stage import Stage
from alignkit.errors import AlignkitError, DataError, JudgeError, NotFiniteError, PluginError, RecipeError, StageError

if TYPE_CHECKING:
    from alignkit.compare.compare import compare_recipe
    from alignkit.learn.answers import answer_logprobs, fitting_prompts, sample_answers
    from alignkit.learn.data import prompt_ids, prompt_text
    from alignkit.learn.measures import floor_of_pairs
    from alignkit.learn.models import load_policy
    from alignkit.learn.offline import (
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
    from alignkit.learn.scores import open_judge, open_reward
    from alignkit.learn.trainers import run_trainer, trainer_options
    from alignkit.run.runner import run_recipe

__version__ = version("alignkit")

_LATER = {
    "Judged": "alignkit.learn.offline",
    "Pair": "alignkit.learn.offline",
    "answer_logprobs": "alignkit.learn.answers",
    "answer_sums": "alignkit.learn.offline",
    "compare_recipe": "alignkit.compare.compare",
    "fitting_prompts": "alignkit.learn.answers",
    "floor_of_pairs": "alignkit.learn.measures",
    "load_policy": "alignkit.learn.models",
    "open_judge": "alignkit.learn.scores",
    "open_reward": "alignkit.learn.scores",
    "over_pairs": "alignkit.learn.offline",
    "pair_logprobs": "alignkit.learn.offline",
    "prompt_ids": "alignkit.learn.data",
    "prompt_text": "alignkit.learn.data",
    "read_answers": "alignkit.learn.offline",
    "read_pairs": "alignkit.learn.offline",
    "run_recipe": "alignkit.run.runner",
    "run_trainer": "alignkit.learn.trainers",
    "sample_answers": "alignkit.learn.answers",
    "train_pairs": "alignkit.learn.offline",
    "train_rows": "alignkit.learn.offline",
    "trainer_options": "alignkit.learn.trainers",
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
