"""NCA: learn from several answers to each prompt by their ratings, not only by which of two is the better.

Noise contrastive alignment (Chen et al. 2024, arXiv 2402.05369) takes the DPO reward of each answer, beta times the
log-probability by which the policy exceeds its start, and brings the rewards of all answers to a prompt to their
ratings: by a softmax over the answers (`infonca`, of which DPO is the case of two), or by each answer's likelihood
of being the wanted one (`nca`), which holds up the likelihood of good answers.

A prompt with one answer says nothing of which is better, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveFloat

from alignkit import Advice, DataError, PairNeeds, Paper, Policy, Ratings, RowSettings, Stage, method, pair_needs
from alignkit_dpo import preference_losses as losses
from alignkit_dpo.answer_learning import logprobs_by_prompt, rating_of
from alignkit_dpo.start_logprobs import Start

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.kit import JudgedAnswer

TITLE, SOURCE = "Noise Contrastive Alignment of Language Models with Explicit Rewards", "arXiv 2402.05369"
PAPERS = (
    Paper("nca", TITLE, SOURCE, {"beta": 0.01}),
    Paper("infonca", TITLE, SOURCE, {"loss": "infonca", "beta": 0.01}),
)


class NCASettings(RowSettings):
    """Settings of `nca`."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate; 5e-7 to 5e-6 for billions of weights, ten times as much with LoRA."""
    beta: PositiveFloat = 0.1
    """The pull back to the start: the smaller, the further the policy may go."""
    loss: Literal["nca", "infonca"] = "nca"
    """`nca`: each answer by itself, so that likely good answers stay likely. `infonca`: answers against each other."""
    temperature: PositiveFloat = 1.0
    """Divides ratings: by how much they must differ to count. Small ones leave the best answer alone."""


@dataclass(frozen=True)
class RatedAnswers:
    """The answers to one prompt, as tokens, with their ratings and what the start says of each."""

    prompt: list[int]
    answers: tuple[list[int], ...]
    ratings: tuple[float, ...]
    start: tuple[float, ...] = ()


def needs(settings: NCASettings) -> PairNeeds:
    """Return what it will do: the start reads each answer once. A step has the answers to `batch` prompts."""
    return replace(pair_needs(settings), apart=True, gathered=True, regrouped=True)


@method(
    "nca",
    advice=Advice(
        "several answers to each prompt have ratings, and the ratings are to count, not the order alone",
        "prompts with one answer teach nothing",
    ),
    needs=needs,
    results=("accuracy",),
    papers=PAPERS,
)
def nca(settings: NCASettings, stage: Stage, *, policy: Policy, answers: Ratings) -> Policy:
    """Raise the answers to a prompt as their ratings tell, without a reward model."""
    from alignkit.kit import in_passes, load_policy, read_answers, train_rows

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    train, held_out = map(by_prompt, read_answers(answers, model, tokenizer, settings, stage))
    if not train:
        raise DataError("no prompt has two answers with ratings", remedy="give several answers to each prompt")
    train, held_out = with_start((train, held_out), model, policy, settings, stage)

    def loss(part: Sequence[RatedAnswers]) -> tuple[Tensor, dict[str, Tensor]]:
        return losses_of(model, part, settings)

    def passes(some: Sequence[RatedAnswers]) -> list[list[int]]:
        together = [[token for answer in row.answers for token in answer] for row in some]
        return in_passes(model, [row.prompt for row in some], together)

    train_rows(model, train, loss, settings, stage, passes)
    made = stage.save_policy(model, tokenizer)
    tell(held_out, gains_of(model, held_out, settings), stage)
    return made


def by_prompt(answers: Sequence[JudgedAnswer]) -> list[RatedAnswers]:
    """Put the answers to each prompt together."""
    found: dict[tuple[int, ...], list[JudgedAnswer]] = {}
    for answer in answers:
        found.setdefault(tuple(answer.prompt), []).append(answer)
    several = (rows for rows in found.values() if len(rows) > 1)
    return [
        RatedAnswers(rows[0].prompt, tuple(row.answer for row in rows), tuple(map(rating_of, rows))) for rows in several
    ]


