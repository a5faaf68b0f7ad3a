"""How long answers are, and so how long a policy that is taught by them may answer."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from alignkit.training.encoding import NOT_LEARNT, LabelledTokens

COVERED = 0.95
"""Share of the answers that need no more."""
UNSET_ANSWER = 64
"""Tokens of an answer, at most, where neither settings nor rows say so."""
SPARE = 1.25
STEP, MOST = 16, 1024
SAMPLE = 20_000
"""Rows whose answers tell how long all are."""


def answer_limit(lengths: Sequence[float]) -> int | None:
    """Return the tokens within which 95 of 100 answers end, and a quarter more, as a multiple of 16 of at most 1024.

    None where there are no answers.
    """
    if not lengths:
        return None
    covered = sorted(lengths)[math.ceil(COVERED * len(lengths)) - 1]
    return min(MOST, STEP * math.ceil(SPARE * covered / STEP))


def sample_of(rows: Sequence[LabelledTokens]) -> Iterator[LabelledTokens]:
    """Yield rows from everywhere among them, all where there are not many."""
    return (rows[place] for place in range(0, len(rows), max(1, len(rows) // SAMPLE)))


def learnt_runs(rows: Sequence[LabelledTokens]) -> Iterator[int]:
    """Yield the lengths of the answers in rows: of the runs of tokens that are learnt."""
    for row in rows:
        for learnt, run in groupby(row.labels, key=lambda label: label != NOT_LEARNT):
            if learnt:
                yield sum(1 for _ in run)
