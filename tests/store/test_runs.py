"""Kept runs: each call keeps its own, and its files tell all that it was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from light_recipes import PLUGIN, desk_with, dotted, light_recipe

from alignkit import StageError, Text, Warned, open_run as open_kept, run_recipe
from alignkit.errors import RecipeError
from alignkit.show.report import write_report
from alignkit.store import rundir
from alignkit.store.durable import read_json, write_json
from alignkit.store.runs import KeptRun, kept_runs, open_run, this_process

RECIPE = light_recipe(spare=True)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a recipe in it."""
    return desk_with('result = "second"\n' + RECIPE, tmp_path, monkeypatch)


def run(**changes: Any) -> KeptRun:
    """Run the recipe, and open what is kept of that."""
    return open_run(run_recipe("light.toml", set=dotted(changes), inline=True, plugins=[PLUGIN]).folder)


def facts_of(kept: KeptRun, **changes: Any) -> KeptRun:
    """Change what `run.json` says, and open the run anew."""
    write_json(kept.folder / "run.json", {**kept.facts, **changes})
    return KeptRun(kept.folder)


def test_a_run_stays_when_another_begins() -> None:
    first = run()
    page = first.report.read_text("utf-8")

    second = run(second__shout__mark="?")

    assert first.report.read_text("utf-8") == page
    assert [one.id for one in kept_runs(Path("runs"))] == [first.id, second.id]
    assert open_run("runs/light").folder == second.folder


def test_a_run_says_how_it_ended() -> None:
    kept = run()

    assert (kept.state, kept.facts["status"], kept.problem, kept.recipe, kept.seed) == ("finished", 0, "", "light", 1)
    assert kept.began < str(kept.ended)
    assert "process" not in kept.facts
    assert kept.facts["versions"]["alignkit"]
    (result,) = kept.facts["stages"]["first"]["results"]
    assert [result[name] for name in ("stage", "name", "before", "after")] == ["first", "steps", 0.0, 3.0]


def test_a_run_that_fails_is_kept_with_what_was_wrong() -> None:
    with pytest.raises(StageError) as raised:
        run(first__count__fail="bug")

    kept = open_run("runs/light")
    assert (kept.state, kept.facts["status"], kept.problem) == ("failed", 1, str(raised.value))
    assert [stage.state for stage in kept.stages] == ["not finished", "not begun", "not needed"]


def test_a_run_whose_process_is_gone_without_a_word_has_died() -> None:
    kept = run()
    alive = this_process()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    states = [
        facts_of(kept, state="running", process=process).state
        for process in (
            alive,
            {**alive, "pid": gone.pid},
            {**alive, "began": alive["began"] - 3600},
        )
    ]

    assert states == ["running", "died", "died"]


def test_a_run_of_another_machine_has_died_once_it_is_not_heard_of() -> None:
    kept = facts_of(run(), state="running", process={**this_process(), "system": "elsewhere"})
    heard_of = kept.state
    os.utime(kept.folder / "run.json", (time.time() - 3600,) * 2)

    assert (heard_of, kept.state) == ("running", "died")


def test_a_stage_tells_what_it_was_given_what_it_told_and_what_came_of_it() -> None:
    run()

    first, second, _ = run(second__shout__mark="?", first__count__steps=3).stages

    assert [stage.state for stage in (first, second)] == ["reused", "finished"]
    assert first.method == "count"
    assert first.summary
    assert [(one.key, one.value, one.default, one.changed) for one in second.settings] == [
        ("shout.mark", '"?"', '"!"', True)
    ]
    assert [result.after for result in first.results] == [3.0]
    assert [event.step for event in first.metrics] == [1, 2, 3]
    assert first.samples
    assert second.inputs == {"text": ["first"]}


