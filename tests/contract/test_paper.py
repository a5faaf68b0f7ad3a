"""Papers: what may be one, what a method says of them, and how they are found."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from alignkit import Method, Paper, PluginError, Prompts, Settings, Stage, method
from alignkit.cli import main
from alignkit.plugins import load_plugins
from alignkit.show.literature import papers_in_markdown

OFFERED = """
from alignkit import Paper, Prompts, Settings, Stage, hookimpl, method

class Pull(Settings):
    coef: float = 0.1

class OddSettings(Settings):
    pull: Pull = Pull()
    kind: str = "plain"

@method("odd", papers=(
    Paper("oddest", "Odd Ones Out", "arXiv 2501.00001", {"kind": "wild", "pull": {"coef": 0.0}}, "it is shorter"),
    Paper("odd", "Odd", "ICML 1999"),
))
def odd(settings: OddSettings, stage: Stage, *, prompts: Prompts) -> Prompts:
    "Do what is odd."
    return prompts

@hookimpl
def alignkit_methods():
    return [odd]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "odd_one.py"
    file.write_text(OFFERED)
    return file


@pytest.mark.parametrize("name", ["Dapo", "", "a paper", "x" * 42])
def test_a_name_that_nobody_could_type_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must match"):
        Paper(name, "A Title", "arXiv 2501.00001")


class LooseSettings(Settings):
    must: int
    kind: str = "plain"


def offered(paper: Paper) -> Method:
    @method("loose", papers=(paper,))
    def loose(settings: LooseSettings, stage: Stage, *, prompts: Prompts) -> Prompts:
        return prompts

    return loose


def test_a_paper_gives_settings_of_its_method() -> None:
    paper = Paper("wild", "Wild", "arXiv 2501.00002", {"kind": "wild"})
    assert offered(paper).papers == (paper,)  # `must` is left to the recipe
    with pytest.raises(PluginError, match="settings of paper 'wild' are not its own: knd: extra inputs"):
        offered(Paper("wild", "Wild", "arXiv 2501.00002", {"knd": "wild"})).examine()


PAPER: Any = Paper("wild", "Wild", "arXiv 2501.00002", {"kind": "wild"})


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"papers": PAPER}, "its papers must be several, such as papers=(Paper(...),)"),
        ({"papers": ("wild",)}, "its papers must be several, such as papers=(Paper(...),)"),
        ({"papers": (PAPER, PAPER)}, "two of its papers have the name 'wild'"),
        ({"advice": "take it"}, "its advice must be Advice(when, risk)"),
        ({"refuses": lambda settings: ()}, "its `refuses` must take settings and the kinds of inputs"),
    ],
)
def test_what_a_method_cannot_say_of_itself_is_refused(words: dict[str, Any], why: str) -> None:
    def loose(settings: LooseSettings, stage: Stage, *, prompts: Prompts) -> Prompts:
        return prompts

    with pytest.raises(PluginError) as refusal:
        method("loose", **words)(loose)

    assert f"method 'loose' cannot be read: {why}; `alignkit new NAME` writes one that can" in str(refusal.value)


@pytest.mark.parametrize("name", ["oddest", "2501.00001", "arXiv 2501.00001"])
def test_a_paper_is_found_by_its_name_and_by_its_number(file: Path, name: str) -> None:
    ((paper, found),) = load_plugins([file]).papers_called(name)
    assert (paper.name, found.name) == ("oddest", "odd")


def test_what_a_recipe_says_is_shown(file: Path) -> None:
    told = CliRunner().invoke(main, ["methods", "oddest", "-p", str(file)])
    assert told.exit_code == 0
    assert 'method = "odd"\nodd.kind = "wild"\nodd.pull.coef = 0.0\n' in told.output
    assert "it is shorter" in told.output
    listed = CliRunner().invoke(main, ["methods", "--papers", "-p", str(file)])
    assert "arXiv 2501.00001" in listed.output
    assert "oddest" in CliRunner().invoke(main, ["methods", "odd", "-p", str(file)]).output
    line = (
        "| `oddest` | Odd Ones Out ([arXiv 2501.00001](https://arxiv.org/abs/2501.00001)) | `odd` "
        '| `odd.kind = "wild"`<br>`odd.pull.coef = 0.0` | it is shorter |'
    )
    assert line in papers_in_markdown(load_plugins([file]))


def test_a_recipe_that_names_a_paper_is_told_the_method(file: Path) -> None:
    problem = load_plugins([file]).lacks("method", "oddest", ["odd"])
    assert str(problem).endswith("it is odd with settings that `alignkit methods oddest` shows")


def test_a_paper_has_one_title_and_settings_that_may_be_taken_as_they_stand() -> None:
    papers = [paper for paper, _ in load_plugins(()).papers]
    titles = {paper.source: paper.title for paper in papers}

    assert [paper.name for paper in papers if titles[paper.source] != paper.title] == []
    assert [paper.name for paper in papers if "..." in paper.settings.values()] == []
