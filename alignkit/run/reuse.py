"""What need not run again: stages that are finished, and made from what their inputs are now."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alignkit.errors import RecipeError, near_miss
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.store.results import Finished, find_finished


def run_again(plan: Plan, again: Sequence[str]) -> tuple[str, ...]:
    """Return which stages shall run again; the name of one that repeats means its last round.

    Raises RecipeError where one is none that would run.
    """
    names = [stage.name for stage in plan.stages if stage.wanted]
    for name in again:
        if plan.recipe.last_round(name) not in names:
            hint = near_miss(name, names) or f"the stages of this run are {', '.join(names)}"
            raise RecipeError(f"there is no stage {name!r} to run again", f"--again {name}", hint)
    return tuple(map(plan.recipe.last_round, again))


def reusable(plan: Plan, runs: str | Path, again: Sequence[str] = ()) -> dict[str, Finished]:
    """Return which wanted stages would be reused."""
    found: dict[str, Finished] = {}
    for stage in plan.stages:
        if stage.wanted and (one := reuse(stage, Path(runs).resolve(), again, found)):
            found[stage.name] = one
    return found


def reuse(stage: PlannedStage, runs: Path, again: Sequence[str], earlier: Mapping[str, Finished]) -> Finished | None:
    """Find a stage's finished result, if it was made from what the earlier stages have made by now."""
    if stage.fingerprint is None or stage.name in again:
        return None
    found = find_finished(runs, stage.name, stage.fingerprint)
    if found and all(name in earlier and earlier[name].content == was for name, was in found.made_from.items()):
        return found
    return None
