"""Settings of methods that learn from given rows: what is equal in all of them stands here once."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from alignkit.contract.settings import LoRA, Optimisation, Precision, Settings, SnapshotSettings


class TrainingSettings(Settings):
    """Settings of every method that learns from given rows."""

    learning_rate: PositiveFloat | None = None
    """Peak learning rate. Unset: 1 / sqrt(weights), 1e-3 for a million and 1e-5 for ten billion; tenfold with LoRA."""
    epochs: PositiveFloat = 1.0
    """How often each row is learnt from."""
    batch: PositiveInt = 32
    """Rows in an optimiser step, on any machine."""
    optimisation: Optimisation = Optimisation(warmup=0.03)
    """How weights are stepped."""
    lora: LoRA | None = None
    """Train small added matrices instead of all weights."""
    precision: Precision = "auto"
    """Arithmetic of training."""
    max_length: PositiveInt | None = None
    """Longest prompt with answer in tokens; longer rows are left out. Unset: what the model reads, at most 1024."""
    measured: PositiveInt = 1000
    """Held-out rows, at most, on which the outcome is measured."""


class RowSettings(SnapshotSettings, TrainingSettings):
    """Settings of every method that learns from given rows by a loss of its own."""

    learning_rate: PositiveFloat = 5e-7
    """Peak learning rate."""
    optimisation: Optimisation = Optimisation(warmup=0.1)
    """How weights are stepped."""
    max_lost: float = Field(default=0.05, ge=0, le=1)
    """Share of the rows that may be left out for their length; more stops the stage."""
    samples: NonNegativeInt = 4
    """Held-out rows that are shown."""


class DemonstrationSettings(SnapshotSettings, TrainingSettings):
    """Settings of every method that teaches by demonstrations."""

    epochs: PositiveFloat = 2.0
    """How often each demonstration is learnt from."""
    learn: Literal["all", "last"] = "all"
    """Of a chat: learn all that the assistant says, or its last turn alone."""
    max_length: PositiveInt | None = None
    """Longest demonstration in tokens; a longer one loses its end. Unset: what the model reads, at most 1024."""
    max_lost: float = Field(default=0.05, ge=0, le=1)
    """Share of the demonstrations that may be cut or left out for their length; more stops the stage."""
    measured: PositiveInt = 200
    """Held-out demonstrations, at most, on which the perplexity of answers is measured."""
    samples: NonNegativeInt = 4
    """Answers to held-out prompts that are shown beside the demonstrated ones."""


class ScoreSettings(TrainingSettings):
    """Settings of every method that learns a score from pairs."""

    centering: NonNegativeFloat = 0.0
    """Weight of the pull of scores towards a mean of zero; 0.01 is usual (arXiv 2312.09244)."""
    max_lost: float = Field(default=0.05, ge=0, le=1)
    """Share of the pairs that may be left out for their length; more stops the stage."""
    samples: NonNegativeInt = 4
    """Held-out pairs that are shown with their scores, each of those told apart best, worst, and of others."""
