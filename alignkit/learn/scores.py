"""Scores of answers: a text classifier's, trained here or anybody's, or those of a plugin's function."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.contract.judges import RULE, OpenJudge, by_comparing, by_rating
from alignkit.contract.kinds import FunctionReward, Judge, JudgeReward, Reward, RewardModel
from alignkit.contract.plugins import Plugins, load_plugins
from alignkit.contract.rewards import Answer, Score
from alignkit.contract.settings import Precision
from alignkit.errors import DataError, JudgeError, RecipeError, near_miss
from alignkit.learn.data import answered, prompt_ids, prompt_text, text_ids, turn_ends
from alignkit.learn.models import computing, evaluating, load_reward_model, padded, positions

TOKENS_IN_A_PASS = 2**14
FILE_PLUGIN = "alignkit_file_"
"""What the name of a module begins with that was loaded from a file given with -p."""


def open_reward(reward: Reward, *, precision: Precision = "auto", cache: Path | None = None) -> Score:
    """Open whatever scores answers as one function from answers to scores.

    A model reads prompt and answer with its own tokenizer, so its policy may have another; a chat is rendered by its
    own template. Its scores are normalised where their mean and spread were measured, and not yet weighted. A judge
    keeps what it was told in the `cache`. Raises RecipeError where the label does not fit, no plugin offers the
    function, or the judge rates nothing.
    """
    if isinstance(reward, FunctionReward):
        return _function(reward)
    if isinstance(reward, RewardModel):
        return _classifier(reward, precision)
    if isinstance(reward, JudgeReward):
        return _ratings(reward, cache)
    raise RecipeError(f"a {type(reward).__name__} cannot score answers", f"source {reward.name!r}")


def _function(reward: FunctionReward) -> Score:
    return _named_function(load_plugins(_loaded_files()), reward.function, reward.settings, f"sources.{reward.name}")


def _named_function(plugins: Plugins, name: str, given: Mapping[str, Any], where: str) -> Score:
    if name not in plugins.rewards:
        raise plugins.lacks("reward", name, list(plugins.rewards), where=where)
    function = plugins.rewards[name]
    settings = function.settings.model_validate(dict(given))
    return lambda answers: function(answers, settings)


def open_judge(judge: Judge, *, cache: Path | None = None) -> OpenJudge:
    """Open whatever compares answers, so that it can be asked.

    What was paid for is kept in the `cache`, a folder that outlives the stage, and not asked again. Raises RecipeError
    where no plugin offers the judge, or what it needs of its surroundings is missing, such as a key.
    """
    plugins, where = load_plugins(_loaded_files()), f"sources.{judge.name}"
    if judge.scheme != RULE:
        if judge.scheme not in plugins.schemes:
            raise plugins.lacks("judge scheme", judge.scheme, [RULE, *plugins.schemes], where=where)
        scheme = plugins.schemes[judge.scheme]
        return scheme.open(judge, scheme.settings.model_validate(dict(judge.options)), cache)
    given = judge.options.get("settings", {})
    if judge.rest not in plugins.judges:
        return by_rating(_named_function(plugins, judge.rest, given, where), judge.name)
    rule = plugins.judges[judge.rest]
    settings = rule.settings.model_validate(dict(given))
    return by_comparing(lambda questions: rule(questions, settings), judge.name)


def _ratings(reward: JudgeReward, cache: Path | None) -> Score:
    """Open a judge as a reward; an answer without a valid rating gets the mean of those asked with it."""
    rate = open_judge(reward.judge, cache=cache).rate
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


def _loaded_files() -> list[Path]:
    """Give the plugin files that this process runs with."""
    modules = [module for name, module in sys.modules.items() if name.startswith(FILE_PLUGIN)]
    return [Path(module.__file__) for module in modules if module.__file__]


def _classifier(reward: RewardModel, precision: Precision) -> Score:
    model, tokenizer, mean, std = load_reward_model(reward, precision=precision)
    place = _place_of(reward, model)

    def score(answers: Sequence[Answer]) -> list[float]:
        with computing(precision):
            raw = score_tokens(model, [as_read(answer, tokenizer) for answer in answers], tokenizer, place)
        return [(value - mean) / std for value in raw]

    return score


def _place_of(reward: RewardModel, model: PreTrainedModel) -> int:
    """Give the place of the class whose logit is the score."""
    config: Any = model.config
    names = [str(config.id2label[place]) for place in range(config.num_labels)]
    where = f"sources.{reward.name}.label"
    if reward.label is None:
        if len(names) == 1:
            return 0
        remedy = f'name the one to be raised, such as label = "{names[-1]}"'
        raise RecipeError(f"the classifier has several classes ({', '.join(names)})", where, remedy)
    if reward.label not in names:
        remedy = near_miss(reward.label, names) or f"it has {', '.join(names)}"
        raise RecipeError(f"the classifier has no class {reward.label!r}", where, remedy)
    return names.index(reward.label)


def as_read(answer: Answer, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encode an answer as the model was taught to read it; one that was cut has no end-of-sequence token.

    A chat is rendered by the model's own template, with its tools. An answer that the template would render otherwise
    than it stands, such as one without the thought that the template opens, is read as it was given.
    """
    asked, tools = answer.row.get("prompt", answer.prompt), answer.row.get("tools")
    prompt = answer.prompt if isinstance(asked, str) or tokenizer.chat_template is None else asked
    ends = answer.finished and tokenizer.eos_token_id is not None
    if ends:
        with suppress(DataError):
            return answered(prompt, answer.text, tokenizer, tools).ids
    if isinstance(prompt, str):
        return prompt_ids(tokenizer, prompt + answer.text)
    found = text_ids(tokenizer, prompt_text(tokenizer, prompt, tools) + answer.text)
    return [*found, next(iter(turn_ends(tokenizer)), tokenizer.eos_token_id)] if ends else found


def score_tokens(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    place: int = 0,
) -> list[float]:
    """Give one logit of each row of tokens, in their order; a row longer than the model reads loses its beginning."""
    rows = [row[-(positions(model) or len(row)) :] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = [0.0] * len(rows)
    start = 0
    with evaluating(model):
        while start < len(order):
            group = _group(rows, order, start)
            ids, mask = padded([rows[i] for i in group], tokenizer.pad_token_id, model.device)
            logits = model(input_ids=ids, attention_mask=mask).logits[:, place].float()
            for i, value in zip(group, logits.tolist(), strict=True):
                scores[i] = value
            start += len(group)
    return scores


def _group(rows: Sequence[Sequence[int]], order: Sequence[int], start: int) -> list[int]:
    """Take the next rows, in the order of their length, that fit in one pass."""
    end = start + 1
    while end < len(order) and len(rows[order[end]]) * (end + 1 - start) <= TOKENS_IN_A_PASS:
        end += 1
    return list(order[start:end])
