"""How long the answers of a recipe are, and so how long those may be that a stage samples.

A policy that is taught by demonstrations is given a length with them, which later stages take where their settings say
nothing. Whoever says a length is told where the recipe's own answers would not end within it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from alignkit.contract.kinds import Demonstrations, Preferences
from alignkit.contract.settings import Settings
from alignkit.errors import Problem
from alignkit.estimate.counting import count_tokens
from alignkit.plan.plan import Plan, PlannedStage, policy_of, policy_roles
from alignkit.sources.audit import Audit
from alignkit.training.lengths import UNSET_ANSWER, answer_limit
from alignkit.training.prepare import opened

FEW = 0.05
"""Share of the answers that may be longer than they are sampled before it is told."""


def settled(
    plan: Plan, stage: PlannedStage, settings: Settings, audits: Mapping[str, Audit], runs: Path, offline: bool
) -> Settings:
    """Give the settings with the length of answers that the stage will take, where they leave it open."""
    generation: Any = getattr(settings, "generation", None)
    if generation is None or getattr(generation, "max_new_tokens", 0) is not None:
        return settings
    found = _taught(plan, stage, audits, runs, offline)
    if found is None:
        return settings
    return settings.model_copy(update={"generation": generation.model_copy(update={"max_new_tokens": found})})


def _taught(plan: Plan, stage: PlannedStage, audits: Mapping[str, Audit], runs: Path, offline: bool) -> int | None:
    """Tell what a stage's policy was taught last, by a stage before it or by whoever made it."""
    from alignkit.training.models import taught_by

    maker = _maker(plan, stage)
    while maker is not None:
        if lengths := _lengths(plan, maker, audits, runs, offline, (Demonstrations,), learnt=True):
            return answer_limit(lengths)
        maker = _maker(plan, maker)
    source = policy_of(plan, stage)
    if source is None:
        return None
    policy: Any = opened(source, runs, offline)
    return taught_by(policy.path)


def _maker(plan: Plan, stage: PlannedStage) -> PlannedStage | None:
    """Give the stage that makes a stage's policy."""
    names = [name for role in policy_roles(stage)[:1] for name in stage.inputs.get(role, ())]
    return plan.stage(names[0]) if names and names[0] not in plan.sources else None


def _lengths(
    plan: Plan,
    stage: PlannedStage,
    audits: Mapping[str, Audit],
    runs: Path,
    offline: bool,
    kinds: tuple[type, ...],
    *,
    learnt: bool,
) -> list[float]:
    """Give the lengths, in tokens, of the answers that a stage reads: of all of them, or of those that it learns."""
    policy = policy_of(plan, stage)
    names = [name for several in stage.inputs.values() for name in several if name in audits]
    found: list[float] = []
    if policy is None:
        return found
    for name in names:
        if issubclass(plan.sources[name].kind, kinds):
            counted = count_tokens(plan.sources[name], policy, audits[name], stage.settings, runs, offline)
            found += [row.run for row in (counted.train if learnt else counted.rows)]
    return found


def remarks_on_answers(
    plan: Plan, stage: PlannedStage, audits: Mapping[str, Audit], runs: Path, offline: bool
) -> Iterator[Problem]:
    """Tell where many of the recipe's own answers would be cut by a stage that samples some."""
    if stage.method.loop not in ("online", "evaluation"):
        return
    given: Any = settled(plan, stage, stage.settings, audits, runs, offline)
    key = "generation.max_new_tokens" if hasattr(given, "generation") else "max_new_tokens"
    longest = getattr(getattr(given, "generation", given), "max_new_tokens", None) or UNSET_ANSWER
    lengths = [
        length
        for one in plan.stages
        if policy_of(plan, one) == policy_of(plan, stage)
        for length in _lengths(plan, one, audits, runs, offline, (Demonstrations, Preferences), learnt=False)
    ]
    longer = sum(length > longest for length in lengths)
    if not lengths or longer <= FEW * len(lengths):
        return
    problem = (
        f"{longer} of {len(lengths)} answers of the recipe's own rows are longer than {key} ({longest}), so that such "
        f"answers would be cut; the middle one has {median(lengths):.0f} tokens"
    )
    setting = f"{stage.name}.{stage.method.name}.{key}"
    yield Problem(problem, f"stage {stage.name!r}", f"--set {setting}={answer_limit(lengths)}")
