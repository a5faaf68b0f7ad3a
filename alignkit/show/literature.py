"""Papers in words: which method of ours is that of a paper, and what a recipe says to have it."""

from collections.abc import Iterable
from typing import Any

from alignkit.contract.method import Method
from alignkit.contract.paper import Paper
from alignkit.plugins import Plugins
from alignkit.show.offered import in_toml
from alignkit.text import table


def list_papers(found: Iterable[tuple[Paper, Method]], width: int | None) -> list[str]:
    """Return the lines of `alignkit methods --papers`."""
    rows = [(p.name, m.name, p.source, "\n".join([p.title, *_told(p, m)])) for p, m in found]
    return table(rows, width, ("paper", "method", "source", "title, and what a stage says"))


def describe_paper(paper: Paper, method: Method, width: int | None) -> list[str]:
    """Return the lines of `alignkit methods NAME` for a paper's name: where it is, and how a recipe says it."""
    rows = [(paper.name, f"{paper.title} ({paper.source})"), ("method", f"{method.name}: {method.summary}")]
    differs = [("differs", paper.differs)] if paper.differs else []
    preset = ["", f'or, shorter: {method.name}.preset = "{paper.name}"'] if paper.name in method.presets else []
    return [*table([*rows, *differs], width), "", f'method = "{method.name}"', *_told(paper, method), *preset]


def paper_as_dict(paper: Paper, method: Method) -> dict[str, Any]:
    """Return a paper as plain JSON values."""
    told = {"paper": paper.name, "title": paper.title, "source": paper.source, "method": method.name}
    return {**told, "settings": dict(paper.settings), "differs": paper.differs}


def papers_in_markdown(plugins: Plugins, method: str | None = None) -> str:
    """Return the table of all papers, or of those of one method, for a page."""
    head = ("| name | paper | method | settings | what differs |", "|---|---|---|---|---|")
    return "\n".join([*head, *(_row(*row) for row in plugins.papers if method in (None, row[1].name))])


def _row(paper: Paper, method: Method) -> str:
    said = "<br>".join(f"`{line}`" for line in _told(paper, method))
    where = f"{paper.title} ({linked(paper.source, paper.source)})"
    return f"| `{paper.name}` | {where} | `{method.name}` | {said} | {paper.differs} |"


def linked(source: str, words: str) -> str:
    """Return these words as a link to a paper on arXiv, in Markdown; elsewhere where the paper is."""
    number = source.removeprefix("arXiv ")
    return source if number == source else f"[{words}](https://arxiv.org/abs/{number})"


def _told(paper: Paper, method: Method) -> list[str]:
    """Return what a stage says besides its method: `grpo.kl.coef = 0.0`."""
    return [f"{key} = {in_toml(value)}" for key, value in paper.keys(method.name).items()]
