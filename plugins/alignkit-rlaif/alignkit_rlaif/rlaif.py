"""RLAIF: preferences by a judge among a policy's own answers.

Reinforcement learning from AI feedback (Lee et al. 2023, arXiv 2309.00267) is RLHF with labels that a model gives.
This method makes the labels: a policy answers each prompt several times, and a judge says of pairs of answers which
is better. What follows takes them as it takes people's: a reward model and PPO, or DPO.

1. Each pair is judged in both orders, and the mean counts, as in the paper (section 2.1.1).
2. The soft label stays with the row as `p_chosen`.
3. `self-rlaif` is the same with the policy as its own judge (Yuan et al. 2024, arXiv 2401.10020).
4. Left out: the rationale before the verdict. A judge that thinks before it answers does so by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Literal

from pydantic import Field

from alignkit import Advice, Answer, Judge, JudgeClient, Paper, Policy, Preferences, Prompts, Stage, Text, method
from alignkit_rlaif.constitution import principles_of
from alignkit_rlaif.labels import AnswerPair, Judging, JudgingSettings, drawn, fitting, label, room_of
from alignkit_rlaif.local import PolicyJudgeSettings, open_policy
from alignkit_rlaif.telling import RESULTS


class RLAIFSettings(JudgingSettings):
    """Settings of `rlaif`."""

    answers: int = Field(default=4, ge=2)
    """Answers to each prompt."""
    pairs: Literal["disjoint", "all"] = "disjoint"
    """Which of them are compared: each answer once, or all with all, which is 6 pairs of 4 answers instead of 2."""


@method(
    "rlaif",
    advice=Advice(
        "there are prompts and a judge, and no pairs",
        "a judge's taste becomes the policy's: length, position and its own style; check it against people's votes",
    ),
    results=RESULTS,
    papers=(
        Paper(
            "rlaif",
            "RLAIF vs. RLHF: Scaling Reinforcement Learning from Human Feedback with AI Feedback",
            "arXiv 2309.00267",
            differs="no rationale is asked for before the verdict",
        ),
        Paper(
            "constitutional-ai",
            "Constitutional AI: Harmlessness from AI Feedback",
            "arXiv 2212.08073",
            differs="its second half: pairs by a judge and a `constitution`; `critique` and `revise` are the first",
        ),
    ),
)
def rlaif(
    settings: RLAIFSettings,
    stage: Stage,
    *,
    policy: Policy,
    prompts: Prompts,
    judge: Judge,
    constitution: Text | None = None,
) -> Preferences:
    """Have a judge prefer among a policy's own answers, asked in both orders."""
    return preferences(settings, stage, policy, prompts, lambda: stage.open_judge(judge), constitution)


@method(
    "self-rlaif",
    advice=Advice(
        "there are prompts alone, and the policy is large enough to judge",
        "the policy confirms itself, so its mistakes grow from round to round",
    ),
    results=RESULTS,
    papers=(
        Paper(
            "self-rewarding",
            "Self-Rewarding Language Models",
            "arXiv 2401.10020",
            differs="one round, and the policy compares two answers, where the paper's rates each by itself",
        ),
    ),
)
def self_rlaif(
    settings: RLAIFSettings,
    stage: Stage,
    *,
    policy: Policy,
    prompts: Prompts,
    critic: Policy | None = None,
    constitution: Text | None = None,
) -> Preferences:
    """Have a policy prefer among its own answers, or the critic, which is another policy of the recipe."""

    def opened() -> JudgeClient:
        return open_policy(critic or policy, PolicyJudgeSettings(precision=settings.precision))

    return preferences(settings, stage, policy, prompts, opened, constitution)


def preferences(
    settings: RLAIFSettings,
    stage: Stage,
    policy: Policy,
    prompts: Prompts,
    opened: Callable[[], JudgeClient],
    constitution: Text | None,
) -> Preferences:
    """Sample answers, and have pairs of them judged."""
    from alignkit.kit import load_policy, parallel, sample_answers

    if stage.rank:  # one process asks for all
        return stage.save_rows(Preferences, ())
    with parallel.alone():
        judge, principles = opened(), principles_of(constitution)
        model, tokenizer = load_policy(policy, precision=settings.precision, trainable=False)
    asked = fitting(prompts, room_of(model, settings), tokenizer, stage)

    def make(rows: Sequence[Mapping[str, Any]], seed: int) -> list[list[AnswerPair]]:
        answered = sample_answers(
            model,
            tokenizer,
            rows,
            answers=settings.answers,
            max_new_tokens=settings.max_new_tokens,
            seed=seed,
            temperature=settings.temperature,
            max_length=settings.max_length,
        )
        random = Random(seed)  # noqa: S311  # draws principles, guards no secret
        return [
            [AnswerPair(*two, drawn(principles, settings.principles, random)) for two in paired(answers, settings)]
            for answers in answered
        ]

    with parallel.alone():
        return label(stage, asked, make, Judging(judge, settings, keep=lambda one: True))


def paired(answers: list[Answer], settings: RLAIFSettings) -> list[tuple[Answer, Answer]]:
    """Pair the answers to one prompt; with `disjoint` an odd one is left over."""
    if settings.pairs == "disjoint":
        return list(zip(answers[::2], answers[1::2], strict=False))
    return [(one, other) for place, one in enumerate(answers) for other in answers[place + 1 :]]
