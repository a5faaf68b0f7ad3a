"""Judges of sampled answers: which of two is better, asked in both orders, so that a place alone wins nothing.

The first process asks for all, and what it hears is handed to the others.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, groupby
from statistics import fmean

from alignkit.contract.judges import JudgeClient, Question, Verdict
from alignkit.contract.kinds import Judge
from alignkit.contract.reward_function import Answer
from alignkit.contract.stage import Stage
from alignkit.training import parallel

NO_OPINION = 0.5
"""What counts where a judge has no valid reply, or both answers are the same text."""


def open_judges(stage: Stage, judges: Sequence[Judge]) -> list[JudgeClient]:
    """Open judges in the first process; the others have none. Raise in all of them what goes wrong there."""
    opened: list[JudgeClient] = []

    def work() -> None:
        if parallel.rank() == 0:
            with parallel.alone():
                opened.extend(stage.open_judge(judge) for judge in judges)

    parallel.in_all(work)
    return opened


def preferred(judges: Sequence[JudgeClient], pairs: Sequence[tuple[Answer, Answer]]) -> list[float]:
    """Return how likely the first of two answers is the better one, the mean over both orders and all judges."""

    def ask() -> list[float]:
        unlike = [pair for pair in pairs if pair[0].text != pair[1].text]
        questions = [question for one, other in unlike for question in (Question(one, other), Question(other, one))]
        told = [_of_both_orders(judge.compare(questions)) for judge in judges] if questions else []
        means = iter([fmean(opinions) for opinions in zip(*told, strict=True)])
        return [next(means) if one.text != other.text else NO_OPINION for one, other in pairs]

    return parallel.first(ask)


def group_win_rates(judges: Sequence[JudgeClient], answers: Sequence[Answer], numbers: Sequence[int]) -> list[float]:
    """Return how likely each answer is better than another one of its group: neighbours of the same number.

    Every two answers of a group are compared. An answer without another one gets one half.
    """
    groups = [[place for place, _ in group] for _, group in groupby(enumerate(numbers), key=lambda one: one[1])]
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    wins: list[list[float]] = [[] for _ in answers]
    chances = preferred(judges, [(answers[one], answers[other]) for one, other in pairs])
    for (one, other), chance in zip(pairs, chances, strict=True):
        wins[one].append(chance)
        wins[other].append(1 - chance)
    return [fmean(chances or [NO_OPINION]) for chances in wins]


def costs(judges: Sequence[JudgeClient]) -> dict[str, float]:
    """Return what all judges have cost together, such as `requests`."""
    spent: Counter[str] = Counter()
    for judge in judges:
        spent.update(judge.results())
    return dict(spent)


def _of_both_orders(verdicts: Sequence[Verdict]) -> list[float]:
    return [
        NO_OPINION if forth.first is None or back.first is None else (forth.first + 1 - back.first) / 2
        for forth, back in zip(verdicts[::2], verdicts[1::2], strict=True)
    ]
