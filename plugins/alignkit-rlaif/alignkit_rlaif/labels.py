"""Labels of pairs by a judge that is asked in both orders.

The chance that the first of two answers is the better one is the mean of what the judge says in both orders, so that
one that always prefers the first place has no opinion. Pairs without an opinion, and those that the judge has no valid
reply to, are dropped and counted, never guessed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from alignkit import (
    Answer,
    DataError,
    JudgeClient,
    Precision,
    Preferences,
    Prompts,
    Question,
    Settings,
    Stage,
    Verdict,
)
from alignkit_rlaif.telling import so_far, tell

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AT_MOST = 1024
"""Tokens of a prompt with its answer where nothing else is said, as in all methods of alignkit."""


class JudgingSettings(Settings):
    """What is equal in all methods that have answers judged."""

    max_new_tokens: PositiveInt = 64
    """Answers are cut after so many tokens; pairs with one that was cut are left out."""
    temperature: PositiveFloat = 1.0
    """Divides the logits in sampling."""
    batch: PositiveInt = 64
    """Prompts that are answered and judged at a time; after each batch the stage can be resumed."""
    principles: PositiveInt = 1
    """By how many principles each pair is judged, drawn at random; the mean counts."""
    tie: float = Field(default=0.05, ge=0, lt=0.5)
    """A pair is a tie, and dropped, where the judge's mean over both orders is no further than this from one half."""
    min_mass: float = Field(default=0.01, ge=0, le=1)
    """A reply is invalid where the judge gave less probability than this to its options."""
    precision: Precision = "auto"
    """Arithmetic of sampling."""
    max_length: PositiveInt | None = None
    """Longest prompt with answer in tokens. Unset: what the model reads, at most 1024."""
    samples: NonNegativeInt = 4
    """Pairs that are shown."""


class AnswerPair(NamedTuple):
    """Two answers to one prompt, of which the better one is wanted."""

    one: Answer
    other: Answer
    principles: tuple[str, ...] = ("",)


class Opinion(NamedTuple):
    """What a judge says of a pair over both orders."""

    one: float
    """How likely it is that the one answer is better than the other."""
    bias: float
    """What it gives to the first place: 0 is none, 1 all."""
    consistent: bool
    """Both orders have the same winner."""
    mass: float
    """Probability on valid replies."""


class Prompted(NamedTuple):
    """A prompt's row and its side."""

    row: Mapping[str, Any]
    held_out: bool


Pairs = Callable[[Sequence[Mapping[str, Any]], int], list[list[AnswerPair]]]
"""Makes the pairs of some prompts' rows, each prompt's in a list, from a seed."""
Keep = Callable[[float], bool]
"""Says whether a pair is kept whose one answer is better than the other with this chance."""


def fitting(prompts: Prompts, room: int, tokenizer: PreTrainedTokenizerBase, stage: Stage) -> list[Prompted]:
    """Return the prompts that leave room for an answer, each with its side, which is that of the pairs made from it.

    The others are counted and told, and so are those that the chat template refuses where their source leaves bad rows
    out. Raises DataError where none is left.
    """
    from alignkit.kit import fitting_prompts

    sides = [fitting_prompts(rows, tokenizer, room) for rows in (prompts.train(), prompts.held_out())]
    kept = [Prompted(row, held_out) for held_out, side in zip((False, True), sides, strict=True) for row in side.rows]
    lost, refused = sum(side.lost for side in sides), sum(side.refused for side in sides)
    problem = f"{lost} of {lost + len(kept)} prompts are left out: they leave no room for an answer"
    if not kept:
        raise DataError(problem, remedy="raise max_length, or lower max_new_tokens")
    if stage.latest() is not None:  # it was told before the stage was interrupted
        return kept
    if lost:
        stage.warn(problem, "raise max_length if they matter")
    if refused:
        stage.warn(f"{refused} prompts are left out: the chat template refuses them", "`alignkit check` says why")
    return kept


def room_of(model: PreTrainedModel | PeftModel, settings: JudgingSettings) -> int:
    """Return how many tokens a prompt may have, so that an answer still fits."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or AT_MOST
    return (settings.max_length or min(longest, AT_MOST)) - settings.max_new_tokens


def length_of(prompt: str | Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the tokens of what a policy is asked, a chat with the opening of its answer."""
    from alignkit.kit import prompt_ids

    return len(prompt_ids(tokenizer, prompt))


def drawn(principles: Sequence[str], count: int, random: Random) -> tuple[str, ...]:
    """Draw different principles, as many as there are at most."""
    return tuple(random.sample(list(principles), min(count, len(principles)))) or ("",)


def opinions(judge: JudgeClient, pairs: Sequence[AnswerPair], min_mass: float) -> list[Opinion | None]:
    """Ask of each pair in both orders, by each of its principles; None where no principle got two valid replies."""
    asked = [(pair, principle) for pair in pairs for principle in pair.principles]
    questions = [
        question
        for pair, principle in asked
        for question in (Question(pair.one, pair.other, principle), Question(pair.other, pair.one, principle))
    ]
    verdicts = judge.compare(questions) if questions else []
    single = [_both(*two, min_mass) for two in zip(verdicts[::2], verdicts[1::2], strict=True)]
    found, start = list[Opinion | None](), 0
    for pair in pairs:
        found.append(_mean([one for one in single[start : start + len(pair.principles)] if one]))
        start += len(pair.principles)
    return found


