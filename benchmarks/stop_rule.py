"""Ask the rule of `stop = "auto"` about runs that went on to their end: would it have ended them, when, at what gain?

    alignkit reproduce dpo-frontier
    python benchmarks/stop_rule.py runs "align-gold-*" "align-ppo-*"

A line for each stage whose name is so, those that learn from functions, too, which the rule leaves alone else: the
update that it would have ended at, and the share of the run's gain that there was by then. Scores are means over three
updates.
"""

import sys
from pathlib import Path
from statistics import fmean

from alignkit import Metrics
from alignkit.store.journal import read_journal
from alignkit.training.gaming import AROUND, SCORES, Gaming


def asked(folder: Path) -> tuple[int | None, float] | None:
    """Return the update at which the rule ends a run, None where it does not, and the share of its gain by then.

    None where a stage told no scores of its answers.
    """
    gaming, scores, ended = Gaming(), list[float](), None
    for event in read_journal(folder.name, folder):
        if isinstance(event, Metrics) and SCORES in event.values:
            gaming.see(event.values)
            scores.append(event.values[SCORES])
            ended = len(scores) if gaming.is_gamed and ended is None else ended
    around = [fmean(scores[at - AROUND : at]) for at in range(AROUND, len(scores) + 1)]
    if not around:
        return None
    by_then = around[(ended or len(scores)) - AROUND]
    return ended, (by_then - scores[0]) / (max(around) - scores[0])


def main() -> None:
    runs, *patterns = sys.argv[1:]
    folders = [folder for pattern in patterns for folder in sorted(Path(runs, "stages").glob(pattern))]
    found = {folder.name: one for folder in folders if (one := asked(folder))}
    for name, (ended, share) in found.items():
        print(f"{name:40} {f'update {ended}' if ended else 'never':10} {share:.0%} of its gain")
    print(f"{sum(ended is not None for ended, _ in found.values())} of {len(found)} would have been ended")


if __name__ == "__main__":
    main()
