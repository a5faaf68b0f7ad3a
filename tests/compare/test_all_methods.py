"""`compare methods.toml`: every method that makes a policy is there, and each makes one of the same start."""

from pathlib import Path

import pytest

from alignkit import Policy, compare_recipe
from alignkit.compare.planning import plan_comparison
from alignkit.compare.variants import VariantRequest
from alignkit.plugins import load_plugins
from alignkit.recipe.packaged import find_recipe

PACKAGES = ("alignkit", "alignkit-dpo", "alignkit-online", "alignkit-distill")
TAUGHT = ("clm", "sft")
"""Methods that make the start."""
SMALL = {
    "pretrain.clm.epochs": 0.02,
    "finetune.sft.epochs": 0.05,
    "reward.reward.epochs": 0.02,
    "teacher.ppo.updates": 2,
    "teacher.ppo.batch": 16,
    "scores.evaluate.prompts": 16,
}
"""What makes the stages around the compared one short."""


def offered() -> list[str]:
    plugins = load_plugins()
    return [
        name
        for name, method in sorted(plugins.methods.items())
        if issubclass(method.produces, Policy) and plugins.origins[f"method:{name}"].package in PACKAGES
    ]


def shortened(name: str) -> dict[str, object]:
    """Return settings that make a method take two or three steps."""
    fields = load_plugins().methods[name].settings.model_fields
    if "updates" in fields:
        return {f"align.{name}.updates": 2, f"align.{name}.batch": 16}
    return {f"align.{name}.epochs": 0.02}


def test_every_method_that_aligns_has_settings_there(tmp_path: Path) -> None:
    names = [name for name in offered() if name not in TAUGHT]

    planned = plan_comparison("methods", VariantRequest(methods=names), runs=tmp_path)

    assert len(names) >= 17
    tables = find_recipe("methods").read_text("utf-8")
    assert [name for name in names if f"\n{name}.learning_rate" not in tables] == []
    starts = {planned.plan.stage(one.stages[0]).inputs["policy"] for one in planned.contenders}
    assert starts == {("finetune",)}


@pytest.mark.slow
def test_every_method_and_some_papers_run_in_one_comparison(tmp_path: Path) -> None:
    names = offered()
    small = {key: value for name in names for key, value in shortened(name).items()}

    found = compare_recipe(
        "methods", methods=[*names, "dapo", "gspo", "ipo", "ld-dpo"], set=SMALL | small, runs=tmp_path
    )

    assert [line.name for line in found.variants] == [*names, "dapo", "gspo", "ipo", "ld-dpo"]
