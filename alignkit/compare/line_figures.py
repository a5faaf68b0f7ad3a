"""Figures of a comparison by name: `dpo/reward`, `dpo/rewards/gold`, `start/length`, `dpo/passes/pass@1`.

`pairs-50-*/reward` is the mean over all variants whose names are so, `start/laws/proxy-*/r2` that over all figures.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from statistics import fmean
from typing import get_args, get_origin, get_type_hints

from alignkit.compare.measured import Comparison, Line
from alignkit.compare.planning import ComparisonPlan
from alignkit.compare.tables import comparison_of
from alignkit.contract.events import Result
from alignkit.contract.kinds import Scores
from alignkit.errors import StageError, near_miss
from alignkit.noise import Difference, Interval
from alignkit.plan.figures import why_unmade
from alignkit.recipe.self_checks import START
from alignkit.store.runs import KeptRun

HINTS = get_type_hints(Line)
NUMBERS = [
    name
    for name, hint in HINTS.items()
    if {float, int, Difference} & {*get_args(hint), hint} and get_origin(hint) not in (tuple, Mapping)
]
"""The fields of a line that hold a figure, or may."""
MAPPINGS = [name for name, hint in HINTS.items() if get_origin(hint) is Mapping]
"""Those that hold figures by name."""

Measured = tuple[float | None, Interval | None]
"""What a figure is, None where it could not be taken, and its 95 % interval, where that is known."""


def why_no_figure(planned: ComparisonPlan, figure: str) -> tuple[str, str] | None:
    """Return why a comparison has no figure of this name, and what to do; None where it has."""
    labels = [START, *(contender.variant.label for contender in planned.contenders)]
    first = figure.partition("/")[0]
    if (several := _alike(figure, labels)) and (why := why_no_figure(planned, several[0])):
        return why
    if several:
        return None
    label, field = split_figure(figure, labels)
    stages = planned.plan.stages
    if not label:
        if first in [stage.name for stage in stages]:
            return why_unmade(planned.plan.recipe, figure, stages)
        return f"there is no variant {first!r}", near_miss(first, labels) or f"the variants are {', '.join(labels)}"
    policies = [planned.start, *(contender.stages[0] for contender in planned.contenders)]
    policy = policies[labels.index(label)]
    head, _, rest = field.partition("/")
    if field in NUMBERS or (head in MAPPINGS and rest):
        return None
    measures = [one for one in stages if one.wanted and issubclass(one.made, Scores) and one.name != planned.scores]
    for one in measures:
        if one.name == head and rest and one.method.tells(f"{rest} {policy}", one.inputs):
            return None
    known = [*NUMBERS, *(f"{name}/NAME" for name in MAPPINGS), *(f"{one.name}/RESULT" for one in measures)]
    return f"a variant has no figure {field!r}", near_miss(field, known) or f"there are {', '.join(known)}"


def _alike(figure: str, labels: Sequence[str]) -> list[str]:
    """Return the same figure of each variant that a name with a star means; the start is none."""
    pattern, _, field = figure.partition("/")
    found = [label for label in labels if label != START and fnmatchcase(label, pattern)] if "*" in pattern else []
    return [f"{label}/{field}" for label in found]


def split_figure(figure: str, labels: Sequence[str]) -> tuple[str, str]:
    """Return the variant that a figure begins with, and the rest; none where it begins with none."""
    found = [label for label in labels if figure.startswith(f"{label}/")]
    label = max(found, key=len, default="")
    return label, figure.removeprefix(f"{label}/")


def measured_in(run: KeptRun, figure: str) -> Measured:
    """Return what a figure is in a kept run, or in the comparison that it was."""
    found = comparison_of(run.comparison) if run.comparison else None
    lines = {line.name: line for line in (found.start, *found.variants)} if found else {}
    if several := _alike(figure, list(lines)):
        values = [value for value, _ in (measured_in(run, one) for one in several)]
        return None if None in values else fmean(value for value in values if value is not None), None
    label, field = split_figure(figure, list(lines))
    if found and label:
        return _of_line(found, lines[label], field, run)
    name, _, result = figure.partition("/")
    return _told(_results(run, name).get(result))


def _of_line(found: Comparison, line: Line, field: str, run: KeptRun) -> Measured:
    facts = vars(line)
    head, _, rest = field.partition("/")
    if field in NUMBERS:
        return _number(facts[field], line.interval if field == "reward" else None)
    if head in MAPPINGS:
        alike = [value for name, value in facts[head].items() if fnmatchcase(name, rest)]
        return _number(fmean(alike) if alike else None, None)
    policies = line.stages
    several = [_results(run, head).get(f"{rest} {name}") for name in policies]
    values = [one.after for one in several if one and one.after is not None]
    if len(values) < len(policies):
        return None, None
    return _told(several[0]) if len(several) == 1 else (fmean(values), None)


def _number(value: object, half: float | None) -> Measured:
    if isinstance(value, Difference):
        return value.value, (value.value - value.half, value.value + value.half)
    if not isinstance(value, float | int):
        return None, None
    return float(value), None if half is None else (value - half, value + half)


def _told(result: Result | None) -> Measured:
    return (result.after, result.interval) if result else (None, None)


def _results(run: KeptRun, stage: str) -> Mapping[str, Result]:
    try:
        return {result.name: result for result in run.stage(stage).results}
    except StageError:
        return {}
