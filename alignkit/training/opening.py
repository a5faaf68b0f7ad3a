"""Scores of answers: a text classifier's, trained here or anybody's, or those of a plugin's function."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit.contract.judges import RULE, JudgeClient, by_comparing, by_rating
from alignkit.contract.kinds import FunctionReward, Judge, JudgeReward, Reward, RewardModel
from alignkit.contract.one_each import one_number_each
from alignkit.contract.reward_function import Answer, HeadedScore, Score
from alignkit.contract.settings import Precision
from alignkit.errors import JudgeError, RecipeError
from alignkit.plugins import Plugins
from alignkit.training.arithmetic import computing
from alignkit.training.classifiers import Reader, Warn
from alignkit.training.heads import places_of_score
from alignkit.training.models import load_reward_model
from alignkit.training.weight_files import ScoreScale, scale_of

Logits = Callable[[Sequence[Answer]], list[list[float]]]
"""Gives all logits of each answer."""


def open_reward(
    reward: Reward,
    plugins: Plugins,
    *,
    precision: Precision = "auto",
    cache: Path | None = None,
    warn: Warn | None = None,
) -> Score:
    """Return one function from answers to scores, as `Stage.open_reward` says.

    `warn` hears, once, of answers that the model cannot read whole. A judge keeps what it was told in the `cache`.
    """
    if isinstance(reward, FunctionReward):
        return _named_function(plugins, reward.function, reward.settings, f"sources.{reward.name}")
    if isinstance(reward, RewardModel):
        return _classifier(reward, precision, warn)
    if isinstance(reward, JudgeReward):
        return _ratings(reward, plugins, cache)
    score, name = reward.open(cache), f"the reward {type(reward).__name__}"
    return lambda answers: one_number_each(score(answers), len(answers), name, f"sources.{reward.name}")


def _named_function(plugins: Plugins, name: str, given: Mapping[str, Any], where: str) -> Score:
    if (function := plugins.reward(name)) is None:
        raise plugins.lacks("reward", name, list(plugins.rewards), where=where)
    settings = function.settings.model_validate(dict(given))
    return lambda answers: function(answers, settings)


def open_judge(judge: Judge, plugins: Plugins, *, cache: Path | None = None) -> JudgeClient:
    """Return what compares answers, ready to be asked, as `Stage.open_judge` says."""
    where = f"sources.{judge.name}"
    if judge.scheme != RULE:
        if judge.scheme not in plugins.schemes:
            raise plugins.lacks("judge scheme", judge.scheme, [RULE, *plugins.schemes], where=where)
        scheme = plugins.schemes[judge.scheme]
        return scheme.open(judge, scheme.settings.model_validate(dict(judge.options)), cache)
    given = judge.options.get("settings", {})
    if (rule := plugins.judge(judge.rest)) is None:
        return by_rating(_named_function(plugins, judge.rest, given, where), judge.name)
    settings = rule.settings.model_validate(dict(given))
    return by_comparing(lambda questions: rule(questions, settings), judge.name)


def _ratings(reward: JudgeReward, plugins: Plugins, cache: Path | None) -> Score:
    """Open a judge as a reward; an answer without a valid rating gets the mean of those asked with it."""
    rate = open_judge(reward.judge, plugins, cache=cache).rate
    if rate is None:
        problem = f"the judge {reward.judge.address!r} compares, and rates nothing"
        raise RecipeError(problem, f"sources.{reward.name}", "take one that rates, or make preferences with it")

    def score(answers: Sequence[Answer]) -> list[float]:
        rated = rate(answers, "")
        valid = [value for value in rated if value is not None]
        if answers and not valid:
            problem = f"none of {len(answers)} answers got a valid rating"
            raise JudgeError(problem, f"sources.{reward.name}", "take a judge that can follow its instructions")
        return [fmean(valid) if value is None else value for value in rated]

    return score


def _classifier(reward: RewardModel, precision: Precision, warn: Warn | None) -> Score:
    model, tokenizer, _, _ = load_reward_model(reward, precision=precision)
    config: Any = model.config
    places, reader = (
        places_of_score(reward, config, int(config.num_labels)),
        Reader(reward.name, model, tokenizer, warn),
    )

    def logits(answers: Sequence[Answer]) -> list[list[float]]:
        with computing(precision):
            return reader.logits(answers)

    return normalised(logits, places, scale_of(reward.path))


def normalised(logits: Logits, places: Sequence[int], scale: ScoreScale) -> Score:
    """Return scores of the logits at these places, the heads of a reward model, or of the only one."""

    def heads(answers: Sequence[Answer]) -> list[list[float]]:
        return [scale.of_heads([row[place] for place in places]) for row in logits(answers)]

    return HeadedScore(heads, len(places)) if len(places) > 1 else lambda answers: [one for (one,) in heads(answers)]