def losses_of(model: Any, part: Sequence[RatedAnswers], settings: NCASettings) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of each of n prompts (n,), and the rewards of its best and worst answer."""
    import torch

    from alignkit.kit import answer_logprobs, brought

    prompts = [row.prompt for row in part for _ in row.answers]
    logprobs = answer_logprobs(model, prompts, [answer for row in part for answer in row.answers]).sum(dim=1)
    known = torch.tensor([pair for row in part for pair in zip(row.start, row.ratings, strict=True)])
    start, ratings = brought(known, logprobs.device).unbind(dim=1)
    sizes, loss = [len(row.answers) for row in part], LOSSES[settings.loss]
    rewards = torch.split(settings.beta * (logprobs - start), sizes)  # n of (k,)
    wanted = [rating.softmax(dim=0) for rating in torch.split(ratings / settings.temperature, sizes)]
    found = torch.stack([loss(*both) for both in zip(rewards, wanted, strict=True)])
    best, worst = (
        torch.stack(
            [reward.detach()[row.ratings.index(pick(row.ratings))] for row, reward in zip(part, rewards, strict=True)]
        )
        for pick in (max, min)
    )
    return found, {"rewards/chosen": best, "rewards/rejected": worst, "rewards/margins": best - worst}


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"nca": losses.rated_nca, "infonca": losses.infonca}


def with_start(
    rows: tuple[Sequence[RatedAnswers], Sequence[RatedAnswers]],
    model: Any,
    policy: Policy,
    settings: NCASettings,
    stage: Stage,
) -> tuple[list[RatedAnswers], list[RatedAnswers]]:
    """Return the rows with what the start says of their answers, which is the policy before the first step."""

    def read(part: Sequence[RatedAnswers]) -> list[list[float]]:
        return logprobs_by_prompt(settings, model, [(row.prompt, row.answers) for row in part])

    start = Start(policy, settings, stage, read, lambda row: [row.prompt, *row.answers])
    train, held_out = (
        [replace(row, start=tuple(one)) for row, one in zip(some, said, strict=True)]
        for some, said in zip(rows, start.says_of(*rows), strict=True)
    )
    return train, held_out


def gains_of(model: Any, rows: Sequence[RatedAnswers], settings: NCASettings) -> list[list[float]]:
    """Return what each answer has gained against the start, in nats."""
    now = logprobs_by_prompt(settings, model, [(row.prompt, row.answers) for row in rows])
    return [
        [after - before for after, before in zip(said, row.start, strict=True)]
        for row, said in zip(rows, now, strict=True)
    ]


def tell(rows: Sequence[RatedAnswers], gains: Sequence[Sequence[float]], stage: Stage) -> None:
    """Report how often, of two answers to a held-out prompt, the one with the higher rating has gained more."""
    parted = [(row, gained) for row, gained in zip(rows, gains, strict=True) if len(set(row.ratings)) > 1]
    if not parted:
        stage.warn("no two held-out answers to a prompt differ in rating, so nothing is measured", "raise held_out")
        return
    longer = fmean(concordant([*map(len, row.answers)], row.ratings) for row, _ in parted)
    stage.measure("accuracy", 0.5, [concordant(gained, row.ratings) for row, gained in parted], longer)


def concordant(values: Sequence[float], ratings: Sequence[float]) -> float:
    """Return how often the one of two answers with the higher rating has the higher value, ties half."""
    pairs = [(b - a, s - r) for (a, r), (b, s) in combinations(zip(values, ratings, strict=True), 2) if r != s]
    return fmean(0.5 if by == 0 else float((by > 0) == (rated > 0)) for by, rated in pairs)
