"""The blocks of the guide's pages, run in order in one folder: what a reader types works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\S+\.toml)\n")


def read(page: str) -> list[tuple[str, str]]:
    """Return the language and the text of each block; what is only shown is `text` or `console`."""
    return BLOCK.findall((DOCS / page).read_text("utf-8"))


def run(page: str, folder: Path) -> None:
    """Run the blocks of a page: commands, Python, and recipes that name their file, which are written there."""
    shell, environment = folder / "bin" / "alignkit", os.environ | {"OMP_NUM_THREADS": "1", "ALIGNKIT_PLUGINS": "dpo"}
    shell.parent.mkdir(exist_ok=True)
    shell.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m alignkit "$@"\n')
    shell.chmod(0o755)
    environment["PATH"] = f"{shell.parent}{os.pathsep}{os.environ['PATH']}"
    for language, text in read(page):
        if language == "toml" and (named := NAMED.match(text)):
            (folder / named[1]).write_text(text, "utf-8")
        command = {"sh": ["bash", "-euc", text], "python": [sys.executable, "-c", text]}.get(language)
        if command:
            ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, f"{page}:\n{text}\n{ended.stdout}\n{ended.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_run_and_the_use_of_its_model_work_as_they_are_shown(tmp_path: Path) -> None:
    run("first-run.md", tmp_path)
    run("using.md", tmp_path)

    assert (tmp_path / "runs" / "rlhf" / "latest" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_own_data_are_trained_on_as_it_is_shown(tmp_path: Path) -> None:
    run("own-data.md", tmp_path)

    assert (tmp_path / "runs" / "mine" / "latest" / "report.html").is_file()


def test_every_block_of_the_guide_is_run_or_only_shown() -> None:
    languages = {language for page in ("first-run.md", "own-data.md", "using.md") for language, _ in read(page)}

    assert languages <= {"sh", "python", "toml", "text", "console"}
