"""What a stage tells of its labels: what became of the pairs, how the judge does, and what to mend."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import Stage, StageError

FATES = ("pairs", "kept", "ties", "invalid", "equal", "cut", "worse")
"""What can become of a pair, after how many there were."""
RESULTS = (
    *FATES,
    *("position_bias", "order_consistency", "option_mass", "longer_wins"),
    *("requests", "tokens", "retries", "remembered"),
)
"""What a stage of labels tells: fates of pairs, how the judge does, and what it cost."""
SHOWN = ("prompt", "chosen", "rejected", "p_chosen")
"""Columns of a row that are shown to people."""
BIASED = 0.2
"""Of what a judge gives to the first place alone, so much is told as a warning; so is that share of invalid replies."""
LENGTHY = 0.8
"""Share of pairs won by the longer answer from which length is told as a warning."""


def so_far(tally: Counter[str]) -> dict[str, float]:
    """Give what is told while it runs: counts, and means over the pairs that the judge has an opinion of."""
    counts: dict[str, float] = {name: tally[name] for name in FATES if tally[name]}
    return {**counts, **_results(tally)}


def _results(tally: Counter[str]) -> dict[str, float]:
    found = dict[str, float]()
    if valid := tally["valid"]:
        found["position_bias"] = tally["bias"] / valid
        found["order_consistency"] = tally["consistent"] / valid
        found["option_mass"] = tally["mass"] / valid
    if uneven := tally["uneven"]:
        found["longer_wins"] = tally["longer"] / uneven
    return found


def tell(stage: Stage, tally: Counter[str], rows: Sequence[Mapping[str, Any]], samples: int) -> None:
    """Tell what became of the pairs and how the judge does. Raises StageError where no pair is left."""
    results = _results(tally)
    for name in FATES:
        if name != "worse" or tally[name]:  # only revisions can be
            stage.result(name, None, float(tally[name]))
    for name, value in results.items():
        stage.result(name, None, value)
    fates = ", ".join(f"{tally[name]} {name}" for name in FATES[2:] if tally[name])
    if not rows:
        problem = f"no pair is left of {tally['pairs']}: {fates}" if tally["pairs"] else "there are no pairs to judge"
        raise StageError(problem, remedy=_remedy(tally))
    for problem, remedy in _warnings(tally, results):
        stage.warn(problem, remedy)
    for row in rows[:samples]:
        stage.sample({key: row[key] if isinstance(row[key], str | float) else json.dumps(row[key]) for key in SHOWN})


def _remedy(tally: Counter[str]) -> str:
    """Say what to do about the commonest reason why pairs are dropped."""
    remedies = {
        "ties": "the judge does not tell them apart: take another judge, or a smaller tie",
        "invalid": "the judge does not answer with its options: take another judge, or a smaller min_mass",
        "equal": "raise temperature, so that answers differ",
        "cut": "raise max_new_tokens, or start from a policy that ends its answers",
        "worse": "take a policy or a judge that writes better revisions",
    }
    reasons = [name for name in remedies if tally[name]]
    return remedies[max(reasons, key=lambda name: tally[name])] if reasons else "give prompts, and two or more answers"


def _warnings(tally: Counter[str], results: Mapping[str, float]) -> list[tuple[str, str]]:
    found = list[tuple[str, str]]()
    bias = results.get("position_bias", 0.0)
    if abs(bias) > BIASED:
        place = "first" if bias > 0 else "second"
        problem = f"the judge favours whichever answer stands {place} (position bias {bias:+.2f})"
        found.append((problem, "both orders are averaged, which costs pairs; a stronger judge loses fewer"))
    if tally["judged"] and tally["invalid"] / tally["judged"] > BIASED:
        problem = f"the judge had no valid reply to {tally['invalid']} of {tally['judged']} pairs"
        found.append((problem, "take a judge that follows its instructions, or raise reply_tokens"))
    if results.get("longer_wins", 0.5) > LENGTHY:
        problem = f"the longer answer won {results['longer_wins']:.0%} of the pairs"
        found.append((problem, "see in the samples whether the judge likes length for its own sake"))
    if tally["cut"] > tally["pairs"] / 2:
        problem = f"{tally['cut']} of {tally['pairs']} pairs were left out, as an answer was cut"
        found.append((problem, "raise max_new_tokens"))
    return found
