"""Figures in words: numbers, durations, what a stage achieved; the same in the console and in the report."""

from collections.abc import Mapping

from alignkit.contract.events import Result
from alignkit.text import number

LABELS: Mapping[str, str] = {
    "objective/scores": "reward",
    "objective/kl": "KL",
    "loss": "loss",
    "loss/policy_avg": "policy loss",
    "loss/value_avg": "value loss",
    "accuracy": "accuracy",
    "rewards/accuracies": "accuracy",
    "margin": "margin",
    "rewards/margins": "margin",
    "tokens_per_second": "tokens/s",
    "policy/clipfrac_avg": "clipped",
    "val/explained_var": "explained by the critic",
}
"""The metrics that matter, the most telling first, and what people call them."""

SECONDARY = ("lr", "learning_rate", "grad_norm", "epoch", "episodes")
"""Metrics that are only worth a line where there is no other."""


def telling(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the metrics under their everyday names, the ones that matter first; each name once."""
    known = [name for name in LABELS if name in values]
    others = [name for name in values if name not in LABELS and not _is_folded(name) and name not in SECONDARY]
    named: dict[str, float] = {}
    for name in [*known, *others] or list(values):
        named.setdefault(LABELS.get(name, name), values[name])
    return list(named.items())


def _is_folded(name: str) -> bool:
    """Return whether a metric is one of many that people have no name for; what has a bound is watched."""
    return "/" in name and not name.startswith("cost/")


def bounds_in_words(least: float | None, most: float | None) -> str:
    """Return what a bound says: `at most 0.05`."""
    ends = {"at least": least, "at most": most}
    return " and ".join(f"{word} {number(end)}" for word, end in ends.items() if end is not None)


def achieved(result: Result) -> str:
    """Return what came of a measure: `perplexity 12.3 -> 5.1 (floor 6, 200 rows)`."""
    before = "" if result.before is None else f"{number(result.before)} -> "
    beside = [] if result.floor is None else [f"floor {number(result.floor)}"]
    beside += [] if result.bounds is None else [bounds_in_words(*result.bounds)]
    beside += [] if result.rows is None else [f"{result.rows} rows"]
    return f"{result.name} {before}{number(result.after)}" + (f" ({', '.join(beside)})" if beside else "")
