"""What a start's pool of answers makes attainable, as `evaluate` keeps it: the ceiling, the best of n, and how far each
policy has come."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from alignkit.ceiling import Table, best_of, best_of_kl, ceiling_curve, held_against, reliable_kl
from alignkit.contract.reward_function import Answer
from alignkit.noise import mean_interval_of_any
from alignkit.training.scoring import Weighted, score_answers

BEST_OF = (2, 4, 8, 16, 32, 64, 128, 256)
"""Of so many answers the best is taken, as far as there are as many."""


@dataclass(frozen=True)
class PoolRewards:
    """Rewards of a pool, a row for each prompt and a column for each of its answers."""

    deciding: str
    """What the sum of the deciding rewards is called."""
    total: Table
    """That sum."""
    each: dict[str, Table]
    """Each reward by its name."""

    @property
    def choosing(self) -> dict[str, Table]:
        """The rewards by which the best of several answers may be chosen, the deciding one first."""
        return {self.deciding: self.total, **self.each}


def score_pool(answers: Sequence[Answer], rewards: Sequence[Weighted], to_each: int) -> PoolRewards:
    """Score a pool that has so many answers to each prompt."""
    found = score_answers(answers, rewards)
    deciding = [reward.name for reward in rewards if reward.weight]
    each = {name: _by_prompt(part.tolist(), to_each) for name, part in found.parts.items()}
    total = _by_prompt(found.total.tolist(), to_each)
    name = deciding[0] if len(deciding) == 1 else "sum"
    return PoolRewards(name, total, {one: table for one, table in each.items() if one != name})


def _by_prompt(scores: Sequence[float], to_each: int) -> Table:
    return np.array(scores, dtype=np.float64).reshape(-1, to_each)


def ceiling_as_row(pool: PoolRewards) -> dict[str, Any]:
    """Return what the start's row of the table keeps: the curve, and the best of n by each reward."""
    prompts, samples = pool.total.shape
    return {
        "measure": pool.deciding,
        "samples": samples,
        "prompts": prompts,
        "reward": float(pool.total.mean()),
        "reliable_kl": reliable_kl(samples),
        "curve": [(point.kl, point.reward) for point in ceiling_curve(pool.total)],
        "best_of": list(_best_of(pool)),
    }


def _best_of(pool: PoolRewards) -> Iterator[dict[str, Any]]:
    for name, rewards in pool.choosing.items():
        for n in BEST_OF:
            if n <= pool.total.shape[1]:
                values = best_of(rewards, pool.total, n).tolist()
                low, high = mean_interval_of_any(values) or (0.0, 0.0)
                yield {
                    "by": name,
                    "n": n,
                    "reward": fmean(values),
                    "interval": (high - low) / 2,
                    "most_kl": best_of_kl(n),
                }


def attained_as_row(pool: PoolRewards, rewards: Sequence[float], kl: Sequence[float]) -> dict[str, Any]:
    """Return what a policy's row of the table keeps of it, by its reward and its KL at each prompt."""
    attained = held_against(pool.total, rewards, kl)
    return {**asdict(attained), "prompts": len(rewards), "above": attained.above}
