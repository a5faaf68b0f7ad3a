"""How long the answers of a recipe are, and so how long those may be that a stage samples.

A policy that is taught by demonstrations is given a length with them, which later stages take where their settings say
nothing. Whoever says a length is told where the recipe's own answers would not end within it.
"""

from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from alignkit.contract.kinds import Demonstrations, Preferences
from alignkit.contract.needs import Needs
from alignkit.errors import Problem
from alignkit.estimate.counting import answer_tokens, count_tokens, learn_of
from alignkit.estimate.desk import Desk
from alignkit.plan.plan import PlannedStage, policy_of, policy_roles
from alignkit.training.configs import taught_by
from alignkit.training.lengths import answer_limit

FEW = 0.05
"""Share of the answers that may be longer than they are sampled before it is told."""


def settled(desk: Desk, stage: PlannedStage, needs: Needs | None) -> Needs | None:
    """Return what a stage needs with the length of answers that it will take, where its settings leave it open."""
    if needs is None or needs.new_tokens is not None:
        return needs
    found = _taught(desk, stage)
    return needs if found is None else replace(needs, new_tokens=found)


def _taught(desk: Desk, stage: PlannedStage) -> int | None:
    """Return what a stage's policy was taught last, by a stage before it or by whoever made it."""
    maker = _maker(desk, stage)
    while maker is not None:
        if lengths := _lengths(desk, maker, (Demonstrations,), learnt=True):
            return answer_limit(lengths)
        maker = _maker(desk, maker)
    source = policy_of(desk.plan, stage)
    return None if source is None else taught_by(desk.open(source).path)


def _maker(desk: Desk, stage: PlannedStage) -> PlannedStage | None:
    """Return the stage that makes a stage's policy."""
    names = [name for role in policy_roles(stage)[:1] for name in stage.inputs.get(role, ())]
    return desk.plan.stage(names[0]) if names and names[0] not in desk.plan.sources else None


def _lengths(desk: Desk, stage: PlannedStage, kinds: tuple[type, ...], *, learnt: bool) -> list[float]:
    """Return the lengths, in tokens, of the answers that a stage reads: of all of them, or of those that it learns."""
    policy, learn = policy_of(desk.plan, stage), learn_of(stage.needs)
    found: list[float] = []
    if policy is None:
        return found
    for source in (desk.plan.sources[name] for name in stage.taken if name in desk.audits):
        if issubclass(source.kind, kinds):
            counted = count_tokens(desk, source, policy, learn)
            found += [row.run for row in (counted.train if learnt else counted.rows)]
    return found


def remarks_on_answers(desk: Desk, stage: PlannedStage) -> Iterator[Problem]:
    """Yield where many of the recipe's own answers would be cut by a stage that samples some."""
    needs = settled(desk, stage, stage.needs)
    longest = answer_tokens(needs)
    if needs is None or not longest:
        return
    lengths = [
        length
        for one in desk.plan.stages
        if policy_of(desk.plan, one) == policy_of(desk.plan, stage)
        for length in _lengths(desk, one, (Demonstrations, Preferences), learnt=False)
    ]
    longer = sum(length > longest for length in lengths)
    if not lengths or longer <= FEW * len(lengths):
        return
    problem = (
        f"{longer} of {len(lengths)} answers of the recipe's own rows are longer than {needs.new_tokens_key} "
        f"({longest}), so that such answers would be cut; the middle one has {median(lengths):.0f} tokens"
    )
    setting = f"{stage.name}.{stage.method.name}.{needs.new_tokens_key}"
    yield Problem(problem, f"stage {stage.name!r}", f"--set {setting}={answer_limit(lengths)}")
