"""A method of anybody's gets what a recipe bounds, and a run tells whether it holds."""

from pathlib import Path

import pytest

from alignkit import run_recipe
from alignkit.compare.planning import plan_comparison
from alignkit.compare.variants import VariantRequest

PLUGIN = """
from alignkit import Reward, Settings, Stage, Text, hookimpl, method

class SpendSettings(Settings):
    \'\'\'Nothing to set.\'\'\'

@method("spend", results=("cost/{costs}",))
def spend(settings: SpendSettings, stage: Stage, *, costs: tuple[Reward, ...] = ()) -> Text:
    \'\'\'Spend three of each cost.\'\'\'
    for cost in costs:
        bounds = cost.constraint.min, cost.constraint.max
        stage.measure("cost/" + cost.name, 5.0, [3.0, 3.1, 2.9] * 20, better="", bounds=bounds)
    return stage.save_rows(Text, [{"text": "spent"}])

@hookimpl
def alignkit_methods():
    return [spend]
"""

RECIPE = """
name = "thrifty"
[sources]
money = { reward = "function:length", settings.target = 5 }
[stage.first]
method = "spend"
constraints.money.max = 2.5
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    (tmp_path / "spend.py").write_text(PLUGIN)
    (tmp_path / "thrifty.toml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize(("most", "holds"), [(2.5, False), (3.0, True)])
def test_a_run_tells_whether_a_bound_holds(desk: Path, most: float, holds: bool) -> None:
    run = run_recipe("thrifty.toml", set={"first.constraints.money.max": most}, inline=True, plugins=["spend.py"])

    (result,) = run.stage("first").results
    assert (result.name, result.bounds, result.holds) == ("cost/money", (None, most), holds)
    assert run.kept.stage("first").bounds == {"cost/money": most}
    assert ("breaks a bound" in run.report.read_text("utf-8")) is not holds


def test_two_bounds_of_one_reward_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = VariantRequest(stage="align", vary={"align.constraints.brevity.min": [-0.1, -0.2]})

    made = plan_comparison("constrained.toml", asked)

    stages = [made.plan.stage(name) for contender in made.contenders for name in contender.stages]
    assert [stage.constraints["brevity"].min for stage in stages] == [-0.1, -0.2]
    assert [stage.inputs["costs"] for stage in stages] == [("brevity",)] * 2
