"""What a shell completes: recipes, stages and methods, and nothing where something is wrong."""

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from alignkit.cli import main


def completed(*words: str) -> list[tuple[str, str]]:
    """Complete the last word; give values with their types."""
    found = ShellComplete(main, {}, "alignkit", "_ALIGNKIT_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [(item.value, item.type) for item in found]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_recipes_are_packaged_ones_and_files(here: Path) -> None:
    (here / "rlaif-mine.toml").write_text("")
    (here / "rlaif.txt").write_text("")

    assert completed("recipe", "rla") == [("rlaif", "plain"), ("rlaif-mine.toml", "plain")]


def test_recipes_of_another_folder_keep_its_name(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "small.toml").write_text("")

    assert completed("plan", "mine/sm") == [("mine/small.toml", "plain")]


def test_where_no_recipe_fits_the_shell_completes_files(here: Path) -> None:
    assert completed("check", "data/ro") == [("data/ro", "file")]


def test_stages_are_those_of_the_recipe(here: Path) -> None:
    assert completed("recipe", "rlhf", "--until", "") == [
        (name, "plain") for name in ("pretrain", "finetune", "reward", "align", "scores")
    ]


def test_a_recipe_that_cannot_be_read_has_no_stages(here: Path) -> None:
    (here / "bad.toml").write_text("[stage")

    assert completed("recipe", "bad.toml", "--until", "") == []


def test_methods_are_completed(here: Path) -> None:
    assert completed("methods", "ev") == [("evaluate", "plain")]


def test_templates_are_packaged_recipes(here: Path) -> None:
    assert completed("init", "--template", "tu") == [("tutorial", "plain")]
