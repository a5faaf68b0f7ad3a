"""What methods are built of: models, answers, rows and trainers, all of it on torch.

`alignkit` itself is light, so that offering a method costs nothing; import these names inside the function that needs
them, as the built-in methods do.
"""

from alignkit.noise import area_interval as area_interval
from alignkit.training import losses, parallel
from alignkit.training.answers import answer_logprobs, fitting_prompts, in_passes, sample_answers
from alignkit.training.arithmetic import brought
from alignkit.training.configs import positions
from alignkit.training.demonstrated import (
    DemonstrationRows,
    read_demonstrations,
    save_taught,
    show_taught,
    taught_perplexity,
    tell_taught,
)
from alignkit.training.distributions import Readers
from alignkit.training.encoding import prompt_ids
from alignkit.training.layouts import Around, Models, sample as draw_answers
from alignkit.training.likelihood import learnt_tokens, parted_labels
from alignkit.training.losses import Count
from alignkit.training.measures import pair_accuracy_floor
from alignkit.training.mixed_rows import in_order_of
from alignkit.training.models import load_for_reward_training, load_policy, load_reference
from alignkit.training.pair_values import with_values
from alignkit.training.picking import picked_samples
from alignkit.training.policy_steps import step_answers, step_policy, whole_answer_loss
from alignkit.training.roles import Opened, Roles, longest_answer, open_roles
from alignkit.training.rollouts import Rollout, learnt_mask
from alignkit.training.row_texts import answered_text, prompt_text
from alignkit.training.rows import (
    JudgedAnswer,
    Pair,
    Teaching,
    map_pairs,
    pair_logprobs,
    read_answers,
    read_pairs,
    sequence_logprobs,
    teach,
    train_pairs,
    train_rows,
)
from alignkit.training.scored_pairs import (
    TokenPairRows,
    read_token_pairs,
    save_scorer,
    score_pairs,
    show_scores,
    tell_scores,
)
from alignkit.training.scoring import Scored
from alignkit.training.seen import Experience, Seen, shaped
from alignkit.training.tokenizers import check_same_tokens
from alignkit.training.trainers import run_trainer, seen_by_all, trainer_options, trl_makes_its_logits
from alignkit.training.updates import Loop, Update, begin_loop, open_loop, prompts_of_update
from alignkit.training.warning_signs import WarningSigns

__all__ = [
    "Around",
    "Count",
    "DemonstrationRows",
    "Experience",
    "JudgedAnswer",
    "Loop",
    "Models",
    "Opened",
    "Pair",
    "Readers",
    "Roles",
    "Rollout",
    "Scored",
    "Seen",
    "Teaching",
    "TokenPairRows",
    "Update",
    "WarningSigns",
    "answer_logprobs",
    "answered_text",
    "area_interval",
    "begin_loop",
    "brought",
    "check_same_tokens",
    "draw_answers",
    "fitting_prompts",
    "in_order_of",
    "in_passes",
    "learnt_mask",
    "learnt_tokens",
    "load_for_reward_training",
    "load_policy",
    "load_reference",
    "longest_answer",
    "losses",
    "map_pairs",
    "open_loop",
    "open_roles",
    "pair_accuracy_floor",
    "pair_logprobs",
    "parallel",
    "parted_labels",
    "picked_samples",
    "positions",
    "prompt_ids",
    "prompt_text",
    "prompts_of_update",
    "read_answers",
    "read_demonstrations",
    "read_pairs",
    "read_token_pairs",
    "run_trainer",
    "sample_answers",
    "save_scorer",
    "save_taught",
    "score_pairs",
    "seen_by_all",
    "sequence_logprobs",
    "shaped",
    "show_scores",
    "show_taught",
    "step_answers",
    "step_policy",
    "taught_perplexity",
    "teach",
    "tell_scores",
    "tell_taught",
    "train_pairs",
    "train_rows",
    "trainer_options",
    "trl_makes_its_logits",
    "whole_answer_loss",
    "with_values",
]
