"""All that is looked at before a recipe runs: its rows, its models, and what every stage will need here."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alignkit.errors import AlignkitError, RecipeError
from alignkit.estimate.desk import Desk, desk_for
from alignkit.estimate.preflight import ALONE, Preflight, Sharing, preflight
from alignkit.estimate.stage_previews import StagePreview, previews
from alignkit.plan.plan import Plan


class Examination(NamedTuple):
    """What was found of a plan."""

    desk: Desk
    needs: Preflight
    previews: Sequence[StagePreview]
    errors: Sequence[AlignkitError]
    """What would end a stage."""


def examine(plan: Plan, runs: Path, offline: bool, *, rows_only: bool = False, on: Sharing = ALONE) -> Examination:
    """Look at a plan's rows and, unless told not to, at its models and what each process of its stages will need."""
    desk, errors = desk_for(plan, runs, offline)
    needs, seen = Preflight(), list[StagePreview]()
    if rows_only:
        return Examination(desk, needs, seen, errors)
    try:
        needs = preflight(desk, on)
        seen += previews(desk)
    except AlignkitError as error:
        told = {one.problem for one in needs.problems}
        errors += [] if told.issuperset(one.problem for one in error.problems) else [error]
    if needs.problems:
        errors.append(RecipeError.of(needs.problems))
    return Examination(desk, needs, seen, errors)
