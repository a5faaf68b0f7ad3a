"""Trackers: they get each figure once, whatever is interrupted; what they do neither stops nor slows a run."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from light_recipes import desk_with, light_recipe

from alignkit import Event, StageError, Warned, run_recipe
from alignkit.cli import main
from alignkit.errors import PluginError, RecipeError
from alignkit.plan.planner import make_plan
from alignkit.plugins import load_plugins
from alignkit.run import tracking
from alignkit.run.run_result import RunResult
from alignkit.testing import FIGURES, SAMPLE, SETTINGS, track

LIGHT = Path(__file__).parents[1] / "light"
PLUGINS = [LIGHT / "methods.py", LIGHT / "trackers.py"]
RECIPE = light_recipe(top='trackers = ["notebook"]')


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a recipe in it."""
    return desk_with(RECIPE, tmp_path, monkeypatch)


def run(changes: dict[str, Any] | None = None, **more: Any) -> RunResult:
    return run_recipe("light.toml", set=changes, plugins=PLUGINS, **({"inline": True} | more))


def notes(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "notes.jsonl").read_text().splitlines()]


def figures(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = defaultdict(list)
    for _, step, told in (note for note in notes(folder) if note[0] == "log"):
        for name, value in told.items():
            found[name].append((step, value))
    return found


def of(result: RunResult) -> Path:
    return result.folder / "trackers" / "notebook"


def test_a_tracker_has_each_figure_of_an_interrupted_run_once(here: Path) -> None:
    tracked = track(load_plugins(PLUGINS).tracker("notebook"), here)

    told = notes(tracked.folder)
    assert figures(tracked.folder) == {name: list(values.items()) for name, values in FIGURES.items()}
    assert [note[1:] for note in told if note[0] == "open"] == [
        ["tracked-2026-01-01T00-00-00-0000", resumed, SETTINGS] for resumed in (False, True)
    ]
    assert [note[1] for note in told if note[0] == "finish"] == ["stopped", "finished"]
    assert [note[1:] for note in told if note[0] == "show"] == [["finetune", {k: [v] for k, v in SAMPLE.items()}]]


def test_the_tracker_of_the_page_works(here: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "trackers.md").read_text("utf-8")
    (here / "csv_tracker.py").write_text(page.partition("```python\n")[2].partition("```")[0])

    run = track(load_plugins([here / "csv_tracker.py"]).tracker("csv"), here)

    lines = (run.folder / "figures.csv").read_text().splitlines()
    assert lines == [f"{step},{name},{value}" for name, values in FIGURES.items() for step, value in values.items()]


@pytest.mark.parametrize("inline", [True, False])
def test_a_run_is_tracked_with_its_settings_figures_results_and_samples(inline: bool) -> None:
    result = run(inline=inline)

    opened, *others, last = notes(of(result))
    assert opened[:3] == ["open", f"light-{result.folder.name}", False]
    assert opened[3]["first/steps"] == 3
    assert opened[3]["first/method"] == "count"
    assert figures(of(result))["first/loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert figures(of(result))["first/steps/after"] == [(3, 3.0)]
    assert ["show", "first", {"prompt": ["how far?"], "answer": ["3"]}] in others
    assert last == ["finish", "finished"]


@pytest.mark.parametrize("inline", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_that_goes_on_is_the_same_one_for_the_tracker(here: Path, inline: bool) -> None:
    failing = {"first.count.fail": "bug"}
    with pytest.raises(StageError):
        run(failing, inline=inline)

    result = run(failing, inline=inline)

    (begun,) = (here / "runs" / "light").glob("2*/trackers/notebook")
    told = notes(begun)
    assert not of(result).exists()
    assert figures(begun)["first/loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert [note[1:3] for note in told if note[0] == "open"] == [
        [f"light-{begun.parents[1].name}", resumed] for resumed in (False, True)
    ]
    assert [note[1] for note in told if note[0] == "finish"] == ["failed", "finished"]


def test_a_run_after_a_finished_one_is_another_one_for_the_tracker() -> None:
    first = run()

    second = run()

    assert notes(of(second))[0][1:3] == [f"light-{second.folder.name}", False]
    assert figures(of(second)) == {"first/steps/before": [(0, 0.0)], "first/steps/after": [(0, 3.0)]}
    assert len([note for note in notes(of(first)) if note[0] == "open"]) == 1


def test_a_tracker_reruns_nothing() -> None:
    run({"trackers": []})

    assert [stage.reused for stage in run().stages] == [True, True]


def warnings(changes: dict[str, Any]) -> list[str]:
    heard: list[Event] = []
    run(changes, observers=[heard.append])
    return [event.problem for event in heard if isinstance(event, Warned)]


def test_a_tracker_that_fails_is_left_out_with_one_warning() -> None:
    told = warnings({"trackers": ["liar", "notebook"], "first.count.seconds": 0.2})

    assert told == ["the observer tracker liar failed (SystemExit: no server) and is left out from now on"]


def test_a_tracker_that_hangs_is_given_up_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 0.1)

    told = warnings({"trackers": "sleeper", "first.count.seconds": 0.2})

    problem = "the observer tracker sleeper failed (TimeoutError: it has not answered for 0.1 s)"
    assert told == [f"{problem} and is left out from now on"]


def test_a_tracker_that_is_far_behind_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LONGEST", 5)

    told = warnings({"trackers": "sleeper", "first.count.steps": 20})

    problem = "the observer tracker sleeper failed (TimeoutError: 5 figures and samples wait for it)"
    assert told == [f"{problem} and is left out from now on"]


def test_the_end_of_a_run_waits_a_short_time_for_a_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LAST", 0.5)
    began = time.monotonic()

    told = warnings({"trackers": ["sleeper", "slow"]})

    late = "failed at the end of the run (TimeoutError: it had not taken all figures 0.5 s after the end of the run)"
    assert told == [f"the tracker {name} {late}" for name in ("sleeper", "slow")]
    assert time.monotonic() - began < 5


def test_a_process_ends_although_a_tracker_hangs() -> None:
    code = (
        "import alignkit, alignkit.run.tracking as tracking\ntracking.LAST = 0.2\n"
        f"plugins = {list(map(str, PLUGINS))}\n"
        "alignkit.run_recipe('light.toml', set={'trackers': 'sleeper'}, plugins=plugins, inline=True)"
    )

    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("notebok", "did you mean 'notebook'?"),
        ("nowhere", "pip install alignkit-nowhere"),
    ],
)
def test_an_unknown_tracker_is_refused_before_anything_runs(here: Path, name: str, remedy: str) -> None:
    with pytest.raises(RecipeError) as raised:
        run({"trackers": [name]})

    assert str(raised.value) == f"--set trackers: no plugin offers a tracker {name!r}; {remedy}"
    assert not (here / "runs" / "light").exists()