def test_the_report_can_be_written_from_the_folders_alone(here: Path) -> None:
    kept = run(second__shout__mark="?")
    page = kept.report.read_text("utf-8")
    kept.report.unlink()
    (here / "light.toml").unlink()
    script = f"""
import sys
import time
from alignkit.show.report import write_report
from alignkit.store.runs import open_run
write_report(open_run({str(kept.folder)!r}))
print({{"torch", "transformers", "alignkit.plugins.load_plugins"}} & {{*sys.modules}})
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
    assert without_time(kept.report.read_text("utf-8")) == without_time(page)


def without_time(page: str) -> list[str]:
    return [line for line in page.splitlines() if ", written " not in line]


def test_reading_a_run_imports_nothing_heavy() -> None:
    script = (
        "import sys, alignkit.store.runs;"
        "print({'torch', 'transformers', 'pandas', 'jinja2', 'psutil', 'numpy'} & {*sys.modules})"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"


def test_a_run_keeps_its_figures_when_its_stage_is_made_again_or_removed(here: Path) -> None:
    dice = {"first__count__dice": True}
    kept = run(**dice)
    figures = kept.stages[0].results
    overrides = {"first.count.dice": True}
    run_recipe("light.toml", set=overrides, again=["first"], inline=True, plugins=[PLUGIN])

    again = KeptRun(kept.folder).stages[0]
    state = again.state
    shutil.rmtree(here / "runs" / "stages")
    gone = KeptRun(kept.folder).stages[0]

    assert (state, gone.state) == ("finished, made again since", "finished, removed since")
    assert again.results == gone.results == figures
    write_report(KeptRun(kept.folder))
    assert "finished, removed since" in kept.report.read_text("utf-8")


def test_a_run_is_opened_by_its_folder_its_report_and_its_recipes_folder() -> None:
    kept = run()

    opened = {
        open_run(place).folder
        for place in (kept.folder, kept.report, "runs/light", "runs/light/latest", "runs/light/latest/report.html")
    }

    assert opened == {kept.folder}


@pytest.mark.parametrize("place", ["nowhere", "runs", "runs/stages", "light.toml"])
def test_where_no_run_is_kept_none_is_opened(place: str) -> None:
    run()

    with pytest.raises(RecipeError) as raised:
        open_run(place)

    assert str(raised.value) == f"{place}: no run is kept here; name the folder of a run, or of a recipe under runs/"


def test_a_run_of_an_earlier_version_is_still_listed(here: Path) -> None:
    kept = run()
    earlier = here / "runs" / "light"
    for name in ("recipe.toml", "report.html", "plan.json"):
        shutil.move(kept.folder / name, earlier / name)
    shutil.rmtree(kept.folder)
    facts = read_json(earlier / "plan.json")
    for stage in facts["stages"].values():
        del stage["described"], stage["summary"]
    (earlier / "plan.json").write_text(json.dumps(facts))
    os.utime(earlier / "recipe.toml", (0, 0))

    (found,) = kept_runs(Path("runs"))

    assert (found.id, found.state, found.began) == ("light/earlier", "finished", "1970-01-01T00:00:00+00:00")
    assert [stage.state for stage in found.stages] == ["finished", "finished", "not needed"]
    assert open_run(earlier).folder == open_run(earlier / "report.html").folder == earlier


def test_beside_later_runs_the_earlier_one_is_found_by_its_report(here: Path) -> None:
    kept = run()
    earlier = here / "runs" / "light"
    for name in ("recipe.toml", "plan.json", "report.html"):
        shutil.copy(kept.folder / name, earlier / name)

    assert open_run(earlier).folder == kept.folder
    assert open_run(earlier / "report.html").folder == earlier
    assert sorted(one.id for one in kept_runs(Path("runs"))) == [kept.id, "light/earlier"]


def test_a_kept_run_gives_data_frames_as_its_result_did() -> None:
    result = run_recipe("light.toml", inline=True, plugins=[PLUGIN])

    kept = open_kept("runs/light")

    for either in (kept, result):
        (figure,) = either.figures.to_dict("records")
        assert list(figure.values()) == ["first", "count", "steps", 0.0, 3.0, None, None, None, None]
        assert either.metrics("first").index.tolist() == [1, 2, 3]
        assert either.metrics("first").index.name == "step"
        assert either.metrics("first").columns[-1] == "seconds"
        assert len(either.samples("first")) == len(kept.stage("first").samples) > 0
        assert either.metrics("second").empty
        assert either.report == kept.folder / "report.html"


def test_a_kept_runs_warnings_are_those_of_its_stages() -> None:
    kept = run()
    with (kept.stages[0].folder or Path()).joinpath("events.jsonl").open("a") as file:
        file.write(json.dumps({"n": 99, "event": "Warned", "problem": "it is odd", "remedy": "look"}) + "\n")

    assert open_kept(kept.folder).warnings == (Warned("first", "it is odd", "look"),)


def test_plugins_are_loaded_where_an_artifact_needs_one(here: Path) -> None:
    (here / "own.py").write_text(OWN_KIND)
    (here / "own.toml").write_text('[stage.make]\nmethod = "own"\n')
    run_recipe("own.toml", inline=True, plugins=["own.py"])
    script = """
import sys, alignkit
run = alignkit.open_run("runs/own")
print(run.state, type(run.artifact("make")).__name__, run.artifact("make").path.name, "torch" in sys.modules)
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "finished Poem artifact False\n"


OWN_KIND = """
import alignkit
from alignkit import Artifact, Settings, Stage, hookimpl, method

class Poem(Artifact):
    '''A poem.'''

@method("own")
def own(settings: Settings, stage: Stage) -> Poem:
    '''Write a poem.'''
    return stage.save_rows(Poem, [{"line": "so much depends"}])

@hookimpl
def alignkit_methods():
    return [own]
"""


def test_what_is_not_finished_has_no_artifact() -> None:
    with pytest.raises(StageError):
        run(first__count__fail="bug")

    with pytest.raises(StageError) as raised:
        open_kept("runs/light").artifact("first")

    assert str(raised.value) == "stage 'first': its artifact is not there (not finished); run the recipe again"


def test_a_finished_artifact_is_typed() -> None:
    run()

    artifact = open_kept("runs/light").artifact("second")

    assert isinstance(artifact, Text)
    assert next(iter(artifact.train()))["text"] == "ROW 0 OF 3!"


def test_a_stage_that_a_run_has_not_is_named() -> None:
    run()

    with pytest.raises(StageError) as raised:
        open_kept("runs/light").metrics("third")

    assert str(raised.value) == "this run has no stage 'third'; it has first, second, spare"


def test_a_run_that_was_killed_has_died_and_one_that_was_asked_to_end_was_stopped(here: Path) -> None:
    (here / "nap.toml").write_text(f'name = "light"\n[stage.nap]\nmethod = "nap"\nnap.alarm = {int(signal.SIGTERM)}\n')
    script = "import alignkit\nalignkit.run_recipe({!r}, set={!r}, inline=True, plugins=[{!r}])"
    commands = [
        script.format("light.toml", {"first.count.fail": "killed"}, str(PLUGIN)),
        script.format("nap.toml", {}, str(PLUGIN)),
    ]

    for command in commands:
        subprocess.run([sys.executable, "-c", command], capture_output=True, check=False)

    kept = kept_runs(Path("runs"))
    assert [one.state for one in kept] == ["died", "stopped"]
    assert kept[1].facts["status"] == 143


def test_runs_of_one_second_lie_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    begun = [rundir.new_run(tmp_path, "light", "", {}, {"n": n}) for n in range(30)]

    assert [folder.name for folder in begun] == sorted(folder.name for folder in begun)
    assert rundir.run_folders(tmp_path / "light") == [folder.resolve() for folder in begun]
