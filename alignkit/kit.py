"""What methods are built of: models, answers, rows and trainers, all of it on torch.

`alignkit` itself is light, so that offering a method costs nothing; import these names inside the function that needs
them, as the built-in methods do.
"""

from alignkit.training.answers import answer_logprobs, fitting_prompts, sample_answers
from alignkit.training.encoding import prompt_ids, prompt_text
from alignkit.training.measures import pair_accuracy_floor
from alignkit.training.models import load_policy
from alignkit.training.rows import (
    JudgedAnswer,
    Pair,
    map_pairs,
    pair_logprobs,
    read_answers,
    read_pairs,
    sequence_logprobs,
    train_pairs,
    train_rows,
)
from alignkit.training.trainers import run_trainer, trainer_options

__all__ = [
    "JudgedAnswer",
    "Pair",
    "answer_logprobs",
    "fitting_prompts",
    "load_policy",
    "map_pairs",
    "pair_accuracy_floor",
    "pair_logprobs",
    "prompt_ids",
    "prompt_text",
    "read_answers",
    "read_pairs",
    "run_trainer",
    "sample_answers",
    "sequence_logprobs",
    "train_pairs",
    "train_rows",
    "trainer_options",
]
