"""Stages that a scheduler has ended: started again where they left off, and not for ever."""

from pathlib import Path

from alignkit.contract.events import Warned
from alignkit.errors import StageError
from alignkit.store.checkpoints import steps


class Requeues:
    """Counts how often a stage was ended in a row without having kept anything new."""

    def __init__(self, stage: str, kept: Path, most: int) -> None:
        self._stage, self._kept, self._most = stage, kept, most
        self._step, self._times = self._newest(), 0

    def next(self, why: str) -> Warned:
        """Return what is told where a stage that was ended is started again. Raise StageError where that was tried
        often enough."""
        step = self._newest()
        self._times = self._times + 1 if step == self._step else 1
        self._step = step
        if self._times > self._most:
            row = f" {self._times} times in a row without having kept anything new, at last" if self._most else ""
            remedy = "give it more time, or let it keep what it has learnt more often; the same command goes on"
            raise StageError(f"it was ended{row} by {why}", f"stage {self._stage!r}", remedy)
        where = "from its beginning" if step is None else f"from step {step}"
        return Warned(self._stage, f"it was ended by {why}", f"it is started again, and goes on {where}")

    def _newest(self) -> int | None:
        return next(steps(self._kept), None)
