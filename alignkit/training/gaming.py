"""Whether the reward that is learnt from still means what it did: a rule that needs to know no other.

Far from its start a policy finds answers that a reward is wrong about, and then the reward that counts falls while the
one that is learnt from still rises (Gao et al. 2023, arXiv 2210.10760). Where that begins shows in what is paid for the
reward: the best policy at a KL of k has gained about sigma sqrt(2 k), sigma being the spread of the start's scores, so
a nat there buys sigma / sqrt(2 k); one that buys much less goes where the reward says little. So a policy after u
updates is worth

    J(u) = (score(u) - score(0)) / sigma - PRICE KL(u)

averaged over the updates around it, whose answers it and its neighbours gave. The reward is gamed once J has fallen.
Rewards that are held out count as much as what is learnt from. The spread of an ensemble's heads is no part of it: it
falls as answers become alike, where they are wrong, too.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from statistics import fmean
from typing import Any

PRICE = 0.1
"""Standard deviations of the start's scores that a nat must buy."""
AROUND = 3
"""Updates that are averaged."""
FALL = 0.2
"""By how much worth must have fallen from its highest, in standard deviations."""
PATIENCE = 3
"""Updates in a row for which it must have."""
SCORES, SPREAD = "objective/scores", "objective/scores_std"
HELD_OUT, HELD_OUT_STD = "held_out/", "held_out_std/"
"""What begins the names of metrics that tell a held-out reward's mean over an update's answers, and its spread."""


@dataclass
class Gaming:
    """Remembers what updates were worth, and which policy on the way was worth most."""

    first: dict[str, float] = field(default_factory=dict)
    """Mean and spread of the start's scores."""
    worths: list[float] = field(default_factory=list)
    """J of each update's answers, which the policy before it gave."""
    highest: float = -inf
    """Of the averages."""
    fallen: int = 0
    """Updates in a row in which the average lay below the highest by more than noise."""
    warned: bool = False
    """It was told that the reward is gamed."""
    kept: dict[int, float | None] = field(default_factory=dict)
    """Snapshots, by their update, and what they are worth; None until answers of the updates after it are known."""

    @property
    def is_gamed(self) -> bool:
        return self.fallen >= PATIENCE

    @property
    def best(self) -> int | None:
        """The update after which the snapshot was kept that is worth most; None where none is known."""
        known = {step: worth for step, worth in self.kept.items() if worth is not None}
        return max(known, key=lambda step: known[step]) if known else None

    def see(self, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of one update."""
        held_out = [name.removeprefix(HELD_OUT) for name in metrics if name.startswith(HELD_OUT)]
        told = {SCORES: SPREAD, **{f"{HELD_OUT}{name}": f"{HELD_OUT_STD}{name}" for name in held_out}}
        self.first = self.first or {name: metrics[name] for pair in told.items() for name in pair}
        gains = [
            (metrics[mean] - self.first[mean]) / self.first[spread]
            for mean, spread in told.items()
            if self.first.get(spread, 0.0) > 0
        ]
        if not gains or "objective/kl" not in metrics:
            return
        self.worths.append(fmean(gains) - PRICE * metrics["objective/kl"])
        if len(self.worths) < AROUND:
            return
        around = fmean(self.worths[-AROUND:])
        self.highest = max(self.highest, around)
        self.fallen = self.fallen + 1 if around < self.highest - FALL else 0
        measured = len(self.worths) - 1 - AROUND // 2  # of the policy after so many updates, that in the middle
        if measured in self.kept:
            self.kept[measured] = around

    def keep(self, step: int, others: Collection[int] | None) -> None:
        """Note that a snapshot was kept after an update, and which others still are; None: all."""
        self.kept = {one: worth for one, worth in self.kept.items() if others is None or one in others} | {step: None}

    @property
    def told(self) -> str:
        """Why it is gamed, in words."""
        return (
            f"for {PATIENCE} updates a nat of KL has bought less than {PRICE} standard deviations of reward, "
            f"{self.highest - fmean(self.worths[-AROUND:]):.2f} below the best in all"
        )

    def facts(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**asdict(self), "kept": list(self.kept.items())}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Gaming":
        """Return it as `facts` told it."""
        return cls(**{**facts, "kept": dict(map(tuple, facts["kept"]))})
