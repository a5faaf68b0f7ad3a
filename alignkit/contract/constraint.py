"""Constraints: bounds on the mean of a reward that a stage keeps while it raises others."""

from typing import Self

from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from alignkit.contract.settings import Settings

COSTS = "costs"
"""The input of a method that takes what a recipe bounds under `constraints`."""


class Constraint(Settings):
    """A bound on the mean of a reward over a policy's answers."""

    max: float | None = None
    """The mean may be at most this. Either this or `min` must be given."""
    min: float | None = None
    """The mean must be at least this."""
    learning_rate: PositiveFloat = 0.1
    """How fast the multiplier follows: an update whose mean lies one standard deviation beyond the bound moves it by so
    many standard deviations of the reward over one of the cost, both as they were in the first update."""
    gain: NonNegativeFloat = 0.25
    """What the last update's excess adds to the multiplier for one update, in the same units; it damps the swings that
    a multiplier which follows alone makes about its bound (PID Lagrangian). 0: nothing."""
    start: NonNegativeFloat = 0.0
    """The multiplier at the start: what a unit of the cost takes off the reward."""
    cap: PositiveFloat | None = None
    """The multiplier never exceeds this; a bound that no policy can keep would raise it for ever. Unset: no limit."""
    rewarded: bool = False
    """It is also one of the stage's rewards, and counts there with its weight."""

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.max is None) == (self.min is None):
            raise ValueError(f"must have {'a max or a min' if self.max is None else 'a max or a min, not both'}")
        if self.cap is not None and self.start > self.cap:
            raise ValueError(f"start {self.start:g} is above cap {self.cap:g}")
        return self

    @property
    def bound(self) -> float:
        """Return the value that the mean must not pass."""
        (bound,) = (value for value in (self.max, self.min) if value is not None)
        return bound

    @property
    def sign(self) -> int:
        """Return 1 where more costs, -1 where less does: `sign * (mean - bound)` is how far the bound is passed."""
        return 1 if self.min is None else -1
