"""A setting under the name that another toolkit has for it is answered with ours."""

from pathlib import Path

import pytest

from alignkit.contract.row_settings import DemonstrationSettings, ScoreSettings
from alignkit.contract.settings import Settings
from alignkit.errors import RecipeError
from alignkit.methods.grpo import GRPOSettings
from alignkit.methods.ppo import PPOSettings
from alignkit.plan.planner import make_plan
from alignkit.plugins import load_plugins
from alignkit.recipe.other_names import INSTEAD, REMARKS, THEIRS, has_setting, other_name
from alignkit.sources.source import PolicyOptions, RecordOptions

TRL = {
    (DemonstrationSettings, "per_device_train_batch_size"): "batch, for all devices and passes together",
    (DemonstrationSettings, "num_train_epochs"): "epochs",
    (PPOSettings, "num_ppo_epochs"): "epochs",
    (PPOSettings, "kl_coef"): "kl.coef",
    (PPOSettings, "init_kl_coef"): "kl.coef",
    (PPOSettings, "cliprange"): "clip",
    (PPOSettings, "cliprange_value"): "critic.clip",
    (PPOSettings, "vf_coef"): "critic.weight",
    (PPOSettings, "response_length"): "generation.max_new_tokens",
    (GRPOSettings, "num_generations"): "answers",
    (GRPOSettings, "max_completion_length"): "generation.max_new_tokens",
    (GRPOSettings, "beta"): "kl.coef",
    (GRPOSettings, "epsilon_high"): "clip_high",
    (GRPOSettings, "importance_sampling_level"): "ratio",
    (GRPOSettings, "mask_truncated_completions"): "generation.unfinished",
    (GRPOSettings, "bf16"): 'precision, which is "auto", "bf16" or "fp32"',
    (ScoreSettings, "center_rewards_coefficient"): "centering",
    (ScoreSettings, "lr_scheduler_type"): "optimisation.schedule",
    (ScoreSettings, "warmup_ratio"): "optimisation.warmup",
}
PEFT = {
    (DemonstrationSettings, "r"): "lora.rank",
    (DemonstrationSettings, "lora_alpha"): "lora.alpha",
    (DemonstrationSettings, "target_modules"): "lora.targets",
    (PPOSettings, "peft_config"): "lora",
}
AXOLOTL = {
    (DemonstrationSettings, "sequence_len"): "max_length",
    (DemonstrationSettings, "micro_batch_size"): "batch, for all devices and passes together",
    (DemonstrationSettings, "lora_r"): "lora.rank",
    (DemonstrationSettings, "adapter"): "lora",
    (RecordOptions, "val_set_size"): "held_out",
    (PolicyOptions, "load_in_4bit"): 'load, as "4bit"',
}
LLAMAFACTORY = {
    (DemonstrationSettings, "cutoff_len"): "max_length",
    (DemonstrationSettings, "lora_rank"): "lora.rank",
    (PPOSettings, "ppo_target"): "kl.target",
    (RecordOptions, "max_samples"): "rows",
}


@pytest.mark.parametrize(
    ("kind", "name", "ours"),
    [(*key, ours) for family in (TRL, PEFT, AXOLOTL, LLAMAFACTORY) for key, ours in family.items()],
)
def test_a_name_of_another_toolkit_has_one_here(kind: type[Settings], name: str, ours: str) -> None:
    assert other_name(name, kind) == f"its name here is {ours}"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ScoreSettings, "num_generations"),
        (ScoreSettings, "init_kl_coef"),
        (RecordOptions, "bf16"),
        (PPOSettings, "lr2"),
    ],
)
def test_what_a_method_lacks_is_not_proposed(kind: type[Settings], name: str) -> None:
    assert other_name(name, kind) == ""


def test_accumulation_is_no_setting_and_it_is_told_why() -> None:
    assert other_name("gradient_accumulation_steps", DemonstrationSettings) == (
        "leave it out: passes are sized by the memory there is, and batch is the whole of an optimiser step"
    )


def test_every_name_of_ours_is_a_setting_that_something_installed_has() -> None:
    kinds = [one.settings for one in load_plugins().methods.values()] + [RecordOptions, PolicyOptions]

    lacking = [ours for ours in THEIRS if not any(has_setting(kind, ours) for kind in kinds)]
    lacking += [needed for needed, _ in INSTEAD.values() if not any(has_setting(kind, needed) for kind in kinds)]

    assert lacking == []
    assert REMARKS.keys() <= {name for names in THEIRS.values() for name in names.split()}


RECIPE = """
[sources]
base = { policy = "builtin:tiny" }
demos = { demonstrations = "builtin:reviews" }
[defaults]
cutoff_len = 512
[stage.tune]
method = "sft"
num_train_epochs = 3
sft.lora.lora_alpha = 32
sft.per_device_train_batch_size = 8
"""


def test_a_recipe_says_ours_wherever_theirs_stands(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE, "utf-8")

    with pytest.raises(RecipeError) as refused:
        make_plan(tmp_path / "mine.toml", runs=tmp_path / "runs")

    assert sorted(map(str, refused.value.problems)) == [
        "mine.toml:10: stage 'tune': sft.lora.lora_alpha: unknown setting; its name here is lora.alpha",
        "mine.toml:11: stage 'tune': sft.per_device_train_batch_size: unknown setting; "
        "its name here is batch, for all devices and passes together",
        "mine.toml:6: defaults.cutoff_len: no method has this setting; its name here is max_length",
        "mine.toml:9: stage 'tune': unknown key 'num_train_epochs'; "
        "its name here is epochs; settings stand under the method's name: sft.NAME",
    ]
