"""Pages show what the code says: generated parts are up to date, and the README has the two commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[2]
GENERATED = [
    page.relative_to(HERE).as_posix()
    for page in sorted([*HERE.glob("*.md"), *HERE.glob("docs/**/*.md")])
    if "[[[cog" in page.read_text("utf-8") and page.name != "README.zh.md"  # its blocks are the README's; see below
]


def test_the_generated_parts_of_pages_are_up_to_date() -> None:
    command = [sys.executable, "-m", "cogapp", "--check", *GENERATED]  # in one process: imports take the longest

    ended = subprocess.run(command, cwd=HERE, env=os.environ, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, f"run `make docs`\n{ended.stdout}{ended.stderr}"


def test_the_readme_shows_the_two_commands() -> None:
    text = (HERE / "README.md").read_text("utf-8")

    assert "make demo" in text
    assert "make test" in text


def test_every_hook_is_documented_for_authors() -> None:
    from alignkit.contract import hookspecs

    page = (HERE / "docs" / "plugins.md").read_text("utf-8")

    hooks = [name for name in vars(hookspecs) if name.startswith("alignkit_")]
    assert [name for name in hooks if f"`{name}(" not in page] == []


def test_the_chinese_readme_has_the_blocks_of_the_english_one_and_both_name_each_other() -> None:
    english, chinese = ((HERE / name).read_text("utf-8") for name in ("README.md", "README.zh.md"))
    block = re.compile(r"<!-- \[\[\[cog.*?<!-- \[\[\[end\]\]\] -->|^```\w+$.*?^```$", re.MULTILINE | re.DOTALL)

    assert block.findall(chinese) == block.findall(english)
    assert re.findall("^## ", chinese, re.MULTILINE) == re.findall("^## ", english, re.MULTILINE)
    assert "](README.zh.md)" in english
    assert "](README.md)" in chinese