def test_trackers_are_chosen_on_the_command_line_and_listed(here: Path) -> None:
    words = [word for plugin in PLUGINS for word in ("-p", str(plugin))]
    (here / "light.toml").write_text(RECIPE.replace('"notebook"', '"nowhere"'))

    ran = CliRunner().invoke(main, ["recipe", "light.toml", "--inline", "--track", "notebook", *words])
    listed = CliRunner().invoke(main, ["methods", *words[2:]])

    assert ran.exit_code == 0, ran.output
    assert len(list((here / "runs" / "light").glob("2*/trackers/notebook/notes.jsonl"))) == 1
    assert "Write what it is told into a file." in listed.output


def test_a_tracker_whose_library_is_missing_is_refused_with_the_line_that_installs_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(here)
    monkeypatch.delenv("ALIGNKIT_PLUGINS", raising=False)
    info = here / "alignkit_ledger-1.0.dist-info"
    info.mkdir()
    needs = "Requires-Dist: alignkit\nRequires-Dist: nowhere-to-be-had>=2\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: alignkit-ledger\nVersion: 1.0\n{needs}")
    (info / "entry_points.txt").write_text("[alignkit]\nledger = ledger_of_this_test\n")
    (here / "ledger_of_this_test.py").write_text(
        (LIGHT / "trackers.py").read_text().replace('@tracker("notebook")', '@tracker("ledger")')
    )

    with pytest.raises(PluginError) as raised:
        make_plan("light.toml", set={"trackers": "ledger"}, plugins=PLUGINS[:1])

    assert str(raised.value) == (
        "--set trackers: the tracker 'ledger' needs nowhere-to-be-had, which is not installed; "
        "pip install 'nowhere-to-be-had>=2'"
    )
