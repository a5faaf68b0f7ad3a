"""Critique and revision: a reply, what is wrong with it by a principle, and the reply written anew.

The supervised half of Constitutional AI (Bai et al. 2022, arXiv 2212.08073, section 3). There the revision is learnt
from at once; here it becomes a pair, the revision over the first answer, where a judge agrees in both orders that it
is better. `revise` turns pairs into demonstrations, for the paper's way.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Literal

from pydantic import Field

from alignkit import (
    Advice,
    Answer,
    Demonstrations,
    Judge,
    Paper,
    Policy,
    Preferences,
    Prompts,
    RecipeError,
    Settings,
    Stage,
    StageError,
    Text,
    method,
)
from alignkit_rlaif.constitution import principles_of
from alignkit_rlaif.labels import AnswerPair, Judging, JudgingSettings, drawn, fitting, label, length_of, room_of
from alignkit_rlaif.telling import RESULTS
from alignkit_rlaif.wording import criticising, revising


class CritiqueSettings(JudgingSettings):
    """Settings of `critique`."""

    by: Literal["policy", "judge"] = "policy"
    """Who writes critique and revision: the policy itself, as in the paper, or the judge, where it can write."""


@method(
    "critique",
    advice=Advice(
        "there are principles that answers must keep, and a judge",
        "revisions get evasive or long; a judge must tell which of the two is better",
    ),
    results=RESULTS,
    papers=(
        Paper(
            "critique-revision",
            "Constitutional AI: Harmlessness from AI Feedback",
            "arXiv 2212.08073",
            differs="a revision is kept where a judge prefers it, as a pair; `revise` makes demonstrations of them",
        ),
    ),
)
def critique(
    settings: CritiqueSettings,
    stage: Stage,
    *,
    policy: Policy,
    prompts: Prompts,
    judge: Judge,
    constitution: Text | None = None,
) -> Preferences:
    """Criticise a policy's answers and write them anew; pairs where a judge prefers the new one are kept."""
    from alignkit.kit import load_policy, parallel, sample_answers

    if stage.rank:  # one process asks for all
        return stage.save_rows(Preferences, ())
    with parallel.alone():
        opened, principles = stage.open_judge(judge), principles_of(constitution)
        if settings.by == "judge" and opened.write is None:
            problem, where = f"the judge {judge.address!r} writes nothing", f"stage {stage.name!r}: critique.by"
            raise RecipeError(problem, where, 'set it to "policy", or take a judge that does')
        model, tokenizer = load_policy(policy, precision=settings.precision, trainable=False)
    room = room_of(model, settings)
    asked = fitting(prompts, room, tokenizer, stage)

    def sampled(rows: Sequence[Mapping[str, Any]], seed: int) -> list[Answer]:
        found = sample_answers(
            model,
            tokenizer,
            rows,
            max_new_tokens=settings.max_new_tokens,
            seed=seed,
            temperature=settings.temperature,
            max_length=settings.max_length,
        )
        return [one for (one,) in found]

    def written(chats: Sequence[list[dict[str, str]]], seed: int) -> list[tuple[str, bool]]:
        if settings.by == "judge" and opened.write is not None:
            return [(text, True) for text in opened.write(chats)]
        fits = [i for i, chat in enumerate(chats) if length_of(chat, tokenizer) <= room]
        texts = [("", False)] * len(chats)  # no room counts as cut
        for i, one in zip(fits, sampled([{"prompt": chats[i]} for i in fits], seed) if fits else [], strict=True):
            texts[i] = (one.text, one.finished)
        return texts

    def make(rows: Sequence[Mapping[str, Any]], seed: int) -> list[list[AnswerPair]]:
        random = Random(seed)  # noqa: S311  # draws principles, guards no secret
        first = sampled(rows, 3 * seed)
        by = [drawn(principles, settings.principles, random) for _ in first]
        critiques = written([criticising(one, " ".join(p)) for one, p in zip(first, by, strict=True)], 3 * seed + 1)
        turns = [revising(one, " ".join(p), text) for one, p, (text, _) in zip(first, by, critiques, strict=True)]
        revisions = written(turns, 3 * seed + 2)
        return [
            [AnswerPair(Answer(one.prompt, _like(text, one.text), finished, one.row), one, principles)]
            for one, (text, finished), principles in zip(first, revisions, by, strict=True)
        ]

    with parallel.alone():
        return label(stage, asked, make, Judging(opened, settings, keep=lambda revision: revision > 0.5))


def _like(text: str, answer: str) -> str:
    """Let a revision begin with the white space that the answer begins with."""
    return answer[: len(answer) - len(answer.lstrip())] + text.strip()


class ReviseSettings(Settings):
    """Settings of `revise`."""

    certain: float = Field(default=0.5, ge=0.5, le=1)
    """Leave out pairs whose `p_chosen` is lower."""


@method(
    "revise",
    advice=Advice(
        "pairs have chosen answers that are to be imitated by sft", "what the rejected answers taught is lost"
    ),
    results=("demonstrations",),
)
def revise(settings: ReviseSettings, stage: Stage, *, pairs: Preferences) -> Demonstrations:
    """Make demonstrations of the chosen answers, each once."""
    seen = set[str]()
    rows = list[dict[str, Any]]()
    given = [(row, held_out) for held_out in (False, True) for row in (pairs.held_out() if held_out else pairs.train())]
    for row, held_out in given:
        content = repr((row["prompt"], row["chosen"]))
        if row.get("p_chosen", 1.0) >= settings.certain and content not in seen:
            seen.add(content)
            rows.append({"prompt": row["prompt"], "completion": row["chosen"], "held_out": held_out})
    stage.result("demonstrations", float(len(given)), float(len(rows)))
    if not rows:
        raise StageError(f"no pair of {len(given)} is certain enough", remedy="lower revise.certain")
    return stage.save_rows(Demonstrations, rows)
