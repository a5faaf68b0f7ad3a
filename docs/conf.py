"""The pages as a site, built by `make site`. GitHub shows the same files, so what differs is changed on reading."""

import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
SOURCE = "https://github.com/alignkit/alignkit/blob/main"

project = "alignkit"
author = copyright = "The alignkit authors"  # noqa: A001  # Sphinx names it so
version = release = version_of("alignkit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinxcontrib.mermaid"]
exclude_patterns = ["figures"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math", "mermaid"]  # as GitHub reads them
myst_heading_anchors = 4

html_theme = "furo"
html_title = "alignkit"
html_theme_options = {
    "source_repository": "https://github.com/alignkit/alignkit/",
    "source_branch": "main",
    "source_directory": "docs/",
}

autodoc_default_options = {"members": True, "imported-members": True, "exclude-members": "model_config"}
autodoc_member_order = "alphabetical"
autodoc_typehints_format = "short"
default_role = "code"  # names in docstrings stand between single backticks
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other packages have no page here


def read_as_a_site(app: "Sphinx", page: str, source: list[str]) -> None:
    """Let links to files outside of docs/ lead to the repository, and list a folder's pages below its index."""
    here = (ROOT / "docs" / page).parent

    def elsewhere(link: "re.Match[str]") -> str:
        file = (here / link[1]).resolve()
        return f"]({SOURCE}/{file.relative_to(ROOT)}" if file.exists() else link[0]

    source[0] = re.sub(r"\]\(((?:\.\./)+(?!docs/)[^)#]+)", elsewhere, source[0])
    if page.endswith("/README"):
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"


def setup(app: "Sphinx") -> None:
    """Register what is done while pages are read."""
    app.connect("source-read", read_as_a_site)
