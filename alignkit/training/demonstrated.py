"""Demonstrations that a policy is taught by, and what is told of a policy that was taught."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from alignkit.contract.kinds import Demonstrations, Policy
from alignkit.contract.row_settings import DemonstrationSettings
from alignkit.contract.stage import Stage
from alignkit.training.answers import Model
from alignkit.training.configs import positions, taught_length
from alignkit.training.encoded import encode_once
from alignkit.training.encoding import (
    LabelledTokens,
    at_same_place,
    demonstrations,
    encode_demonstrations,
    fitting_length,
    prompts,
    report,
)
from alignkit.training.lengths import UNSET_ANSWER, answer_limit, learnt_runs, sample_of
from alignkit.training.measures import Perplexity, perplexity, tell_perplexity
from alignkit.training.mixed_rows import flat, held_out_rows
from alignkit.training.rollouts import generator_for, sample_answers
from alignkit.training.row_texts import Row, parted, shown
from alignkit.training.tokenizers import stop_tokens


class DemonstrationRows(NamedTuple):
    """What is learnt from, and what is kept aside."""

    train: Sequence[LabelledTokens]
    held_out: list[LabelledTokens]
    shown: Sequence[Row]
    """Held-out rows whose prompts are answered at the end."""
    limit: int
    """Tokens of the longest row."""
    sources: Sequence[str] = ()
    """Of a mix, the source of each held-out row."""


def read_demonstrations(
    demos: Demonstrations,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    settings: DemonstrationSettings,
    stage: Stage,
) -> DemonstrationRows:
    """Encode demonstrations; one longer than `max_length` loses its end, which is counted and told.

    Raises DataError where that takes more than the share `max_lost`, or where no demonstration is left.
    """
    limit = fitting_length(positions(model), settings.max_length)
    train, lengths = encode_once(
        stage,
        demos,
        tokenizer,
        lambda some: encode_demonstrations(some.train(), tokenizer, limit, settings.learn),
        *(limit, settings.learn),
    )
    report(stage, "demonstrations", lengths, settings.max_lost)
    aside = held_out_rows(demos, settings.measured)
    encoded = {name: demonstrations(rows, tokenizer, limit, settings.learn)[0] for name, rows in aside.items()}
    shown = [row for several in zip_longest(*aside.values()) for row in several if row is not None]
    held_out, sources = flat(encoded)
    return DemonstrationRows(train, held_out, shown[: settings.samples], limit, sources)


def save_taught(model: Model, tokenizer: PreTrainedTokenizerBase, rows: DemonstrationRows, stage: Stage) -> Policy:
    """Save a policy that was taught, with the length of the answers that taught it: so long may its own be."""
    model.generation_config.max_new_tokens = answer_limit([max(learnt_runs([row])) for row in sample_of(rows.train)])
    return stage.save_policy(model, tokenizer)


def taught_perplexity(
    model: Model, tokenizer: PreTrainedTokenizerBase, rows: DemonstrationRows, settings: DemonstrationSettings
) -> Perplexity | None:
    """Measure the perplexity of held-out answers; None where there are none."""
    return perplexity(model, rows.held_out, tokenizer, settings.precision) if rows.held_out else None


def tell_taught(stage: Stage, before: Perplexity | None, after: Perplexity | None, rows: DemonstrationRows) -> None:
    """Report the perplexity of held-out answers."""
    if after is None:
        stage.warn("no demonstrations are held out, so nothing is measured", "raise the source's held_out")
        return
    tell_perplexity(stage, before, after, rows.sources)


def show_taught(model: Model, tokenizer: PreTrainedTokenizerBase, rows: DemonstrationRows, stage: Stage) -> None:
    """Let the policy answer a few held-out prompts, beside what was demonstrated."""
    new = min(taught_length(model) or UNSET_ANSWER, rows.limit // 2)
    fitting, _ = prompts(_asked(rows.shown), tokenizer, rows.limit - new)
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


def _asked(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """Return the prompts of demonstrations, with what was answered as text."""
    parts = [(row, *parted(row)) for row in rows]
    return [
        at_same_place(row, {"prompt": prompt, "reference": shown(answer), "tools": row.get("tools")})
        for row, prompt, answer in parts
        if prompt
    ]
