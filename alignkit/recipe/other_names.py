"""Names that other toolkits have for our settings: TRL, PEFT, axolotl and LlamaFactory."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import get_args

from alignkit.contract.settings import Settings

THEIRS: Mapping[str, str] = {
    "batch": "per_device_train_batch_size train_batch_size batch_size micro_batch_size rollout_batch_size",
    "minibatches": "num_mini_batches mini_batch_size",
    "epochs": "num_train_epochs num_epochs n_epochs num_ppo_epochs ppo_epochs num_iterations max_steps",
    "updates": "max_steps total_episodes num_train_epochs num_epochs rounds num_rounds",
    "learning_rate": "lr peak_lr",
    "critic.learning_rate": "value_lr critic_lr critic_learning_rate",
    "max_length": "cutoff_len sequence_len max_seq_length max_seq_len model_max_length max_prompt_length block_size",
    "generation.max_new_tokens": "max_completion_length response_length max_new_tokens max_response_length",
    "max_new_tokens": "max_completion_length response_length",
    "generation.temperature": "temperature",
    "generation.penalty": "missing_eos_penalty non_eos_penalty",
    "answers": "num_generations num_return_sequences rloo_k n_samples_per_prompt num_sample_generations",
    "kl.coef": "kl_coef init_kl_coef beta kl_beta kl_penalty_coef",
    "kl.target": "target_kl target ppo_target kl_target",
    "kl.horizon": "horizon kl_horizon",
    "beta": "pref_beta dpo_beta rl_beta kto_beta",
    "loss": "loss_type loss_weights pref_loss rl_loss",
    "by_token": "length_normalization average_log_prob",
    "tail": "ld_alpha",
    "weighted": "use_weighting",
    "divergence": "f_divergence_type",
    "alpha": "f_alpha_divergence_coef",
    "sft": "cpo_alpha rpo_alpha pref_ftx",
    "keep_chosen": "dpop_lambda",
    "average": "loss_type",
    "label_smoothing": "dpo_label_smoothing rl_label_smoothing label_smoothing_factor",
    "desirable_weight": "kto_chosen_weight kto_desirable_weight",
    "undesirable_weight": "kto_rejected_weight kto_undesirable_weight",
    "clip": "cliprange clip_range epsilon eps_clip clip_ratio",
    "clip_high": "epsilon_high cliprange_high clip_ratio_high",
    "dual_clip": "delta clip_ratio_c",
    "ratio": "importance_sampling_level",
    "scale": "scale_rewards",
    "uncertain": "top_entropy_quantile",
    "dynamic_sampling": "filter_groups",
    "kl.term": "kl_loss_type kl_estimator",
    "generation.unfinished": "mask_truncated_completions",
    "critic.clip": "cliprange_value value_clip vf_clip",
    "critic.weight": "vf_coef value_loss_coef",
    "gamma": "discount simpo_gamma gamma_beta_ratio",
    "lam": "lambd gae_lambda",
    "reward.whiten": "whiten_rewards ppo_whiten_rewards normalize_reward",
    "reward.clip": "reward_clip reward_clip_range",
    "centering": "center_rewards_coefficient",
    "learn": "assistant_only_loss completion_only_loss train_on_inputs train_on_prompt",
    "lora.rank": "r lora_r lora_rank peft_r",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.targets": "target_modules lora_target_modules lora_target lora_target_linear",
    "lora": "peft_config use_peft use_lora adapter finetuning_type",
    "optimisation.schedule": "lr_scheduler_type lr_scheduler schedule",
    "optimisation.warmup": "warmup_ratio warmup_steps num_warmup_steps warmup",
    "optimisation.weight_decay": "weight_decay",
    "optimisation.max_grad_norm": "max_grad_norm gradient_clipping grad_clip",
    "optimisation.beta1": "adam_beta1",
    "optimisation.beta2": "adam_beta2",
    "precision": "bf16 fp16 tf32 torch_dtype dtype mixed_precision pure_bf16",
    "rows": "max_samples max_train_samples limit",
    "held_out": "val_set_size val_size test_size eval_dataset test_split",
    "config": "subset dataset_config dataset_name_config",
    "columns": "field_messages dataset_text_field dataset_columns",
    "load": "load_in_4bit load_in_8bit quantization_bit",
}
"""Our name of a setting, with its group -> the names that others have for it."""

REMARKS: Mapping[str, str] = {
    "warmup_steps": "as a share of all steps",
    "num_warmup_steps": "as a share of all steps",
    "max_steps": "which is counted in passes over the rows, or in updates",
    "per_device_train_batch_size": "for all devices and passes together",
    "micro_batch_size": "for all devices and passes together",
    "mini_batch_size": "as the number of minibatches in a batch",
    "max_prompt_length": "of the prompt with its answer",
    "bf16": 'which is "auto", "bf16" or "fp32"',
    "fp16": 'which is "auto", "bf16" or "fp32"; fp16 is not trained in',
    "assistant_only_loss": "answers alone are learnt always",
    "completion_only_loss": "answers alone are learnt always",
    "train_on_inputs": "answers alone are learnt always",
    "train_on_prompt": "answers alone are learnt always",
    "f_alpha_divergence_coef": "as 1 less that",
    "gamma_beta_ratio": "as that times beta",
    "load_in_4bit": 'as "4bit"',
    "load_in_8bit": 'as "8bit"',
}
"""Names whose values mean something else here -> what."""

INSTEAD: Mapping[str, tuple[str, str]] = {
    "gradient_accumulation_steps": (
        "batch",
        "leave it out: passes are sized by the memory there is, and {} is the whole of an optimiser step",
    ),
    "gradient_checkpointing": (
        "precision",
        "leave it out: it is decided by the memory there is, or activation_checkpointing says so in machines.toml",
    ),
    "packing": ("batch", "leave it out: rows are packed wherever the model allows it"),
    "sample_packing": ("batch", "leave it out: rows are packed wherever the model allows it"),
    "optim": ("optimisation", "leave it out: weights are stepped by AdamW"),
    "optimizer": ("optimisation", "leave it out: weights are stepped by AdamW"),
    "load_in_4bit": ("precision", 'write load = "4bit" in the source of the policy'),
    "load_in_8bit": ("precision", 'write load = "8bit" in the source of the policy'),
    "deepspeed": ("precision", "leave it out: machines.toml says how many processes there are, and --on takes one"),
    "fsdp": ("precision", "leave it out: machines.toml says how many processes there are, and --on takes one"),
    "output_dir": ("precision", "leave it out: --runs says where results lie"),
    "logging_steps": ("precision", "leave it out: every step is logged"),
    "save_steps": ("precision", "leave it out: a checkpoint is kept every two minutes"),
    "eval_steps": ("precision", "leave it out: held-out rows are measured at the start and at the end"),
    "val_set_size": ("precision", "write held_out in the source of the rows"),
    "val_size": ("precision", "write held_out in the source of the rows"),
    "max_samples": ("precision", "write rows in the source of the rows"),
    "reward_weights": ("precision", "write weight in the source of each reward"),
    "seed": ("precision", "write seed = 17 on the stage or at the top of the recipe"),
}
"""What has no name here -> what the method must have for the advice to be right, and the advice."""

_OURS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        name: tuple(ours for ours, theirs in THEIRS.items() if name in theirs.split())
        for names in THEIRS.values()
        for name in names.split()
    }
)


def other_name(name: str, kind: type[Settings]) -> str:
    """Return what a setting that another toolkit has is called here, where `kind` has it; else nothing."""
    ours = next((path for path in _OURS.get(name, ()) if path != name and has_setting(kind, path)), None)
    if ours:
        remark = f", {REMARKS[name]}" if name in REMARKS else ""
        return f"its name here is {ours}{remark}"
    needed, advice = INSTEAD.get(name, ("", ""))
    return advice.format(needed) if needed and has_setting(kind, needed) else ""


def has_setting(kind: type[Settings], path: str) -> bool:
    """Return whether a class has a setting, given with its group."""
    name, _, rest = path.partition(".")
    field = kind.model_fields.get(name)
    if field is None or not rest:
        return field is not None
    groups = (group for group in (field.annotation, *get_args(field.annotation)) if isinstance(group, type))
    return any(issubclass(group, Settings) and has_setting(group, rest) for group in groups)
