"""The pages for users say what the code does: settings exist, figures are logged, messages are those of the code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from alignkit.plugins import load_plugins
from alignkit.show.offered import settings_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
METHODS = sorted(path for path in (DOCS / "methods").glob("*.md") if path.stem != "README")
GUIDE = [*METHODS, *(DOCS / name for name in ("first-run.md", "own-data.md", "using.md", "troubleshooting.md"))]
SECTIONS = ["What it computes", "What it logs", "When it fails", "Papers"]
MARKDOWN = MarkdownIt().enable("table")


def spans(text: str) -> list[str]:
    """Return what stands between backticks, code blocks left out."""
    return [
        child.content for token in MARKDOWN.parse(text) for child in token.children or [] if child.type == "code_inline"
    ]


def section(page: Path, title: str) -> str:
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def first_cells(text: str) -> list[str]:
    return [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]


@cache
def strings() -> frozenset[str]:
    """Return the texts that stand in the code; `...` stands where a value is filled in."""
    found = set[str]()
    for file in [*ROOT.glob("alignkit/**/*.py"), *ROOT.glob("plugins/alignkit-*/alignkit_*/*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.add("".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values))
    return frozenset(found)


def in_code(message: str) -> bool:
    return all(any(part in text for text in strings()) for part in re.split(r"\s*\.\.\.\s*", message) if part)


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_a_page_of_a_method_has_every_part(page: Path) -> None:
    assert re.findall(r"^## (.*)$", page.read_text("utf-8"), re.MULTILINE) == SECTIONS


def test_every_method_has_a_page() -> None:
    text = (DOCS / "methods" / "README.md").read_text("utf-8")

    pages = {name: re.search(rf"^\| \[`{name}`\]\((\S+)\)", text, re.MULTILINE) for name in load_plugins(()).methods}
    without = [
        name for name, link in pages.items() if not link or name not in (DOCS / "methods" / link[1]).read_text("utf-8")
    ]
    assert without == []


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    methods = load_plugins(()).methods
    keys = {name: {one.key for one in settings_of(method)} for name, method in methods.items()}
    named = [re.split(r"[ =]", span)[0] for span in spans(page.read_text("utf-8"))]
    given = [name for name in named if name.partition(".")[0] in methods and "." in name]

    unknown = [
        key for key in given if not any(one == key or one.startswith(f"{key}.") for one in keys[key.partition(".")[0]])
    ]
    assert unknown == []
    assert given or page not in METHODS


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_every_figure_that_a_page_explains_has_its_name_in_the_code(page: Path) -> None:
    figures = [span for cell in first_cells(section(page, "What it logs")) for span in spans(cell)]

    assert [name for name in figures if not any(f"{text} ".startswith(f"{name} ") for text in strings())] == []
    assert figures or page.stem == "trl"


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_every_message_that_a_page_quotes_is_one_of_the_code(page: Path) -> None:
    quoted = [span for cell in first_cells(section(page, "When it fails")) for span in spans(cell) if " " in span]

    assert [message for message in quoted if not in_code(message)] == []


def test_every_message_of_troubleshooting_is_one_of_the_code() -> None:
    lines = (DOCS / "troubleshooting.md").read_text("utf-8").splitlines()
    quoted = [span for line in lines if line.startswith("> ") for span in spans(line)]

    assert quoted
    assert [message for message in quoted if not in_code(message)] == []


def test_a_message_that_is_not_in_the_code_is_found() -> None:
    assert in_code("nats from the start's")
    assert not in_code("nats from nowhere")
