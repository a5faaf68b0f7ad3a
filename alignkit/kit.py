"""What methods are built of: models, answers, rows and trainers, all of it on torch.

`alignkit` itself is light, so that offering a method costs nothing; import these names inside the function that needs
them, as the built-in methods do.
"""

from alignkit.training import losses, parallel
from alignkit.training.answers import answer_logprobs, fitting_prompts, sample_answers
from alignkit.training.arithmetic import brought
from alignkit.training.encoding import prompt_ids, prompt_text
from alignkit.training.layouts import Around, Models
from alignkit.training.losses import Count
from alignkit.training.measures import pair_accuracy_floor
from alignkit.training.models import load_policy
from alignkit.training.policy_steps import step_policy
from alignkit.training.rollouts import Rollout
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
from alignkit.training.scoring import Scored
from alignkit.training.seen import Experience, Seen
from alignkit.training.trainers import run_trainer, trainer_options
from alignkit.training.updates import Loop, Roles, Update, open_loop

__all__ = [
    "Around",
    "Count",
    "Experience",
    "JudgedAnswer",
    "Loop",
    "Models",
    "Pair",
    "Roles",
    "Rollout",
    "Scored",
    "Seen",
    "Update",
    "answer_logprobs",
    "brought",
    "fitting_prompts",
    "load_policy",
    "losses",
    "map_pairs",
    "open_loop",
    "pair_accuracy_floor",
    "pair_logprobs",
    "parallel",
    "prompt_ids",
    "prompt_text",
    "read_answers",
    "read_pairs",
    "run_trainer",
    "sample_answers",
    "sequence_logprobs",
    "step_policy",
    "train_pairs",
    "train_rows",
    "trainer_options",
]
