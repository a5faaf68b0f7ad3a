"""Settings of methods that learn from given rows: what is equal in all of them stands here once."""

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from alignkit.contract.settings import LoRA, Optimisation, Precision, Settings


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


class RowSettings(TrainingSettings):
    """Settings of every method that learns from given rows by a loss of its own."""

    learning_rate: PositiveFloat = 5e-7
    """Peak learning rate."""
    optimisation: Optimisation = Optimisation(warmup=0.1)
    """How weights are stepped."""
    max_lost: float = Field(default=0.05, ge=0, le=1)
    """Share of the rows that may be left out for their length; more stops the stage."""
    samples: NonNegativeInt = 4
    """Held-out rows that are shown."""
