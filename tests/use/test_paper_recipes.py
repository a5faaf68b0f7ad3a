"""The tables of papers as recipes: they are planned, their small editions hold, and a wrong sign is noticed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from alignkit_dpo import preference_losses
from click.testing import CliRunner, Result

from alignkit.cli import main
from alignkit.recipe.packaged import packaged_recipes
from alignkit.training import losses
from alignkit.use.expected import plan_expected

PAPERS = [path.stem for path in packaged_recipes().values() if path.parent.name == "papers"]
TRAINED = ("align*", "scores*", "passes*")
"""The stages that a wrong loss changes, and those that measure them."""


def reproduce(name: str, *words: str) -> Result:
    return CliRunner().invoke(main, ["reproduce", name, "--smoke", "--inline", "-q", *words], prog_name="alignkit")


@pytest.mark.parametrize("smoke", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_is_planned_with_what_it_expects(
    name: str, smoke: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit.use.expected.pin", lambda *_: None)  # commits of the hub stay unknown

    assert plan_expected(name, smoke=smoke, runs=tmp_path).expected


def test_a_small_edition_trains_and_measures_its_own_rewards_alone(tmp_path: Path) -> None:
    planned = plan_expected("overoptimisation", smoke=True, runs=tmp_path)

    assert [stage.name for stage in planned.plan.stages if stage.wanted and "proxy" in stage.name] == ["proxy-200-a"]
    assert planned.plan.stage("scores").inputs["rewards"] == ("truth", "proxy-200-a")


class Slip(NamedTuple):
    """A loss with a wrong sign, and the figure that it spoils."""

    module: ModuleType
    function: str
    wrong: Callable[..., Callable[..., Any]]
    """From the right function to the wrong one."""
    figure: str


def turned(right: Callable[..., Any]) -> Callable[..., Any]:
    """Return advantages with the wrong sign, and returns as they are."""

    def wrong(*given: Any) -> Any:
        advantages, returns = right(*given)
        return -advantages, returns

    return wrong


SLIPS = {
    "overoptimisation": Slip(losses, "estimate_advantages", turned, "pairs-200-a/peak_reward minus start"),
    "back-to-basics": Slip(losses, "estimate_advantages", turned, "ppo-0-95/reward minus start"),
    "dpo-frontier": Slip(
        preference_losses,
        "sigmoid",
        lambda right: lambda margin, smoothing: right(-margin, smoothing),
        "dpo-1/reward minus start",
    ),
    "verifiable": Slip(
        losses, "group_advantages", lambda right: lambda *given: -right(*given), "grpo/passes/pass@1 minus start"
    ),
    "label-noise": Slip(
        preference_losses,
        "sigmoid",
        lambda right: lambda margin, smoothing: right(-margin, smoothing),
        "dpo-0/reward minus start",
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SLIPS)
def test_a_small_edition_holds_and_a_wrong_sign_turns_it_red(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slip = SLIPS[name]

    done = reproduce(name, "--runs", str(tmp_path))

    assert done.exit_code == 0, done.output

    for stage in (stage for pattern in TRAINED for stage in (tmp_path / "stages").glob(pattern)):
        shutil.rmtree(stage)
    monkeypatch.setattr(slip.module, slip.function, slip.wrong(getattr(slip.module, slip.function)))

    done = reproduce(name, "--runs", str(tmp_path))

    assert done.exit_code == 1
    assert f"is not reproduced: {slip.figure}" in done.stderr
