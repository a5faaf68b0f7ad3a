"""Advice: when a method is the one to take, and what goes wrong with it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """What its author says to those who choose; each a sentence, without a full stop."""

    when: str
    """When it is the one to take, beside others that learn from the same."""
    risk: str
    """What goes wrong with it, and how that shows."""
