"""Which policies on the way are kept beside the last one.

Over-optimisation is a matter of how far a policy has gone, not of how long it took (Gao et al. 2023, arXiv 2210.10760,
whose distance is the root of the KL); so a loop that knows its KL may space what it keeps by that.
"""

from dataclasses import dataclass, field
from math import sqrt

from alignkit.contract.settings import Settings, SnapshotSettings

GAP = 0.05
"""Of the root of the KL between two that are kept, at first; doubled whenever there are too many."""


def snapshots_of(settings: Settings) -> int:
    """Return how many policies are kept on the way; none by a method that makes no policy."""
    return settings.snapshots if isinstance(settings, SnapshotSettings) else 0


def is_due(step: int, of: int, count: int) -> bool:
    """Return whether a policy is kept after this step, where so many of them are kept on the way to the last step."""
    return step < of and step * (count + 1) // of > (step - 1) * (count + 1) // of


@dataclass
class KLSpacing:
    """Keeps policies at about equal distances, however far the last one will be: between half as many and as many as
    are asked for."""

    count: int
    kept: list[int] = field(default_factory=list)
    """The updates after which they were kept."""
    gap: float = GAP
    reached: float = 0.0
    """The distance at which the last one was kept."""

    def keeps(self, step: int, kl: float, best: int | None = None) -> bool:
        """Return whether the policy after this update is kept; then `kept` says which others still are, `best` among
        them."""
        distance = sqrt(max(kl, 0.0))
        if distance < self.reached + self.gap:
            return False
        self.reached = distance
        self.kept.append(step)
        if len(self.kept) > self.count:
            self.kept = [one for place, one in enumerate(self.kept) if place % 2 or one == best]
            self.gap *= 2
        return step in self.kept
