"""Distil: a policy answers prompts, and learns at each token of its answers what a teacher would have said there.

Generalised knowledge distillation (Agarwal et al. 2023, arXiv 2306.13649): where a policy learns from given answers it
never sees what follows its own mistakes; here it does, and the teacher corrects every token, which is why so few
answers are enough. `beta` leads from KL(teacher || policy), which covers all that the teacher may say, to
KL(policy || teacher), which keeps to what it surely says; `on_policy` from given answers to the policy's own.

1. The share of own answers is the same in every update; the paper draws it anew.
2. No gradient flows through sampling, as in the paper. `policy-gradient` is the way that it could: a token's reward is
   what the teacher's log-probability has over the policy's, with those of later tokens discounted by `gamma`.
3. With `top_k` the tokens that the teacher holds likely are told apart, and all others are one: a lower bound of the
   divergence, where cutting them off would be another distribution's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from alignkit import (
    KL,
    Advice,
    Artifact,
    Demonstrations,
    DemonstrationSettings,
    Generation,
    Judge,
    Paper,
    Policy,
    Prompts,
    SamplingNeeds,
    SamplingSettings,
    Stage,
    UpdateSettings,
    method,
    sampling_needs,
)
from alignkit_distill.pupil import Answers, Pupil, tell
from alignkit_distill.teachers import Hint, check_room, open_teacher

if TYPE_CHECKING:
    from alignkit.kit import Opened, Rollout, Update


Loss = Literal["jsd", "skew", "total-variation", "policy-gradient", "likelihood"]

USED_BY: Mapping[str, Sequence[Loss]] = {
    "beta": ("jsd", "skew"),
    "skew": ("skew",),
    "target": ("jsd", "skew", "total-variation"),
    "top_k": ("jsd", "skew", "total-variation"),
    "gamma": ("policy-gradient",),
    "clip": ("policy-gradient",),
}
"""The losses that a setting means something to."""


class DistillSettings(UpdateSettings):
    """Settings of `distill`."""

    method: ClassVar[str] = "distill"

    epochs: PositiveInt = 1
    """How often each answer is learnt from."""
    loss: Loss = "jsd"
    """How far the policy is from the teacher at a token. `jsd`: a divergence between forward and reverse KL, see
    `beta`. `skew`: one of the two against a mixture, see `skew` (DistiLLM). `total-variation`: half the sum of
    differences. `policy-gradient`: the reverse KL by sampled tokens alone, whose teacher need not tell more.
    `likelihood`: answers are learnt as they stand (sequence-level distillation); `on_policy` is 0 then."""
    beta: float = Field(default=1.0, ge=0, le=1)
    """For `jsd` and `skew`: 0 is KL(teacher || policy), which spreads over all that the teacher may say; 1 is
    KL(policy || teacher), which keeps to what it surely says. Between them, for `jsd` alone, both."""
    skew: float = Field(default=0.1, gt=0, lt=1)
    """For `skew`: share of the first distribution in the mixture that it is compared with."""
    target: float = Field(default=1.0, ge=0, le=1)
    """Below 1: learn from a distribution on the way from the policy to the teacher, so much of the way at the start and
    all of it at the end, where the teacher is far away (TAID)."""
    top_k: PositiveInt | None = None
    """Tell apart so many tokens alone, those that the teacher holds likeliest. Unset: all; of an endpoint 20."""
    on_policy: float = Field(default=1.0, ge=0, le=1)
    """Share of an update's answers that the policy gives; the others are the demonstrations that `inputs.demos` names,
    else answers of the teacher."""
    gamma: float = Field(default=0.0, ge=0, le=1)
    """For `policy-gradient`: what the reward of the next token counts. 0: each token is its own; 1: all that follow."""
    clip: PositiveFloat = 0.2
    """For `policy-gradient`: how far a token's probability may move in one update before its gradient stops."""
    hint: str = ""
    """What the teacher is told before each prompt, and the policy is not. A teacher of its own is not needed then: the
    policy itself, as it was at the start, teaches what it says with the hint (context distillation)."""
    hint_column: str = ""
    """A column of the prompts whose text follows the hint: what is known of each prompt, such as its solution. Their
    source must `keep` it."""

    @model_validator(mode="after")
    def _each_means_something(self) -> Self:
        given = dict(self)
        for name, losses in USED_BY.items():
            if given[name] != type(self).model_fields[name].default and self.loss not in losses:
                raise ValueError(f"loss {self.loss} has no {name}; take loss {' or '.join(losses)}, or leave it out")
        if self.loss == "skew" and self.beta not in (0, 1):
            raise ValueError("loss skew has two ends and nothing between them; set beta to 0 or 1")
        if self.loss == "policy-gradient" and self.on_policy < 1:
            raise ValueError("loss policy-gradient learns from the policy's own answers alone; set on_policy to 1")
        if self.loss == "likelihood" and self.on_policy > 0:
            raise ValueError("loss likelihood would teach the policy its own answers; set on_policy to 0")
        return self