def _both(forth: Verdict, back: Verdict, min_mass: float) -> Opinion | None:
    mass = min(forth.mass, back.mass)
    if forth.first is None or back.first is None or mass < min_mass:
        return None
    consistent = (forth.first > 0.5) == (back.first < 0.5) and 0.5 not in (forth.first, back.first)
    return Opinion((forth.first + 1 - back.first) / 2, forth.first + back.first - 1, consistent, mass)


def _mean(several: Sequence[Opinion]) -> Opinion | None:
    if not several:
        return None
    one, bias, consistent, mass = zip(*several, strict=True)
    return Opinion(fmean(one), fmean(bias), all(consistent), fmean(mass))


class LabelState(NamedTuple):
    """What a stage has made so far."""

    done: int
    """Prompts."""
    rows: list[dict[str, Any]]
    tally: Counter[str]
    """Counts, and sums over pairs that the judge has an opinion of."""


class Judging(NamedTuple):
    """Who judges pairs, how, and which of them are kept."""

    judge: JudgeClient
    settings: JudgingSettings
    keep: Keep


def label(stage: Stage, prompts: Sequence[Prompted], make: Pairs, judging: Judging) -> Preferences:
    """Make pairs of all prompts, batch by batch, have them judged, and save those that are kept.

    Goes on from the stage's newest checkpoint. Raises StageError where no pair is left.
    """
    judge, settings, _ = judging
    state = _resumed(stage)
    while state.done < len(prompts):
        batch = prompts[state.done : state.done + settings.batch]
        made = make([one.row for one in batch], (stage.seed << 24) + state.done)
        tally, rows = Counter(state.tally), list(state.rows)
        for one, two, pair in _judged(batch, made, judging, tally):
            rows.append(_row(one, two, pair))
        state = LabelState(state.done + len(batch), rows, tally)
        stage.log(state.done, len(prompts), {**so_far(tally), **judge.results()})
        if state.done < len(prompts):
            _keep(stage, state)
            if stage.stopping:
                stage.leave()
    for name, cost in judge.results().items():
        stage.result(name, None, cost)
    tell(stage, state.tally, state.rows, settings.samples)
    return stage.save_rows(Preferences, state.rows)


def _judged(
    batch: Sequence[Prompted], made: Sequence[Sequence[AnswerPair]], judging: Judging, tally: Counter[str]
) -> list[tuple[Prompted, Opinion, AnswerPair]]:
    """Have pairs judged, count what becomes of them, and give those that are kept."""
    judge, settings, keep = judging
    whole = [(prompt, pair) for prompt, pairs in zip(batch, made, strict=True) for pair in pairs if _fit(pair, tally)]
    kept = list[tuple[Prompted, Opinion, AnswerPair]]()
    for (prompt, pair), opinion in zip(
        whole, opinions(judge, [pair for _, pair in whole], settings.min_mass), strict=True
    ):
        if opinion is None:
            tally["invalid"] += 1
            continue
        tally.update(_sums(pair, opinion))
        fate = "ties" if abs(opinion.one - 0.5) <= settings.tie else "kept" if keep(opinion.one) else "worse"
        tally[fate] += 1
        if fate == "kept":
            kept.append((prompt, opinion, pair))
    return kept


def _fit(pair: AnswerPair, tally: Counter[str]) -> bool:
    """Count a pair, and say whether there is anything to judge: neither answer was cut, and they are not the same."""
    fate = "cut" if not (pair.one.finished and pair.other.finished) else "equal" if _same(pair) else "judged"
    tally["pairs"] += 1
    tally[fate] += 1
    return fate == "judged"


def _same(pair: AnswerPair) -> bool:
    return pair.one.text.strip() == pair.other.text.strip()


def _sums(pair: AnswerPair, opinion: Opinion) -> Counter[str]:
    longer = len(pair.one.text) - len(pair.other.text)
    sums: Any = {"bias": opinion.bias, "consistent": opinion.consistent, "mass": opinion.mass, "valid": 1}
    if opinion.one != 0.5 and longer:
        sums |= {"uneven": 1, "longer": (longer > 0) == (opinion.one > 0.5)}
    return Counter(sums)


def _row(prompt: Prompted, opinion: Opinion, pair: AnswerPair) -> dict[str, Any]:
    asked = prompt.row["prompt"]
    better, worse = (pair.one, pair.other) if opinion.one > 0.5 else (pair.other, pair.one)
    return {
        "prompt": asked,
        "chosen": _as_asked(better, asked),
        "rejected": _as_asked(worse, asked),
        "p_chosen": max(opinion.one, 1 - opinion.one),
        "held_out": prompt.held_out,
        "principle": " ".join(pair.principles),
        "position_bias": opinion.bias,
    }


def _as_asked(answer: Answer, asked: Any) -> Any:
    """Return an answer in the form of its prompt: a string, or a chat's turn."""
    return answer.text if isinstance(asked, str) else [{"role": "assistant", "content": answer.text}]


def _keep(stage: Stage, state: LabelState) -> None:
    def write(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps(state._asdict()), "utf-8")

    stage.commit(state.done, write)


def _resumed(stage: Stage) -> LabelState:
    if (folder := stage.latest()) is None:
        return LabelState(0, [], Counter())
    kept = json.loads((folder / "state.json").read_text("utf-8"))
    return LabelState(kept["done"], kept["rows"], Counter(kept["tally"]))
