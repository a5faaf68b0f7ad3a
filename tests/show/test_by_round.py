"""Runs in rounds: what is reused, how stages are named, and figures by round."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from alignkit import open_run, run_recipe
from alignkit.cli import main
from alignkit.show.by_round import as_plain, figures_by_round
from alignkit.show.run_diff import diff_runs

METHODS = '''
from alignkit import Scores, Settings, Stage, Text, hookimpl, method


class NoSettings(Settings):
    """None."""


@method("begin")
def begin(settings: NoSettings, stage: Stage) -> Text:
    """Say something."""
    return stage.save_rows(Text, [{"text": "a row"}])


@method("louder", results=("marks",))
def louder(settings: NoSettings, stage: Stage, *, text: Text) -> Text:
    """Say it louder."""
    rows = [{"text": row["text"] + "!"} for row in text.train()]
    stage.result("marks", None, rows[0]["text"].count("!"), better="higher")
    return stage.save_rows(Text, rows)


@method("weigh", results=("marks {texts}", "gain {texts} over {texts}"))
def weigh(settings: NoSettings, stage: Stage, *, texts: tuple[Text, ...]) -> Scores:
    """Count the marks."""
    for text in texts:
        count = next(text.train())["text"].count("!")
        stage.result(f"marks {text.name}", None, count, rows=9, interval=(count - 0.5, count + 0.5))
    stage.result(f"gain {texts[-1].name} over {texts[1].name}", None, 1)
    return stage.save_rows(Scores, [{"texts": len(texts)}])


@hookimpl
def alignkit_methods():
    return [begin, louder, weigh]
'''

RECIPE = """name = "loud"
[stage.begin]
[stage.louder]
inputs.text = ["louder"]
[stage.weigh]
inputs.texts = ["begin", "louder-*"]
[repeat]
stages = ["louder"]
rounds = 2
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loud.toml").write_text(RECIPE, "utf-8")
    (tmp_path / "loud.py").write_text(METHODS, "utf-8")
    return tmp_path


def test_further_rounds_reuse_those_before(desk: Path) -> None:
    run_recipe("loud.toml", inline=True, plugins=["loud.py"])

    more = run_recipe("loud.toml", inline=True, plugins=["loud.py"], set={"repeat.rounds": 3})

    assert {stage.name: stage.reused for stage in more.stages} == {
        "begin": True,
        "louder-1": True,
        "louder-2": True,
        "louder-3": False,
        "weigh": False,
    }
    assert more.stage("louder").name == more.kept.stage("louder").name == "louder-3"
    assert more.stage("louder-1").name == "louder-1"


def test_figures_stand_side_by_side_by_round(desk: Path) -> None:
    run = run_recipe("loud.toml", inline=True, plugins=["loud.py"])

    assert as_plain(figures_by_round(run.kept)) == [
        {"stage": "weigh", "name": "marks louder", "rounds": {1: 1, 2: 2}},
        {"stage": "louder", "name": "marks", "rounds": {1: 1, 2: 2}},
    ]
    page = run.report.read_text("utf-8")
    assert "<h2>Rounds</h2>" in page
    assert "weigh: marks louder" in page
    shown = CliRunner().invoke(main, ["runs", "show", "loud"]).output.splitlines()
    assert "stage   figure        round 1  round 2" in shown
    assert "weigh   marks louder  1        2" in shown


def test_a_run_without_rounds_has_no_figures_by_round(desk: Path) -> None:
    run = run_recipe("loud.toml", inline=True, plugins=["loud.py"], set={"repeat.rounds": 1})

    assert figures_by_round(open_run(run.folder)) == []
    assert "<h2>Rounds</h2>" not in run.report.read_text("utf-8")


def test_the_last_round_stands_beside_a_stage_that_the_other_run_does_not_repeat(desk: Path) -> None:
    rounds = run_recipe("loud.toml", inline=True, plugins=["loud.py"])
    alone = RECIPE.partition("[repeat]")[0].replace('inputs.text = ["louder"]\n', "").replace("louder-*", "louder")
    (desk / "once.toml").write_text(alone.replace('"loud"', '"once"'), "utf-8")
    once = run_recipe("once.toml", inline=True, plugins=["loud.py"])

    found = diff_runs(rounds.kept, once.kept)
    other = diff_runs(once.kept, rounds.kept)

    assert [(pair.stage, pair.a, pair.b) for pair in found.stages] == [
        ("begin", "begin", "begin"),
        ("louder-1", "louder", ""),
        ("louder", "louder", "louder"),
        ("weigh", "weigh", "weigh"),
    ]
    figures = [(pair.stage, pair.name, pair.a, pair.b) for pair in found.figures]
    assert {("louder", "marks", 2, 1), ("weigh", "marks louder", 2, 1)} <= {*figures}
    assert ("stage louder", "louder-2", "louder") in found.circumstances
    assert ("stage louder", "louder", "louder-2") in other.circumstances
