"""A run in a notebook: what stands under its cells."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from light_recipes import PLUGIN, light_recipe
from nbclient import NotebookClient

from alignkit import run_recipe
from alignkit.show.notebook import in_notebook

RECIPE = light_recipe(first="count.steps = 20\ncount.seconds = 0.05")

TAGS = """
from alignkit import Settings, Stage, Text, hookimpl, method

class TagSettings(Settings):
    'None.'

@method("tags")
def tags(settings: TagSettings, stage: Stage) -> Text:
    'Show tags.'
    stage.warn("odd <b>", "mend it")
    for number in range(9):
        stage.sample({"prompt": "<i>", "before": "plain", "after": "<script>alert(1)</script>", "reward": 0.5})
    return stage.save_rows(Text, [{"text": "a row"}])

@hookimpl
def alignkit_methods():
    return [tags]
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Run a notebook, and return its cells with what stands under them."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "light.toml").write_text(RECIPE)
    (folder / "broken.py").write_text("import nothing_of_that_name")
    codes = [
        f"import alignkit\nrun = alignkit.run_recipe('light.toml', plugins=[{str(PLUGIN)!r}, 'broken.py'])",
        "run",
        "run.stage('first').results[0].after",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
    client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(folder)}})
    updates: list[str] = []
    process = client.process_message

    def noting(message: Any, *more: Any) -> Any:
        if message["msg_type"] == "update_display_data":
            updates.append(message["content"]["data"]["text/plain"])
        return process(message, *more)

    client.process_message = noting  # type: ignore[method-assign]
    client.execute()
    notebook.metadata["updates"] = updates
    return [*notebook.cells, updates]


def shown(cell: Any) -> list[str]:
    """Return the plain texts under a cell."""
    return [output["data"]["text/plain"] for output in cell["outputs"]]


def test_a_run_has_a_line_for_each_stage_and_tells_warnings(cells: list[Any]) -> None:
    warning, *stages = shown(cells[0])

    problem = "the plugin broken.py cannot be loaded (ModuleNotFoundError: No module named 'nothing_of_that_name')"
    assert warning == f"warning: first: {problem}; correct it, or leave -p out"
    assert [line.split(" in ")[0] for line in stages] == ["first: done, Text", "second: done, Text"]


def test_a_line_is_written_anew_while_its_stage_runs(cells: list[Any]) -> None:
    updates = cells[-1]

    steps = [int(line.split()[5].partition("/")[0]) for line in updates if line.startswith("[1 of 2] first count ")]
    assert len(steps) > 1
    assert steps == sorted(steps)


def test_what_a_run_came_to_is_a_table_with_its_warnings(cells: list[Any]) -> None:
    html = cells[1]["outputs"][0]["data"]["text/html"]

    assert '<td style="text-align: left">steps 0 -&gt; 20' in html
    assert "<strong>light</strong>: finished." in html
    assert len(shown(cells[1])[0]) < 250


def test_answers_from_before_and_after_are_shown_and_nothing_of_them_is_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tags.py").write_text(TAGS)
    Path("tags.toml").write_text('name = "tags"\n[stage.only]\nmethod = "tags"\n')

    html = run_recipe("tags.toml", plugins=["tags.py"], inline=True)._repr_html_()

    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "warning: only: odd &lt;b&gt;; mend it" in html
    assert html.count("<tr>") == 2 + 1 + 3
    assert "<script>" not in html


def test_outside_of_a_notebook_nothing_is_shown() -> None:
    assert not in_notebook()