class PlainSettings(SamplingSettings):
    """What the loop of updates is told: nothing pulls back to the start, and no reward scores answers."""

    method: ClassVar[str] = "distill"


def of_loop(settings: DistillSettings) -> PlainSettings:
    """Return the settings as the loop of updates takes them."""
    shared = {name: value for name, value in settings if name in UpdateSettings.model_fields and name != "generation"}
    generation = Generation(**settings.generation.model_dump(), unfinished="subtract", penalty=0.0)
    return PlainSettings(**shared, generation=generation, kl=KL(coef=0.0), patience=0)


PAPERS = (
    Paper(
        "gkd",
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        "arXiv 2306.13649",
        {"beta": 0.5, "on_policy": 0.5},
        differs="the share of own answers is the same in every update, and not drawn anew for each",
    ),
    Paper(
        "on-policy-distillation",
        "On-Policy Distillation",
        "https://thinkingmachines.ai/blog/on-policy-distillation/",
        {"loss": "policy-gradient", "answers": 4},
        differs="ratios are clipped",
    ),
    Paper(
        "minillm",
        "MiniLLM: Knowledge Distillation of Large Language Models",
        "arXiv 2306.08543",
        {"loss": "policy-gradient", "gamma": 1.0},
        differs="the policy alone samples; returns are not divided by the tokens that are left; the next token counts "
        "by what was sampled, not by all that might be; no text of pretraining is learnt",
    ),
    Paper(
        "imitkd",
        "Autoregressive Knowledge Distillation through Imitation Learning",
        "arXiv 2009.07253",
        {"beta": 0.0, "on_policy": 0.5},
        differs="the teacher tells of all tokens, as in its variant Full; the share of own answers does not rise as "
        "training goes on",
    ),
    Paper(
        "f-distill",
        "f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        "arXiv 2307.15190",
        {"loss": "total-variation", "on_policy": 0.5},
        differs="of its divergences the total variation; the others are jsd with beta",
    ),
    Paper(
        "distillm",
        "DistiLLM: Towards Streamlined Distillation for Large Language Models",
        "arXiv 2402.03898",
        {"loss": "skew", "beta": 0.0, "on_policy": 0.5},
        differs="own answers are sampled anew in each update, and not kept for later ones; their share stays as it is",
    ),
    Paper(
        "taid",
        "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
        "arXiv 2501.16937",
        {"beta": 0.0, "target": 0.4, "on_policy": 0.0},
        differs="the way to the teacher is gone evenly, and not as fast as the loss falls",
    ),
    Paper(
        "seqkd",
        "Sequence-Level Knowledge Distillation",
        "arXiv 1606.07947",
        {"loss": "likelihood", "on_policy": 0.0},
        differs="the teacher's answers are sampled, and not searched for with a beam",
    ),
    Paper(
        "context-distillation",
        "A General Language Assistant as a Laboratory for Alignment",
        "arXiv 2112.00861",
        {"beta": 0.0, "on_policy": 0.0},
        differs="the `hint` is yours to write; the teacher answers prompts with it, where the paper's reads text that "
        "is given",
    ),
    Paper(
        "learning-by-distilling-context",
        "Learning by Distilling Context",
        "arXiv 2209.15189",
        {"loss": "likelihood", "on_policy": 0.0},
        differs="the `hint` is yours to write; the teacher's answer is learnt whole, with nothing taken out of it",
    ),
)


def needs(settings: DistillSettings) -> SamplingNeeds:
    """Return what the loop will do; with a hint alone the policy's start is the teacher."""
    hinted = bool(settings.hint or settings.hint_column)
    return replace(sampling_needs(of_loop(settings)), start=hinted, same_tokens=True)


