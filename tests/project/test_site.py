"""The pages are one site: no link is broken, every page is in a table of contents, and Sphinx warns of nothing."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")])
MARKDOWN = MarkdownIt().enable("table")


def flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def links(page: Path) -> list[str]:
    tokens = flat(MARKDOWN.parse(page.read_text("utf-8")))
    found = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in tokens]
    return [unquote(link) for link in found if link and not re.match(r"[a-z]+:", link)]


@cache
def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    tokens = MARKDOWN.parse(page.read_text("utf-8"))
    headings = [text.content for head, text in pairwise(tokens) if head.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_nowhere(page: Path, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = page.parent / file if file else page
    return not target.exists() or (bool(anchor) and anchor not in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert [link for link in links(page) if leads_nowhere(page, link)] == []


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs" / "index.md").read_text("utf-8").splitlines()

    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert sorted(page for page in pages if page not in contents) == []


def test_a_link_to_no_file_or_no_heading_is_found() -> None:
    page = ROOT / "README.md"

    assert [leads_nowhere(page, link) for link in ("docs/cli.md", "docs/cli.md#recipe", "docs/cli.md#no", "no.md")] == [
        *(False, False),
        *(True, True),
    ]


def test_a_package_index_gets_a_readme_whose_links_are_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from hatch_build import REPOSITORY, absolute

    text = absolute((ROOT / "README.md").read_text("utf-8"))

    assert absolute("[a](docs/a.md) ![b](b.png) [c](https://c) [d](#d)") == (
        f"[a]({REPOSITORY}/blob/main/docs/a.md) ![b]({REPOSITORY}/raw/main/b.png) [c](https://c) [d](#d)"
    )
    shown = [str(token.attrs.get("href") or token.attrs.get("src") or "#") for token in flat(MARKDOWN.parse(text))]
    assert [link for link in shown if not link.startswith(("https://", "#"))] == []


def test_the_console_is_drawn_with_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from pictures import COLUMNS, draw_console

    texts = "".join(ElementTree.fromstring(draw_console(f"[1 of 5] pretrain\n{'x' * 200}")).itertext())

    assert "[1\xa0of\xa05]\xa0pretrain" in texts
    assert "x" * (COLUMNS - 1) in texts
    assert "x" * COLUMNS not in texts


def test_the_frontier_is_drawn_with_the_names_of_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from pictures import COMPARISON, draw_frontier

    texts = {element.text for element in ElementTree.fromstring(draw_frontier(COMPARISON)).iter() if element.text}

    assert {"attainable", "best of n by gold", "best of n by reward", "start", "ppo", "dpo", "grpo"} <= texts


def test_pictures_are_small_and_the_drawn_ones_stand_alone() -> None:
    pictures = sorted((ROOT / "docs" / "pictures").iterdir())

    papers = [
        f"papers-{page.stem}.svg" for page in sorted((ROOT / "docs" / "papers").glob("*.md")) if page.stem != "README"
    ]
    assert [picture.name for picture in pictures] == [
        "chain.svg", "console.svg", "frontier.svg", *papers, "report.png",
    ]  # fmt: skip
    assert [picture.name for picture in pictures if picture.stat().st_size > 300_000] == []
    for picture in pictures[:-1]:
        assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.timeout(600)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")

    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "methods" / "README.html").is_file()
