"""Settings of methods that ask policies held-out prompts: what is equal in all of them stands here once."""

from pydantic import Field, PositiveFloat, PositiveInt

from alignkit.contract.settings import Precision, Settings


class AskingSettings(Settings):
    """Settings of every method that lets policies answer the same held-out prompts."""

    prompts: PositiveInt = 256
    """How many held-out prompts are asked; more make the intervals narrower."""
    max_new_tokens: PositiveInt = 64
    """Answers are cut after so many tokens."""
    temperature: PositiveFloat = 1.0
    """Divides the logits; 1 samples from the policy as it was trained."""
    max_length: PositiveInt | None = None
    """Longest prompt with its answer, in tokens; a prompt that leaves no room for `max_new_tokens` in one of the
    policies is left out for all: they must answer the same prompts. Unset: what the model reads, at most 1024."""
    max_lost: float = Field(default=0.05, ge=0, le=1)
    """Share of the prompts that may be left out for their length; more stops the stage."""
    precision: Precision = "auto"
    """Arithmetic of the models."""
