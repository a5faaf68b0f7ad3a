"""The tables of papers as recipes: they are planned, their small editions hold, and a wrong sign is noticed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


@pytest.mark.parametrize("smoke", [True, False])
@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_is_planned_with_what_it_expects(
    name: str, smoke: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit.use.expected.pin", lambda *_: None)  # commits of the hub stay unknown

    assert plan_expected(name, smoke=smoke, runs=tmp_path).expected


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results of the small edition of `verifiable`, which holds."""
    runs = tmp_path_factory.mktemp("verifiable")
    done = reproduce("verifiable", "--runs", str(runs))
    assert done.exit_code == 0, done.output
    return runs


def without(runs: Path, folder: Path, *stages: str) -> Path:
    """Return a copy of a folder of results in which some stages have not run yet."""
    shutil.copytree(runs, folder, symlinks=True)
    for pattern in stages:
        for stage in (folder / "stages").glob(pattern):
            shutil.rmtree(stage)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_wrong_sign_in_grpo_turns_verifiable_red(
    verified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right: Callable[..., Any] = losses.group_advantages
    monkeypatch.setattr(losses, "group_advantages", lambda *given: -right(*given))

    done = reproduce("verifiable", "--runs", str(without(verified, tmp_path / "runs", *TRAINED)))

    assert done.exit_code == 1
    assert "is not reproduced: grpo/passes/pass@1 minus start/passes/pass@1 is -" in done.stderr