def unfit(settings: DistillSettings, inputs: Mapping[str, Sequence[type[Artifact]]]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with settings beside these inputs."""
    if not inputs.get("teacher") and not settings.hint and not settings.hint_column:
        yield "distill has no teacher", 'name one, inputs.teacher = "...", or give the policy itself a hint'
    if Judge in inputs.get("teacher", ()):
        if settings.on_policy < 1 and not inputs.get("demos"):
            yield "an endpoint gives no answers to learn from", "set on_policy to 1, or name inputs.demos"
        if settings.generation.temperature != 1:
            yield "an endpoint tells log-probabilities at the temperature 1 alone", "set generation.temperature to 1"
    if inputs.get("demos") and settings.on_policy == 1:
        yield "no answer of inputs.demos would be learnt from", "set on_policy below 1, or leave them out"
    if inputs.get("demos") and settings.loss == "likelihood":
        yield "loss likelihood learns inputs.demos as they stand, and asks no teacher", "take the method sft"
    if inputs.get("demos") and (settings.hint or settings.hint_column):
        yield "the teacher is told its hint before prompts alone, and demos are answers", "leave out one of the two"


@method(
    "distill",
    advice=Advice(
        "a better policy is at hand, or the policy itself with a hint: it corrects every token of the policy's own "
        "answers, so far fewer are sampled than for grpo or ppo",
        "the policy becomes no better than its teacher, and learns its mistakes too; both are held in memory",
    ),
    needs=needs,
    results=("teacher_kl", "agreement", "length", "eos_rate"),
    papers=PAPERS,
    refuses=unfit,
)
def distill(
    settings: DistillSettings,
    stage: Stage,
    *,
    policy: Policy,
    prompts: Prompts,
    teacher: Policy | Judge | None = None,
    demos: Demonstrations | None = None,
) -> Policy:
    """Learn at each token of a policy's own answers what a teacher would have said there."""
    from alignkit.kit import Around, Roles, begin_loop, longest_answer, open_roles

    opened = open_roles(of_loop(settings), stage, Roles(policy, (), prompts), Around(start=False))
    hint = Hint(settings.hint, settings.hint_column)
    taught_by = open_teacher(teacher or policy, opened.tokenizer, hint, settings.top_k, settings.precision)
    pupil = Pupil(opened, taught_by, settings)
    given = read_given(demos, opened, stage)
    asked, aside = ([taught_by.prompt(one.row) for one in side] for side in (opened.prompts, opened.held_out))
    check_room(taught_by, max(map(len, [*asked, *aside])) + longest_answer(opened.settings))
    check_room(taught_by, given.longest if given else 0)
    loop, before = begin_loop(opened, stage, partial(pupil.measured, stage.seed))
    for update in loop.updates():
        answers = answers_of(update, pupil, asked, given)
        update.done({**answers.metrics, **pupil.learn(update, answers)})
    made = stage.save_policy(opened.models.policy, opened.tokenizer)
    tell(stage, opened, before, pupil.measured(stage.seed), settings.samples)
    return made


class GivenAnswers(NamedTuple):
    """Answers that are given, as tokens, with those that are learnt."""

    prompts: Sequence[list[int]]
    answers: Sequence[list[int]]
    learnt: Sequence[list[bool]]

    @property
    def longest(self) -> int:
        """The tokens of the longest one with its prompt."""
        return max(len(prompt) + len(answer) for prompt, answer in zip(self.prompts, self.answers, strict=True))


def read_given(demos: Demonstrations | None, opened: Opened[PlainSettings], stage: Stage) -> GivenAnswers | None:
    """Read demonstrations as answers that are given; None where there are none."""
    from alignkit.kit import parted_labels, read_demonstrations

    if demos is None:
        return None
    settings = opened.settings
    read = DemonstrationSettings(max_length=settings.max_length, max_lost=settings.max_lost, measured=1, samples=0)
    rows = read_demonstrations(demos, opened.models.policy, opened.tokenizer, read, stage)
    return GivenAnswers(*zip(*map(parted_labels, rows.train), strict=True))


def answers_of(
    update: Update[PlainSettings], pupil: Pupil, asked: Sequence[list[int]], given: GivenAnswers | None
) -> Answers:
    """Let the policy answer its share of the prompts whose turn it is; the other answers are given, or the teacher's.

    `asked` are the prompts as the teacher is asked them.
    """
    turn = update.asked
    share = round(pupil.settings.on_policy * len(turn))
    parts: list[tuple[Rollout, Sequence[Sequence[int]]]] = []
    if share:
        own = update.sample(asked=turn[:share])
        parts.append((own, [asked[row] for row in own.rows]))
    if share < len(turn) and given:
        parts.append(given_of_update(update, given, len(turn) - share))
    elif share < len(turn):
        parts.append(answers_of_teacher(update, pupil, asked, turn[share:]))
    return Answers.joined(parts, share * update.loop.settings.answers)


def given_of_update(
    update: Update[PlainSettings], given: GivenAnswers, prompts: int
) -> tuple[Rollout, Sequence[Sequence[int]]]:
    """Return the given answers whose turn it is, as many as there would be to so many prompts."""
    from alignkit.kit import Rollout, prompts_of_update

    settings = update.loop.settings
    each = settings.model_copy(update={"answers": 1})
    turn = prompts_of_update(each, len(given.answers), update.number, update.loop.seed)[: prompts * settings.answers]
    asked: list[Sequence[int]] = [given.prompts[row] for row in turn]
    answers, learnt = [given.answers[row] for row in turn], [given.learnt[row] for row in turn]
    return Rollout(turn, asked, answers, [True] * len(turn), learnt=learnt), asked


def answers_of_teacher(
    update: Update[PlainSettings], pupil: Pupil, asked: Sequence[list[int]], turn: Sequence[int]
) -> tuple[Rollout, Sequence[Sequence[int]]]:
    """Let the teacher answer these prompts."""
    from alignkit.kit import draw_answers, longest_answer

    loop = update.loop
    rows = [row for row in turn for _ in range(loop.settings.answers)]
    (model,) = pupil.teacher.models
    teacher = replace(loop.models, policy=model)
    drawn = draw_answers(teacher, asked, rows, longest_answer(loop.settings), update.chance)
    return replace(drawn, prompts=[loop.prompts[row] for row in rows]), drawn.prompts
