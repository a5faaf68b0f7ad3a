"""A kept run is checked, and done again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from light_recipes import PLUGIN, light_recipe

from alignkit import run_recipe
from alignkit.cli import main
from alignkit.contract.events import Result as Figure
from alignkit.store.durable import read_json, write_json
from alignkit.store.runs import KeptRun, open_run
from alignkit.use.reproduction import RepeatedStage, _within, compare_runs

RECIPE = light_recipe(top='result = "second"', spare=True)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeptRun:
    """A run of a light recipe, with settings changed and a seed of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    Path("light.toml").write_text(RECIPE)
    return light()


def light(**more: Any) -> KeptRun:
    changes = {"first.count.steps": 5, "second.shout.mark": "?"}
    return open_run(run_recipe("light.toml", set=changes, seed=7, inline=True, plugins=[PLUGIN], **more).folder)


def alignkit(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="alignkit")


def test_a_run_comes_out_again_with_its_changes_and_its_seed(kept: KeptRun) -> None:
    Path("light.toml").unlink()

    done = alignkit("reproduce", "light", "--runs", "again")

    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "reproduced: 1 figures hold, 2 of 2 stages made the very same"
    again = open_run("again/light")
    assert (again.seed, again.overrides) == (7, kept.overrides)
    assert [stage.wanted for stage in again.stages] == [True, True, False]
    assert [result.after for result in again.stage("first").results] == [5.0]


def test_what_was_run_up_to_a_stage_is_run_up_to_it_again(kept: KeptRun) -> None:
    first = light(until="first", runs="other")

    done = alignkit("reproduce", first.folder, "--runs", "again")

    assert done.exit_code == 0, done.stderr
    assert [stage.wanted for stage in open_run("again/light").stages] == [True, False, False]


def test_a_run_that_comes_out_otherwise_is_told(kept: KeptRun) -> None:
    facts = read_json(kept.folder / "run.json")
    facts["stages"]["first"] |= {"content": "0" * 64}
    facts["stages"]["first"]["results"][0]["after"] = 40.0
    facts["versions"] |= {"torch": "1.0"}
    write_json(kept.folder / "run.json", facts)

    done = alignkit("reproduce", "light", "--runs", "again")

    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {kept.id} is not reproduced: first: steps was 40 and is 5, not within 1% of it"
    )
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "first steps 40 5 not 1% of it" in lines
    assert "first others" in lines
    assert "second the same" in lines
    assert any(line.startswith("torch 1.0 ") for line in lines)


def test_other_weights_on_the_same_machine_are_no_reproduction(kept: KeptRun) -> None:
    light(runs="again")
    stage = open_run("again/light").stage("second")
    assert stage.folder is not None
    facts = json.loads((stage.folder / "stage.json").read_text())
    facts["artifact"]["files"]["data.jsonl"]["sha256"] = "0" * 64
    facts.pop("seal")
    write_json(stage.folder / "stage.json", facts)

    found = compare_runs(kept, open_run("again/light"))

    assert found.stages == [RepeatedStage("first", True, True), RepeatedStage("second", False, True)]
    assert found.wrong == ["second: its weights are others, although versions, machine and data are the same"]


@pytest.mark.parametrize(
    ("now", "interval", "expected"),
    [
        (2.0, None, ("equal", True)),
        (None, None, ("equal", False)),
        (2.01, None, ("1% of it", True)),
        (2.1, None, ("1% of it", False)),
        (2.1, (1.8, 2.2), ("1.8 to 2.2 (95 %)", True)),
        (2.3, (1.8, 2.2), ("1.8 to 2.2 (95 %)", False)),
    ],
)
def test_a_figure_is_held_against_its_interval(
    now: float | None, interval: tuple[float, float] | None, expected: tuple[str, bool]
) -> None:
    assert _within(Figure("first", "reward", 1.0, 2.0, interval=interval), now) == expected


def test_its_own_folder_of_results_is_refused(kept: KeptRun) -> None:
    done = alignkit("reproduce", "light", "--runs", "runs")

    assert (done.exit_code, done.stderr) == (
        2,
        "error: runs: in its own folder of results all stages would be reused; name another folder with --runs\n",
    )


def test_a_run_is_verified_by_its_name(kept: KeptRun) -> None:
    light(until="first", runs="runs")

    whole, first = alignkit("verify", kept.id), alignkit("verify", "light")

    assert (whole.exit_code, first.exit_code) == (0, 0), whole.stderr
    assert [line.split()[0].rpartition("-")[0] for line in whole.stdout.splitlines()[1:]] == ["first", "second"]
    assert len(first.stdout.splitlines()) == 2


def test_what_is_damaged_gone_or_made_again_in_a_run_is_told(kept: KeptRun) -> None:
    first, second = (kept.stage(name).folder for name in ("first", "second"))
    assert first is not None
    assert second is not None
    data = first / "artifact" / "data.jsonl"
    data.write_text(data.read_text().replace("1", "2"))
    shutil.rmtree(second)

    done = alignkit("verify", "light")

    assert done.exit_code == 1
    assert "the finished stage is damaged: data.jsonl is not as it was written" in done.stderr
    assert f"error: {second}: the finished stage is gone; run the recipe again" in done.stderr


def test_a_stage_that_was_made_again_and_came_out_otherwise_is_told(kept: KeptRun) -> None:
    facts = read_json(kept.folder / "run.json")
    facts["stages"]["first"] |= {"content": "0" * 64}
    write_json(kept.folder / "run.json", facts)

    done = alignkit("verify", "light")

    assert done.exit_code == 1
    assert f"it has been made again since {kept.id}, and came out otherwise; run the recipe again" in done.stderr
