"""SFT: teach a policy to answer, by good answers.

Maximises the likelihood of the answers' tokens, given their prompts; prompts themselves are not learnt. Strings are
joined as they stand, chats are rendered by the model's template, and an answer ends with the token that ends it, so
that the policy learns to stop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Demonstrations, Policy
from alignkit.contract.method import Method, method
from alignkit.contract.needs import PackedNeeds, packed_needs
from alignkit.contract.row_settings import TrainingSettings
from alignkit.contract.stage import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit.training.answers import Model


class SFTSettings(TrainingSettings):
    """Settings of `sft`; its rows are demonstrations."""

    epochs: PositiveFloat = 2.0
    """How often each demonstration is learnt from."""
    learn: Literal["all", "last"] = "all"
    """Of a chat: learn all that the assistant says, or its last turn alone."""
    max_length: PositiveInt | None = None
    """Longest demonstration in tokens; a longer one loses its end. Unset: what the model reads, at most 1024."""
    max_lost: float = Field(default=0.05, ge=0, le=1)
    """Share of the demonstrations that may be cut or left out for their length; more stops the stage."""
    measured: PositiveInt = 200
    """Held-out demonstrations, at most, on which the perplexity of answers is measured."""
    samples: NonNegativeInt = 4
    """Answers to held-out prompts that are shown beside the demonstrated ones."""


def needs(settings: SFTSettings) -> PackedNeeds:
    """Return what the loop will do with demonstrations."""
    return replace(packed_needs(settings), max_lost=settings.max_lost, learn=settings.learn, shown=settings.samples)


@method("sft", needs=needs, results=("perplexity",))
def sft(settings: SFTSettings, stage: Stage, *, policy: Policy, demos: Demonstrations) -> Policy:
    """Teach a policy to answer by demonstrations."""
    from alignkit.training.configs import positions
    from alignkit.training.encoded import encode_once
    from alignkit.training.encoding import demonstrations, encode_demonstrations, fitting_length, report
    from alignkit.training.lengths import answer_limit, learnt_runs, sample_of
    from alignkit.training.likelihood import train_language_model
    from alignkit.training.measures import perplexity, tell_perplexity
    from alignkit.training.models import load_policy

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    limit = fitting_length(positions(model), settings.max_length)
    train = encode_once(
        stage,
        demos,
        tokenizer,
        lambda: encode_demonstrations(demos.train(), tokenizer, limit, settings.learn),
        *(limit, settings.learn),
    )
    report(stage, "demonstrations", train.lengths, settings.max_lost)
    aside = list(islice(demos.held_out(), settings.measured))
    held_out, _ = demonstrations(aside, tokenizer, limit, settings.learn)

    before = perplexity(model, held_out, tokenizer, settings.precision) if held_out else None
    train_language_model(model, train, stage, settings)
    model.generation_config.max_new_tokens = answer_limit([max(learnt_runs([row])) for row in sample_of(train)])
    made = stage.save_policy(model, tokenizer)
    if held_out:
        tell_perplexity(stage, before, perplexity(model, held_out, tokenizer, settings.precision), len(held_out))
        show(stage, model, tokenizer, aside[: settings.samples], limit)
    else:
        stage.warn("no demonstrations are held out, so nothing is measured", "raise the source's held_out")
    return made


def show(
    stage: Stage, model: "Model", tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Mapping[str, Any]], limit: int
) -> None:
    """Let the policy answer a few held-out prompts, beside what was demonstrated."""
    from alignkit.training.configs import taught_length
    from alignkit.training.encoding import at_same_place, parted, prompts, shown
    from alignkit.training.lengths import UNSET_ANSWER
    from alignkit.training.rollouts import generator_for, sample_answers
    from alignkit.training.tokenizers import stop_tokens

    new = min(taught_length(model) or UNSET_ANSWER, limit // 2)
    parts = [(row, *parted(row)) for row in rows]
    asked = [
        at_same_place(row, {"prompt": prompt, "reference": shown(answer), "tools": row.get("tools")})
        for row, prompt, answer in parts
        if prompt
    ]
    fitting, _ = prompts(asked, tokenizer, limit - new)
    if not fitting:
        return
    answers, _, ended = sample_answers(
        model,
        [prompt.ids for prompt in fitting],
        max_new_tokens=new,
        stop=stop_tokens(model, tokenizer),
        generator=generator_for(stage.seed, "samples"),
    )
    for prompt, answer in zip(fitting, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True):
        stage.sample({"prompt": prompt.text, "answer": answer, "reference": prompt.row["reference"]})
    if not any(ended):
        problem = f"none of {len(ended)} answers that are shown ends by itself within {new} tokens"
        stage.warn(problem, "train for more epochs; `alignkit check` shows which token is learnt as an answer's end")


@hookimpl
def alignkit_methods() -> list[Method]:
    """Offer `sft`."""
    return [sft]
